//! The way in: a handle that any thread may hold, and the stream of events it returns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::admission::Admission;
use super::ledger::{LEAST_WEIGHT, MOST_WEIGHT, Service};
use super::materialised::Materialised;
use super::runner::Runner;
use super::stream::{EventStream, ROOM};
use super::{Error, Generation, Request, Score, ScoreRequest, check, threads};

/// More threads than any machine has processors.
const MOST_THREADS: usize = 1024;

/// Settings of one engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that share the steps at most.
    pub max_running: usize,
    /// Requests that wait at most; the next one is refused at once.
    pub queue: usize,
    /// Requests of one variant that wait or run at most.
    pub max_per_variant: Option<usize>,
    /// The same of one client.
    pub max_per_client: Option<usize>,
    /// Shares of variants by name, 0.001 to 1000; 1 for all others.
    pub weights: BTreeMap<String, f64>,
    /// Events that a request may be ahead of its reader, at least [`ROOM`](super::stream::ROOM): then it is paused.
    pub unread: usize,
    /// How long it may be.
    pub stall: Duration,
    /// Byte budget of the key-value cache.
    pub kv_bytes: usize,
    /// Positions in a page of the cache.
    pub page_tokens: usize,
    /// Tokens in one step at most.
    pub step_tokens: usize,
    /// Limit of a prompt, in tokens.
    pub max_prompt: usize,
    /// Limit of `Request::max_tokens`.
    pub max_tokens: usize,
    /// Keep what sequences leave in the cache for those that begin with the same text under the same weights.
    pub prefix_reuse: bool,
    /// Compute threads, 1024 at most; 0 means one for each processor.
    pub threads: usize,
    /// Keep each of them on a processor of its own.
    pub pinned: bool,
    /// Bytes of materialised variants at most. With 0 every variant is read from its bank, always.
    pub materialise_bytes: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_running: 32,
            queue: 64,
            max_per_variant: None,
            max_per_client: None,
            weights: BTreeMap::new(),
            unread: 16,
            stall: Duration::from_secs(60),
            kv_bytes: 64 << 20,
            page_tokens: 16,
            step_tokens: 512,
            max_prompt: 16_384,
            max_tokens: 16_384,
            prefix_reuse: true,
            threads: 0,
            pinned: false,
            materialise_bytes: 0,
        }
    }
}

/// What the engine is doing, at one moment between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub generation: u64,
    pub waiting: usize,
    pub queue_limit: usize,
    /// Those that wait for their readers are among them.
    pub running: usize,
    pub max_running: usize,
    /// Running sequences that wait for their readers.
    pub paused: usize,
    /// Streams of events that somebody still reads, or could.
    pub streams: usize,
    /// Model instances in memory: the one in force and those that requests still run on.
    pub generations: usize,
    /// Handles that keep those alive, besides the engine's own: one for each request.
    pub leases: usize,
    pub pages_used: usize,
    /// Pages that no sequence holds, kept for those that begin with the same text.
    pub pages_idle: usize,
    pub pages_total: usize,
    pub kv_bytes: u64,
    pub kv_on_device: bool,
    /// Bytes of materialised variants, on the device where the cache is.
    pub materialised_bytes: u64,
    /// Network evaluations since the start, all sequences of a step together counting once.
    pub steps: u64,
    pub tokens_generated: u64,
    pub finished: u64,
    /// Their clients left.
    pub cancelled: u64,
    /// Accepted, and given up since their deadlines passed or could not be met any more.
    pub late: u64,
    /// Given up since their clients did not read.
    pub stalled: u64,
    pub failed: u64,
    pub refused: Refused,
    /// By name, the base among them.
    pub variants: BTreeMap<String, VariantLoad>,
    /// Times that a running sequence had to give its pages up, and wait to go on.
    pub preempted: u64,
    /// Tokens of texts that were found in the cache instead of computed.
    pub tokens_reused: u64,
    pub draining: bool,
    /// What was said of the device's loss, after which the engine has ended.
    pub lost: Option<String>,
    /// Mean time of recent requests from leaving the queue to the end.
    pub typical_compute: Duration,
}

/// Requests that were turned away at the door, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// The queue was full.
    pub queue: u64,
    /// Their variant, or their client, had as many as it may have.
    pub variant: u64,
    pub client: u64,
    /// They could not have been finished before their deadlines.
    pub deadline: u64,
}

