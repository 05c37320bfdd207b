//! What an operator does: a store transaction that commits once its model instance is built, then a publish.

pub mod base;
pub mod defaults;
pub mod error;
mod forms;
mod instance;
mod loading;
mod source;
mod tuning;

pub use base::BaseSource;
pub use error::Error;
pub use forms::Forms;
pub use source::Source;
pub use tuning::Tuning;

use crate::engine::{self, Choice, EngineHandle, Generation, MemoryPart, Sampling};
use crate::model::{NetworkFacts, Place, Regime};
use crate::ops::quantized::Form;
use crate::store::{self, Commit, NewVariant, Options, Scales, Store, VariantRecord, Watch};
use crate::superposition::Delta;
use base::Base;
use instance::Served;
use loading::Loading;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tuning::Said;

/// Settings of a catalog.
#[derive(Clone, Debug)]
pub struct CatalogConfig {
    /// Holds the store; made on the first start.
    pub data_dir: PathBuf,
    pub base: BaseSource,
    /// Variants to a bank, 4 where absent; fixed when the store is made, and another number is refused later.
    pub bank_capacity: Option<usize>,
    /// The same for the output head's banks, 1 where absent.
    pub head_capacity: Option<usize>,
    /// Where the network runs.
    pub place: Place,
    /// The form that banks are served in.
    pub bank_form: Form,
    /// The form of the output head's banks; see [`Forms::new`] where absent.
    pub head_form: Option<Form>,
    /// Keep every delta in the store, so that a variant can be removed without giving it again. Decided when the store
    /// is made.
    pub archive: bool,
}

#[derive(Clone, Debug)]
pub struct AddRequest {
    pub name: String,
    /// The first 8 bytes of the SHA-256 of the delta where absent.
    pub seed: Option<u64>,
    pub source: Source,
    /// The scale c of the retrieved delta; 1 where absent.
    pub scale: Option<f32>,
    /// What it was tuned for, where the operator says so.
    pub tuning: Tuning,
    /// Sampling defaults; what is not chosen is what the file says, else usual for its process.
    pub defaults: Choice,
    /// Refuse unless the store is at this generation.
    pub expected_generation: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct RemoveRequest {
    /// The checkpoint again, where the store archives no delta.
    pub delta: Option<Source>,
    pub expected_generation: Option<u64>,
}

/// How far an operation has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    pub stage: Stage,
    /// Of the whole operation, 0 to 1.
    pub fraction: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Reading,
    Comparing,
    Accumulating,
    Measuring,
    Writing,
    Publishing,
}

impl Progress {
    /// A stage at its beginning.
    fn at(stage: Stage) -> Self {
        let fraction = match stage {
            Stage::Reading => 0.0,
            Stage::Comparing => 0.1,
            Stage::Accumulating => 0.3,
            Stage::Measuring => 0.5,
            Stage::Writing => 0.7,
            Stage::Publishing => 0.8,
        };
        Progress { stage, fraction }
    }
}

/// A variant as operators see it.
#[derive(Clone, Debug, PartialEq)]
pub struct VariantInfo {
    pub name: String,
    pub seed: u64,
    pub scale: f32,
    pub banks: Vec<String>,
    /// Cosine of the retrieved with the true delta, and relative error, over all superposed tensors; NaN where the
    /// store has no delta to compare with.
    pub cosine: f64,
    pub relative_error: f64,
    pub source: String,
    /// Hex SHA-256 of the delta.
    pub delta_digest: String,
    pub archived: bool,
    /// Seconds since 1970.
    pub added: u64,
    /// What it was tuned for.
    pub regime: Regime,
    pub defaults: Sampling,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub generation: u64,
    pub memory: Vec<MemoryPart>,
    pub variants: usize,
    pub banks: usize,
}

