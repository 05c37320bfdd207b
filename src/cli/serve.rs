//! `choir serve`: the wiring diagram.

use super::doors::DoorArgs;
use super::materialise::MaterialiseArgs;
use super::memory::{give_back_when_idle, loading, one_arena};
use super::place::PlaceArgs;
use crate::catalog::{BaseSource, Catalog, CatalogConfig};
use crate::checkpoint;
use crate::engine::{Engine, EngineConfig};
use crate::model::{Denoiser, PageLayout, Place};
use crate::ops::gpu::Dtype;
use crate::ops::quantized::Quantisation;
use crate::server::{Limits, Open};
use crate::store::Keep;
use crate::telemetry;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Serve a base and its variants over gRPC and HTTP.
///
/// Without arguments: the model compiled into this binary, its variants, and a store in the user's data directory.
/// SIGTERM or SIGINT finishes what was accepted and ends; a second one ends at once.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    materialise: MaterialiseArgs,
    /// How log lines are written.
    #[arg(long, value_enum, default_value_t, env = "CHOIR_LOG_FORMAT")]
    log_format: telemetry::Format,
    /// Seconds that requests under way may take to finish after SIGTERM; what still runs then ends with UNAVAILABLE.
    #[arg(long, default_value_t = Limits::default().drain.as_secs())]
    drain_seconds: u64,
    /// Text that one request may give, in bytes: prompt and suffix, template, messages, or what is scored [default: 8 for each
    /// token of --max-prompt, at most 1048576].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64 << 20))]
    max_prompt_bytes: Option<u32>,
    /// Room on the store's disk for uploads under way, in MiB; one client has half of it.
    #[arg(long, default_value_t = Limits::default().upload_bytes >> 20)]
    upload_mib: u64,
    /// Connections open at most [default: 4096, or what the limit of open files leaves].
    #[arg(long)]
    max_connections: Option<NonZeroUsize>,
    /// Seconds after which a connection takes no new calls, so that clients behind a balancer spread [default: never]. Calls
    /// under way have another minute.
    #[arg(long)]
    max_connection_age: Option<u64>,
    #[command(flatten)]
    doors: DoorArgs,
}

impl ServeArgs {
    fn limits(&self) -> Limits {
        let usual = |tokens: usize| tokens.saturating_mul(8).min(1 << 20);
        let mut limits = Limits {
            prompt_bytes: (self.max_prompt_bytes)
                .map_or(usual(self.engine.max_prompt), |bytes| bytes as usize),
            upload_bytes: self.upload_mib.saturating_mul(1 << 20),
            drain: Duration::from_secs(self.drain_seconds),
            connection_age: (self.max_connection_age)
                .map(|seconds| (Duration::from_secs(seconds), Duration::from_secs(60))),
            ..Limits::default()
        };
        if let Some(most) = self.max_connections {
            limits.connections.connections = most.get();
        }
        limits
    }
}

