//! What an operator does: a store transaction that commits once its model instance is built, then a publish.

mod addition;
pub mod base;
mod beside;
mod convert;
pub mod defaults;
pub mod error;
mod forms;
mod info;
mod instance;
mod loading;
mod request;
mod share;
mod source;
mod tuning;
mod workshop;

pub use base::BaseSource;
pub use beside::Beside;
pub use convert::{Converted, convert};
pub use error::Error;
pub use forms::Forms;
pub use info::{StoreStatus, VariantInfo};
pub use request::{AddRequest, AdditionProgress, AdditionStage, CatalogConfig, RemoveRequest};
pub use source::{CheckpointSource, begins};
pub use tuning::{Tuning, of_file};

use crate::engine::{EngineHandle, Generation, MemoryPart};
use crate::store::{self, Commit, DiskWatch, Options, Staged, Store};
use crate::superposition::CodedDelta;
use base::ServedBase;
use info::Snapshot;
use instance::ServedInstance;
use loading::Loading;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use workshop::Workshop;

/// The store and what is served from it. All methods that change something block (call them off the runtime) and
/// wait for each other; the others do not wait for them.
pub struct Catalog {
    base: ServedBase,
    /// The store's.
    directory: PathBuf,
    forms: Forms,
    workshop: Workshop,
    changing: Mutex<Changing>,
    served: Mutex<Arc<Snapshot>>,
    /// Told that loading begins (true) and that it is over (false).
    loading: OnceLock<fn(bool)>,
}

/// What only one action at a time may hold.
struct Changing {
    store: Store,
    current: ServedInstance,
    engine: Option<EngineHandle>,
}

/// Sees the store as a change will leave it, before that is committed.
type Accept<'a, E> = dyn FnMut(&mut Staged) -> Result<(), E> + 'a;

/// What an addition came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Added {
    pub variant: VariantInfo,
    /// What the store's files and the weights in memory grew by; less than 0 where a replacement is smaller.
    pub disk_bytes: i64,
    pub memory_bytes: i64,
}