/// The store and what is served from it. All methods that change something block (call them off the runtime) and
/// wait for each other; the others do not wait for them.
pub struct Catalog {
    base: Base,
    forms: Forms,
    changing: Mutex<Changing>,
    served: Mutex<Arc<Snapshot>>,
    /// Told that loading begins (true) and that it is over (false).
    loading: OnceLock<fn(bool)>,
}

/// What only one action at a time may hold.
struct Changing {
    store: Store,
    current: Served,
    engine: Option<EngineHandle>,
}

/// Sees the store as a change will leave it, before that is committed.
type Accept<'a> = dyn FnMut(&Store) -> Result<(), Error> + 'a;

/// What is being served, for those who ask.
#[derive(Default)]
struct Snapshot {
    variants: Vec<VariantInfo>,
    status: Status,
}

/// What a panic leaves under a lock of this module is whole: a store commits or does not.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Catalog {
    /// Opens or makes the store and builds the model instance of its generation. A new store of the embedded base
    /// starts with the variants compiled in.
    pub fn open(
        config: CatalogConfig,
        progress: impl FnMut(Progress),
    ) -> Result<(Catalog, Generation), Error> {
        Catalog::open_watched(config, None, progress)
    }

    /// [`Catalog::open`], with every write operation of the store announced to `watch`.
    pub fn open_watched(
        config: CatalogConfig,
        watch: Option<Watch>,
        mut progress: impl FnMut(Progress),
    ) -> Result<(Catalog, Generation), Error> {
        progress(Progress::at(Stage::Reading));
        let base = config.base.load(&config.place)?;
        let dir = &config.data_dir;
        let mut store = if Store::exists(dir) {
            let store = Store::open_watched(dir, base.facts.clone(), watch)?;
            check_capacity(
                "bank_capacity",
                config.bank_capacity,
                store.manifest().options.bank_capacity,
            )?;
            check_capacity(
                "head_capacity",
                config.head_capacity,
                store.manifest().options.head_capacity,
            )?;
            store
        } else {
            let options = Options {
                bank_capacity: config
                    .bank_capacity
                    .unwrap_or(Options::default().bank_capacity),
                head_capacity: config
                    .head_capacity
                    .unwrap_or(Options::default().head_capacity),
                archive: config.archive,
            };
            check_free(dir)?;
            Store::create_watched(dir, base.facts.clone(), options, watch)?
        };
        // Generation 0 is a store to which nothing was ever committed: also one whose first start was cut off.
        if store.manifest().generation == 0 && matches!(config.base, BaseSource::Embedded) {
            progress(Progress::at(Stage::Comparing));
            let variants = shipped_variants(&base)?;
            store.add_all(variants, None, &mut |stage| {
                progress(Progress::at(stage.into()))
            })?;
        }
        progress(Progress::at(Stage::Publishing));
        let head_capacity = store.manifest().options.head_capacity;
        let forms = Forms::new(config.bank_form, config.head_form, head_capacity);
        let (generation, current) = instance::build(&store, &base, forms, &Served::default())?;
        let catalog = Catalog {
            forms,
            served: Mutex::new(Arc::new(Snapshot::of(&store, &generation))),
            changing: Mutex::new(Changing {
                store,
                current,
                engine: None,
            }),
            base,
            loading: OnceLock::new(),
        };
        Ok((catalog, generation))
    }

    /// Tells `hook` of every addition and removal from now on: with true where it begins and with false where it ends, also where it
    /// is refused.
    pub fn watch_loading(&self, hook: fn(bool)) {
        let _ = self.loading.set(hook); // the first one stays
    }

    /// Where committed changes are published from now on.
    pub fn attach(&self, engine: EngineHandle) {
        lock(&self.changing).engine = Some(engine);
    }

    /// Adds a variant and publishes the generation with it. Two additions wait for each other.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn add(
        &self,
        request: AddRequest,
        mut progress: impl FnMut(Progress),
    ) -> Result<VariantInfo, Error> {
        let _loading = Loading::begin(self.loading.get().copied());
        let mut tell = |stage| progress(Progress::at(stage));
        let AddRequest {
            name,
            seed,
            source,
            scale,
            tuning,
            defaults,
            expected_generation,
        } = request;
        store::check_name(&name)?;
        let network = self.base.weights.facts();
        tell(Stage::Reading);
        let origin = source.origin();
        let ((bytes, beside), base) = (source.read(&self.base)?, self.base.tensors()?);
        tell(Stage::Comparing);
        let delta = Delta::read(&base, &bytes).map_err(base::checkpoint(&origin))?;
        let said = Said::of(&origin, &bytes, beside, network)?;
        drop((bytes, base));
        let regime = tuning.regime(&said, network)?;
        let sampling = sampling(&said, regime, &defaults, &self.base)?;
        let variant = NewVariant {
            name: name.clone(),
            seed,
            delta,
            source: origin,
            process: defaults::process_to_store(regime.process),
            defaults: defaults::to_store(&sampling, regime, network),
            scales: Scales::all(scale.unwrap_or(1.0)),
        };
        let mut changing = lock(&self.changing);
        self.change(&mut changing, |store, accept| {
            store.add_if(
                vec![variant],
                expected_generation,
                &mut |stage| tell(stage.into()),
                accept,
            )
        })?;
        drop(changing);
        self.get(&name)
    }

    /// Removes a variant, publishes the generation without it, and returns its number.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn remove(&self, name: &str, request: RemoveRequest) -> Result<u64, Error> {
        let _loading = Loading::begin(self.loading.get().copied());
        let given = request.delta.map(|source| -> Result<Delta, Error> {
            let origin = source.origin();
            let (bytes, _) = source.read(&self.base)?;
            Delta::read(&self.base.tensors()?, &bytes).map_err(base::checkpoint(&origin))
        });
        let given = given.transpose()?;
        let mut changing = lock(&self.changing);
        let commit = self.change(&mut changing, |store, accept| {
            store.remove_if(
                name,
                given,
                request.expected_generation,
                &mut |_| {},
                accept,
            )
        })?;
        Ok(commit.generation)
    }

    /// Commits a change once its model instance is built, and publishes that.
    fn change(
        &self,
        changing: &mut Changing,
        commit: impl FnOnce(&mut Store, &mut Accept) -> Result<Commit, Error>,
    ) -> Result<Commit, Error> {
        let Changing {
            store,
            current,
            engine,
        } = changing;
        let mut built = None;
        let commit = commit(store, &mut |store| {
            let (generation, next) = instance::build(store, &self.base, self.forms, current)?;
            built = Some((Arc::new(Snapshot::of(store, &generation)), generation, next));
            Ok(())
        })?;
        if let Some((snapshot, generation, next)) = built {
            *current = next;
            if let Some(engine) = engine {
                engine.publish(generation);
            }
            *lock(&self.served) = snapshot;
        }
        Ok(commit)
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        lock(&self.served).clone()
    }

    /// All variants being served, by name.
    pub fn list(&self) -> Vec<VariantInfo> {
        self.snapshot().variants.clone()
    }

    pub fn get(&self, name: &str) -> Result<VariantInfo, Error> {
        let snapshot = self.snapshot();
        let found = snapshot.variants.iter().find(|info| info.name == name);
        let unknown = || store::Error::UnknownVariant {
            name: store::shown(name),
        };
        Ok(found.cloned().ok_or_else(unknown)?)
    }

    pub fn status(&self) -> Status {
        let mut status = self.snapshot().status.clone();
        let bytes = self.base.weights.table_bytes() as u64;
        if bytes > 0 {
            status.memory.push(MemoryPart {
                part: "modulation tables".into(),
                bytes,
                on_device: false,
            });
        }
        status
    }
}