/// Which base, which store, and how they are kept in memory.
#[derive(Args, Debug)]
pub struct StoreArgs {
    /// Folder of the base: config.json, model.safetensors, tokenizer.json [default: the model compiled in].
    #[arg(long)]
    base: Option<PathBuf>,
    /// Directory of the store [default: choir/store in the user's data home].
    #[arg(long, env = "CHOIR_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Variants to a bank, when the store is made [default: 4].
    #[arg(long)]
    bank_capacity: Option<usize>,
    /// Variants to a bank of the output head, when the store is made [default: 1].
    #[arg(long)]
    head_capacity: Option<usize>,
    /// How banks are kept in memory: q2k, q4k, q4_0, q8_0, bf16 or f32. On a device the first three are one form of 4.6 bits, and
    /// the others mean the base's.
    #[arg(long, default_value = "q2k")]
    bank_form: Quantisation,
    /// The same for the output head's banks [default: q2k where the store has one variant to a bank of the head, else as
    /// --bank-form].
    #[arg(long)]
    head_form: Option<Quantisation>,
    /// How variants are kept whose addition does not say, when the store is made: coded or superposed.
    #[arg(long)]
    keep: Option<Keep>,
    /// Bits for each parameter of a variant that is kept by itself and whose addition does not say, when the store is made.
    #[arg(long)]
    bits: Option<f32>,
    /// Read the base's files whole, also where the store has a copy of the base as it is served. Otherwise that is trusted while the
    /// files' sizes, times and headers are those it was made of
    #[arg(long)]
    check_base: bool,
    /// When the store is made: keep no delta of superposed variants, so that removing one needs its checkpoint again.
    #[arg(long)]
    no_archive: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// How much of the machine the engine may take.
#[derive(Args, Debug)]
pub struct EngineArgs {
    /// Compute threads [default: one for each processor].
    #[arg(long)]
    threads: Option<usize>,
    /// Keep every compute thread on a processor of its own: for a machine, or a part of one, that does nothing else.
    #[arg(long)]
    pin_threads: bool,
    /// Sequences that share the steps at most.
    #[arg(long, default_value_t = EngineConfig::default().max_running)]
    max_running: usize,
    /// Requests that wait at most; the next one is refused with a time to come back.
    #[arg(long, default_value_t = EngineConfig::default().queue)]
    queue: usize,
    /// Requests of one variant that wait or run at most; the next one is refused with a time to come back [default: any number].
    #[arg(long)]
    max_per_variant: Option<usize>,
    /// Requests of one client that wait or run at most [default: any number].
    #[arg(long)]
    max_per_client: Option<usize>,
    /// Shares of variants where there is not enough for all, as in kjv=2,base=0.5 [default: 1 each].
    #[arg(long, value_delimiter = ',', value_name = "NAME=WEIGHT")]
    weights: Vec<VariantWeight>,
    /// Seconds that a client may leave its text unread before it loses it. Meanwhile its request is paused.
    #[arg(long, default_value_t = EngineConfig::default().stall.as_secs())]
    stall_seconds: u64,
    /// Memory of the key-value cache, in MiB [default: room for sixteen texts of the network's context, of 4096 tokens at most, within a
    /// quarter of the memory that is left; at least, and on a device, 64].
    #[arg(long, value_parser = mebibytes)]
    kv_mib: Option<usize>,
    /// The type of the keys and values in it, on the host: bf16 takes half the memory of f32 and rounds them. On a device it is the base's
    /// [default: f32].
    #[arg(long, value_enum)]
    kv_type: Option<KvType>,
    /// Tokens in one step at most.
    #[arg(long, default_value_t = EngineConfig::default().step_tokens)]
    step_tokens: usize,
    /// Longest prompt, in tokens.
    #[arg(long, default_value_t = EngineConfig::default().max_prompt)]
    max_prompt: usize,
    /// Most tokens that one request may ask for.
    #[arg(long, default_value_t = EngineConfig::default().max_tokens)]
    max_tokens: usize,
    /// Evaluations of the network that one request may ask for: of a score, its blocks times its samples.
    #[arg(long, default_value_t = EngineConfig::default().max_evaluations)]
    max_evaluations: u32,
    /// Variants in one mix at most.
    #[arg(long, default_value_t = EngineConfig::default().max_parts)]
    max_parts: usize,
    /// Compute every text from its beginning, also where the cache still has it from another request.
    #[arg(long)]
    no_prefix_reuse: bool,
}

/// [`Dtype`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum KvType {
    F32,
    Bf16,
}

/// So many that their bytes can be counted.
fn mebibytes(text: &str) -> Result<usize, String> {
    let mib = text.parse::<usize>().map_err(|error| error.to_string())?;
    let bytes = mib.checked_mul(1 << 20);
    bytes
        .map(|_| mib)
        .ok_or_else(|| "that is more than there can be".to_owned())
}

/// `NAME=WEIGHT`; the engine knows the bounds.
#[derive(Clone, Debug)]
struct VariantWeight {
    name: String,
    weight: f64,
}

impl std::str::FromStr for VariantWeight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, weight) = text
            .split_once('=')
            .ok_or("it is NAME=WEIGHT, as in kjv=2")?;
        let weight = weight
            .parse()
            .map_err(|_| format!("{weight:?} is no number"))?;
        let name = name.to_owned();
        Ok(VariantWeight { name, weight })
    }
}

impl StoreArgs {
    /// The directory named, if any.
    pub fn data_dir(&self) -> Option<&PathBuf> {
        self.data_dir.as_ref()
    }

    /// The base's folder; the model compiled in where there is none.
    pub fn base(&self) -> Option<&PathBuf> {
        self.base.as_ref()
    }

    /// Opens the device, too.
    pub fn config(&self) -> Result<CatalogConfig> {
        let base = self
            .base
            .clone()
            .map_or(BaseSource::Embedded, BaseSource::Folder);
        let usual = || Ok(base.architecture()?.usual_form(checkpoint::available()));
        let place = self.place.open(usual)?;
        Ok(CatalogConfig {
            data_dir: self.data_dir.clone().map_or_else(default_data_dir, Ok)?,
            base,
            bank_capacity: self.bank_capacity,
            head_capacity: self.head_capacity,
            place,
            bank_form: self.bank_form,
            head_form: self.head_form,
            archive: !self.no_archive,
            keep: self.keep,
            bits: self.bits,
            check_base: self.check_base,
        })
    }
}