/// What one variant has and had of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VariantLoad {
    pub weight: f64,
    pub waiting: usize,
    pub running: usize,
    pub service: Service,
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Reserves the cache and starts the model thread.
    ///
    /// # Errors
    /// `BadField` for settings that leave no room for anything, `NotStarted` where the network gets no
    /// cache or the system gives no threads.
    pub fn start(config: EngineConfig, generation: Generation) -> Result<EngineHandle, Error> {
        let page_bytes = generation.denoiser.page_bytes(config.page_tokens);
        let limits = [
            ("max_running", config.max_running),
            ("queue", config.queue),
            ("page_tokens", config.page_tokens),
            ("step_tokens", config.step_tokens),
            ("max_prompt", config.max_prompt),
            ("max_tokens", config.max_tokens),
            ("kv_bytes", config.kv_bytes / page_bytes.max(1)),
        ];
        let caps = [
            ("max_per_variant", config.max_per_variant.unwrap_or(1)),
            ("max_per_client", config.max_per_client.unwrap_or(1)),
            ("unread", config.unread / ROOM),
            ("stall", config.stall.as_nanos().min(1) as usize),
        ];
        if let Some((field, _)) = limits.iter().chain(&caps).find(|(_, value)| *value == 0) {
            return Err(Error::BadField {
                field,
                reason: "it is too small for anything to run".into(),
            });
        }
        if config.threads > MOST_THREADS {
            let reason = format!("at most {MOST_THREADS} are of use");
            return Err(Error::BadField {
                field: "threads",
                reason,
            });
        }
        let smallest = generation.denoiser.bytes();
        if (1..smallest).contains(&config.materialise_bytes) {
            return Err(Error::BadField {
                field: "materialise_bytes",
                reason: format!("one materialised variant takes {smallest} bytes"),
            });
        }
        let odd = |(_, weight): &(&String, &f64)| !(LEAST_WEIGHT..=MOST_WEIGHT).contains(*weight);
        if let Some((name, weight)) = config.weights.iter().find(odd) {
            let reason = format!(
                "that of {name:?} is {weight}, not within {LEAST_WEIGHT} and {MOST_WEIGHT}"
            );
            return Err(Error::BadField {
                field: "weights",
                reason,
            });
        }
        let pages = config.kv_bytes / page_bytes;
        let not_started = |detail: String| Error::NotStarted { detail };
        let cache = (generation.denoiser.cache(config.page_tokens, pages))
            .map_err(|error| not_started(format!("no cache of {pages} pages: {error}")))?;
        let threads = threads::pool(config.threads, config.pinned)?;
        let (materialised, maker) = Materialised::new(config.materialise_bytes, config.step_tokens);
        if config.materialise_bytes > 0 {
            maker
                .start()
                .map_err(|error| not_started(error.to_string()))?;
        }
        let admission = Arc::new(Admission::new(config, &cache, generation, materialised));
        let runner = Runner::new(admission.clone(), &cache);
        let (running, ended) = watch::channel(());
        std::thread::Builder::new()
            .name("choir-engine".into())
            .spawn(move || {
                threads.install(|| runner.run(cache));
                drop(running); // which is what `drain` waits for
            })
            .map_err(|error| not_started(error.to_string()))?;
        Ok(EngineHandle {
            door: Arc::new(Door { admission, ended }),
        })
    }
}

/// The way in. Cheap to clone; when the last clone goes, the engine finishes what it has and ends.
#[derive(Clone)]
pub struct EngineHandle {
    door: Arc<Door>,
}

struct Door {
    admission: Arc<Admission>,
    ended: watch::Receiver<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.admission.close();
    }
}

impl EngineHandle {
    /// Checks a request and lets it wait, or says at once why not. Never blocks on the model.
    ///
    /// The request leases the generation in force now and runs on it to its end.
    pub fn submit(&self, request: Request) -> Result<EventStream, Error> {
        let admission = &self.door.admission;
        let (client, now) = (request.client.clone(), Instant::now());
        let (sequence, events) = check::text(admission, request)?;
        check::can_start(&sequence, admission.pages_total, now)?;
        let request_id = admission.wait(Box::new(sequence), client, now)?;
        Ok(EventStream::new(request_id, events, admission.clone()))
    }

    /// As [`submit`](Self::submit), for a likelihood. Dropping the receiver cancels the request; a receive error
    /// means that the engine stopped.
    pub fn score(&self, request: ScoreRequest) -> Result<ScoreReply, Error> {
        let admission = &self.door.admission;
        let (client, now) = (request.client.clone(), Instant::now());
        let (sequence, reply) = check::score(admission, request)?;
        check::can_start(&sequence, admission.pages_total, now)?;
        admission.wait(Box::new(sequence), client, now)?;
        Ok(reply)
    }

    /// Requests use `generation` from now on; those accepted before keep theirs. It must be of the same base.
    pub fn publish(&self, generation: Generation) {
        let before = self.door.admission.publish(Arc::new(generation));
        drop(before); // outside the lock: this may free a model instance
        self.door.admission.materialised.sweep();
    }

    pub fn status(&self) -> Status {
        self.door.admission.status()
    }

    /// The generation in force.
    pub fn generation(&self) -> Arc<Generation> {
        self.door.admission.generation()
    }

    pub fn config(&self) -> &EngineConfig {
        &self.door.admission.config
    }

    /// Takes nothing new, finishes what was accepted, and returns when the model thread has ended.
    pub async fn drain(&self) {
        self.door.admission.close();
        self.ended().await;
    }

    /// Returns when the model thread has ended: after a drain, or where it cannot go on.
    pub async fn ended(&self) {
        let mut ended = self.door.ended.clone();
        while ended.changed().await.is_ok() {} // nothing is ever sent: this waits for the sender's end
    }
}

/// A score, when it is done.
pub type ScoreReply = oneshot::Receiver<Result<Score, Error>>;