impl Snapshot {
    fn of(store: &Store, generation: &Generation) -> Self {
        let manifest = store.manifest();
        Snapshot {
            variants: manifest
                .variants
                .iter()
                .map(|(name, record)| info(name, record, generation.denoiser.facts()))
                .collect(),
            status: Status {
                generation: manifest.generation,
                memory: generation.memory.clone(),
                variants: manifest.variants.len(),
                banks: manifest.banks.len(),
            },
        }
    }
}

fn info(name: &str, record: &VariantRecord, network: &NetworkFacts) -> VariantInfo {
    let measured = |pick: fn(&store::Quality) -> f32| {
        record.quality.as_ref().map_or(f64::NAN, |q| pick(q).into())
    };
    VariantInfo {
        name: name.to_owned(),
        seed: record.seed,
        scale: record.scales.default,
        banks: record.banks.iter().map(ToString::to_string).collect(),
        cosine: measured(|quality| quality.cosine),
        relative_error: measured(|quality| quality.relative_error),
        source: record.source.clone(),
        delta_digest: record.delta.to_string(),
        archived: record.archive.is_some(),
        added: record.added,
        regime: defaults::regime(record, network),
        defaults: record.defaults.sampling(),
    }
}

/// The variants compiled in, compared with the base.
fn shipped_variants(base: &Base) -> Result<Vec<NewVariant>, Error> {
    let tensors = base.tensors()?;
    let network = base.weights.facts();
    let variant = |base::Shipped {
                       name,
                       about,
                       packed,
                   }| {
        let said = Said::of(name, packed, None, network)?;
        let regime = Tuning::default().regime(&said, network)?;
        let sampling = sampling(&said, regime, &Choice::default(), base)?;
        Ok(NewVariant {
            name: name.to_owned(),
            seed: None,
            delta: Delta::read(&tensors, packed).map_err(base::checkpoint(name))?,
            process: defaults::process_to_store(regime.process),
            defaults: defaults::to_store(&sampling, regime, network),
            source: about.about,
            scales: Scales::default(),
        })
    };
    base::shipped()?.into_iter().map(variant).collect()
}