impl EngineArgs {
    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            max_running: self.max_running,
            queue: self.queue,
            max_per_variant: self.max_per_variant,
            max_per_client: self.max_per_client,
            weights: self
                .weights
                .iter()
                .map(|part| (part.name.clone(), part.weight))
                .collect(),
            stall: Duration::from_secs(self.stall_seconds),
            kv_bytes: match self.kv_mib {
                Some(mib) => mib.saturating_mul(1 << 20),
                None => EngineConfig::default().kv_bytes,
            },
            kv_type: match self.kv_type {
                None | Some(KvType::F32) => Dtype::F32,
                Some(KvType::Bf16) => Dtype::Bf16,
            },
            step_tokens: self.step_tokens,
            max_prompt: self.max_prompt,
            max_tokens: self.max_tokens,
            max_evaluations: self.max_evaluations,
            max_parts: self.max_parts,
            prefix_reuse: !self.no_prefix_reuse,
            threads: self.threads.unwrap_or(0),
            pinned: self.pin_threads,
            ..EngineConfig::default()
        }
    }
}

/// Texts that the usual cache has room for, and the most tokens of each.
const TEXTS: usize = 16;
const TEXT_TOKENS: usize = 4096;

/// Bytes of the cache where nobody says them, with so much memory left.
fn usual_cache(network: &dyn Denoiser, page: PageLayout, memory: Option<u64>) -> usize {
    let tokens = TEXTS * network.facts().context.min(TEXT_TOKENS);
    let wanted = tokens.div_ceil(page.tokens) * network.page_bytes(page);
    let most = memory.map_or(usize::MAX, |memory| (memory / 4) as usize);
    wanted.min(most).max(EngineConfig::default().kv_bytes)
}

/// `$XDG_DATA_HOME/choir/store`, or the same under `~/.local/share`.
pub fn default_data_dir() -> Result<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let home = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    match home {
        Some(home) => Ok(home.join("choir").join("store")),
        None => bail!("there is no home directory to keep the store in; give --data-dir"),
    }
}

pub fn run(args: ServeArgs) -> Result<()> {
    one_arena();
    telemetry::init(args.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    // Listen first: a taken port is a mistake to hear of before the model is loaded.
    let (doors, mut settings) = runtime.block_on(args.doors.open())?;
    settings.limits = args.limits();
    let tls = settings.tls.is_some();
    let at = doors.to_string();
    let open = {
        let _within = runtime.enter();
        Open::new(doors, settings)
    };
    let config = args.store.config()?;
    if let (Some(_), Place::Device(_)) = (args.engine.kv_type, &config.place) {
        bail!("--kv-type is for the host: on a device the cache has the base's type");
    }
    let engine_config = EngineConfig {
        materialise_bytes: args.materialise.bytes(match config.place {
            Place::Host(form) => Some(form),
            Place::Device(_) => None,
        })?,
        ..args.engine.config()
    };
    let (data_dir, place) = (config.data_dir.clone(), config.place.clone());
    let mut stage = None;
    loading(true);
    let (catalog, generation) = Catalog::open(config, |progress| {
        if stage.replace(progress.stage) != Some(progress.stage) {
            tracing::debug!(stage = ?progress.stage, "opening the store");
        }
    })?;
    loading(false);
    catalog.watch_loading(loading);
    let catalog = Arc::new(catalog);
    let engine_config = EngineConfig {
        kv_bytes: match (args.engine.kv_mib, &place) {
            (None, Place::Host(_)) => usual_cache(
                &*generation.denoiser,
                engine_config.page(),
                checkpoint::available(),
            ),
            _ => engine_config.kv_bytes,
        },
        ..engine_config
    };
    let engine = Engine::start(engine_config, generation)?;
    catalog.attach(engine.clone());
    if catalog.is_former() {
        tracing::info!(
            "the store is of an earlier format: its variants are superposed; `choir store convert` codes them from their archives"
        );
    }
    // Before the line that others wait for: who reads it may ask, and may end this.
    let (mut terminate, mut interrupt) = {
        let _within = runtime.enter();
        open.stand(catalog.clone(), &engine)?;
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    let status = catalog.status();
    let bytes: u64 = status.memory.iter().map(|part| part.bytes).sum();
    println!(
        "choir {} serves the base and {} variants in {} banks ({:.1} MiB of weights{}, generation {}) from {} on {}{}",
        env!("CARGO_PKG_VERSION"),
        status.variants,
        status.banks,
        bytes as f64 / f64::from(1 << 20),
        match place {
            Place::Host(_) => String::new(),
            Place::Device(_) => format!(" on {place}"),
        },
        status.generation,
        data_dir.display(),
        at,
        if tls { ", with TLS" } else { "" },
    );
    tracing::info!("the base: {}", catalog.describe_base());
    let served = runtime.block_on(async {
        tokio::spawn(give_back_when_idle(engine.clone()));
        let asked = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tokio::spawn(async move {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                tracing::warn!("asked twice: ending at once");
                std::process::exit(1);
            });
        };
        open.serve(engine, asked).await.context("serving")
    });
    // A thread that waits for a disk must not keep the process; the store stays whole whenever it ends.
    runtime.shutdown_background();
    served
}