/// Why an addition was not committed.
enum Stop {
    Error(Error),
    DryRun(Box<Added>),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Error(error)
    }
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Stop::Error(error.into())
    }
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
        progress: impl FnMut(AdditionProgress),
    ) -> Result<(Catalog, Generation), Error> {
        Catalog::open_watched(config, None, progress)
    }

    /// [`Catalog::open`], with every write operation of the store announced to `watch`.
    pub fn open_watched(
        config: CatalogConfig,
        watch: Option<DiskWatch>,
        mut progress: impl FnMut(AdditionProgress),
    ) -> Result<(Catalog, Generation), Error> {
        progress(AdditionProgress::at(AdditionStage::Reading));
        let copies = (!config.check_base).then_some(config.data_dir.as_path());
        let base = config.base.load(&config.place, copies)?;
        let mut store = open_store(&config, &base, watch)?;
        base.keep_copy(store.directory());
        // Generation 0 is a store to which nothing was ever committed: also one whose first start was cut off.
        if store.manifest().generation == 0 && matches!(config.base, BaseSource::Embedded) {
            progress(AdditionProgress::at(AdditionStage::Comparing));
            let variants = addition::shipped(&base, store.manifest().options)?;
            store.add_all(variants, None, &mut |stage| {
                progress(AdditionProgress::at(stage.into()))
            })?;
        }
        progress(AdditionProgress::at(AdditionStage::Publishing));
        let head_capacity = store.manifest().options.head_capacity;
        let forms = Forms::new(config.bank_form, config.head_form, head_capacity);
        let (generation, current) =
            instance::build(&store, &base, forms, &ServedInstance::default())?;
        let catalog = Catalog {
            directory: store.directory().to_owned(),
            forms,
            workshop: Workshop::new()?,
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

    /// A file without a name on the store's disk, for what is being uploaded: gone with its last handle, whatever ends the process.
    ///
    /// # Errors
    /// Where the disk is full, or the system has no more files to open.
    pub fn spool(&self) -> std::io::Result<File> {
        store::spool(&self.directory)
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

    /// Adds a variant, or puts it in the place of another, and publishes the generation with it. Additions are prepared one
    /// after the other, beside removals.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn add(
        &self,
        request: AddRequest,
        mut progress: impl FnMut(AdditionProgress) + Send,
    ) -> Result<Added, Error> {
        let _loading = Loading::begin(self.loading.get().copied());
        let mut tell = |stage| progress(AdditionProgress::at(stage));
        let (name, replaces) = (request.name.clone(), request.replaces);
        let (expected, dry_run) = (request.expected_generation, request.dry_run);
        let (least, text) = (request.min_share, request.check_text.clone());
        share::check(least, text.as_deref())?;
        let options = lock(&self.changing).store.manifest().options;
        let prepared = self
            .workshop
            .prepare(|| addition::prepare(&self.base, options, request, &mut tell))?;
        let (variant, fine_tune) = (prepared.variant, prepared.fine_tune);
        let mut changing = lock(&self.changing);
        let before = (disk_bytes(&changing.store), self.snapshot().bytes());
        let mut added = None;
        let check = |store: &mut Staged, generation: &Generation, served: &ServedInstance| {
            if let (Some(text), Some(fine_tune)) = (&text, &fine_tune) {
                let made = instance::measuring(store, &self.base, served, &name, fine_tune)?;
                store.measured(&name, share::measure(made, text)?);
            }
            let snapshot = Snapshot::of(store, generation);
            let unknown = || store::Error::UnknownVariant { name: name.clone() };
            let variant = snapshot.find(&name).cloned().ok_or_else(unknown)?;
            share::enforce(&name, least, variant.share.as_ref())?;
            let outcome = Added {
                variant,
                disk_bytes: difference(disk_bytes(store), before.0),
                memory_bytes: difference(snapshot.bytes(), before.1),
            };
            if dry_run {
                return Err(Stop::DryRun(Box::new(outcome)));
            }
            added = Some(outcome);
            Ok(())
        };
        let commit = |store: &mut Store, accept: &mut Accept<Stop>| {
            let progress = &mut |stage: store::CommitStage| tell(stage.into());
            match replaces {
                Some(digest) => store.replace_if(variant, digest, expected, progress, accept),
                None => store.add_if(vec![variant], expected, progress, accept),
            }
        };
        match self.change(&mut changing, commit, check) {
            Ok(_) => added.ok_or_else(|| store::Error::UnknownVariant { name }.into()),
            Err(Stop::DryRun(added)) => Ok(*added),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    /// Removes a variant, publishes the generation without it, and returns its number.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn remove(&self, name: &str, request: RemoveRequest) -> Result<u64, Error> {
        let _loading = Loading::begin(self.loading.get().copied());
        let read = |source: CheckpointSource| {
            self.workshop.prepare(|| {
                let beside = source.beside(Beside::default())?;
                let given = source.open(&self.base, &beside)?;
                given.delta(&self.base, &source.origin(), None)
            })
        };
        let given = request.delta.map(read).transpose()?;
        let mut changing = lock(&self.changing);
        let commit = |store: &mut Store, accept: &mut Accept<Error>| {
            let expected = request.expected_generation;
            store.remove_if(name, given, expected, &mut |_| {}, accept)
        };
        let commit = self.change(&mut changing, commit, |_, _, _| Ok(()))?;
        Ok(commit.generation)
    }

    /// Commits a change once its model instance is built and `check` has nothing against it, and publishes that.
    fn change<E: From<store::Error> + From<Error>>(
        &self,
        changing: &mut Changing,
        commit: impl FnOnce(&mut Store, &mut Accept<E>) -> Result<Commit, E>,
        check: impl FnOnce(&mut Staged, &Generation, &ServedInstance) -> Result<(), E>,
    ) -> Result<Commit, E> {
        let Changing {
            store,
            current,
            engine,
        } = changing;
        let (mut built, mut check) = (None, Some(check));
        let commit = commit(store, &mut |store| {
            let (generation, next) = instance::build(store, &self.base, self.forms, current)?;
            if let Some(check) = check.take() {
                check(store, &generation, &next)?;
            }
            let snapshot = Arc::new(Snapshot::of(store, &generation));
            built = Some((snapshot, generation, next));
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

    /// What the base is, in a line.
    pub fn describe_base(&self) -> String {
        self.base.describe()
    }

    /// Whether the store is one of the former format, in which all variants are superposed.
    pub fn is_former(&self) -> bool {
        lock(&self.changing).store.is_former()
    }

    /// All variants being served, by name.
    pub fn list(&self) -> Vec<VariantInfo> {
        self.snapshot().variants.clone()
    }

    pub fn get(&self, name: &str) -> Result<VariantInfo, Error> {
        let snapshot = self.snapshot();
        let unknown = || store::Error::UnknownVariant {
            name: store::shown(name),
        };
        Ok(snapshot.find(name).cloned().ok_or_else(unknown)?)
    }

    /// What is kept of a variant by itself; `None` of a superposed one.
    pub fn coded(&self, name: &str) -> Result<Option<CodedDelta>, Error> {
        Ok(lock(&self.changing).store.load_coded(name)?)
    }

    pub fn status(&self) -> StoreStatus {
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

/// Bytes of all files that a store's generation names.
fn disk_bytes(store: &Store) -> u64 {
    let manifest = store.manifest();
    let banks = manifest.banks.values().map(|bank| bank.file.bytes);
    let variants = manifest.variants.values().flat_map(|record| record.files());
    banks.sum::<u64>() + variants.map(|file| file.bytes).sum::<u64>()
}

fn difference(after: u64, before: u64) -> i64 {
    i64::try_from(i128::from(after) - i128::from(before)).unwrap_or(i64::MAX)
}

/// The store in the directory, or a new one there.
fn open_store(
    config: &CatalogConfig,
    base: &ServedBase,
    watch: Option<DiskWatch>,
) -> Result<Store, Error> {
    let dir = &config.data_dir;
    let usual = Options::default();
    if !Store::exists(dir) {
        let options = Options {
            bank_capacity: config.bank_capacity.unwrap_or(usual.bank_capacity),
            head_capacity: config.head_capacity.unwrap_or(usual.head_capacity),
            archive: config.archive,
            keep: config.keep.unwrap_or(usual.keep),
            bits: config.bits.unwrap_or(usual.bits),
        };
        check_free(dir)?;
        return Ok(Store::create_watched(
            dir,
            base.facts.clone(),
            options,
            watch,
        )?);
    }
    let store = Store::open_watched(dir, base.facts.clone(), watch)?;
    let made = store.manifest().options;
    unchanged("bank_capacity", config.bank_capacity, made.bank_capacity)?;
    unchanged("head_capacity", config.head_capacity, made.head_capacity)?;
    unchanged("keep", config.keep, made.keep)?;
    unchanged("bits", config.bits, made.bits)?;
    Ok(store)
}

/// A store keeps the options it was made with.
fn unchanged<T: PartialEq + std::fmt::Display>(
    field: &'static str,
    asked: Option<T>,
    made_with: T,
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
fn check_free(dir: &Path) -> Result<(), Error> {
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