/// A variant's sampling defaults: what is chosen, else what its file says, else what is usual for its process.
fn sampling(said: &Said, regime: Regime, chosen: &Choice, base: &Base) -> Result<Sampling, Error> {
    let usual = match &said.defaults {
        Some(recorded) => recorded.sampling(),
        None => base.usual(regime),
    };
    let sampling = chosen.over(usual).and_then(|sampling| {
        engine::check_sampling(base.weights.facts(), regime, &sampling)?;
        Ok(sampling)
    });
    sampling.map_err(|error| Error::BadField {
        field: "defaults",
        reason: error.to_string(),
    })
}

/// A store keeps the capacity it was made with.
fn check_capacity(
    field: &'static str,
    asked: Option<usize>,
    made_with: usize,
) -> Result<(), Error> {
    match asked.filter(|asked| *asked != made_with) {
        None => Ok(()),
        Some(asked) => Err(Error::BadField {
            field,
            reason: format!("it is {asked}, but the store was made with {made_with}"),
        }),
    }
}

/// A new store goes into a directory of its own.
fn check_free(dir: &std::path::Path) -> Result<(), Error> {
    let refuse = |reason: &str| Error::DataDir {
        dir: dir.to_owned(),
        reason: reason.to_owned(),
    };
    if dir.exists() && !dir.is_dir() {
        return Err(refuse("it is no directory"));
    }
    let mut names = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    // What a first start that was cut off leaves.
    let ours = |name: &std::ffi::OsStr| {
        name == "lock" || name.to_string_lossy().starts_with("manifest.json")
    };
    match names.find(|name| !ours(name)) {
        None => Ok(()),
        Some(_) => Err(refuse(
            "it holds other files and no store; choose an empty directory",
        )),
    }
}

impl From<store::Stage> for Stage {
    fn from(stage: store::Stage) -> Self {
        match stage {
            store::Stage::Accumulating => Stage::Accumulating,
            store::Stage::Measuring => Stage::Measuring,
            store::Stage::Writing => Stage::Writing,
            store::Stage::Committing => Stage::Publishing,
        }
    }
}
