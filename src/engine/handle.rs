//! The way in: a handle that any thread may hold.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use super::config::EngineConfig;
use super::error::Error;
use super::generation::{Generation, Resolved, Target};
use super::materialised::Materialised;
use super::request::{Priority, Request, Score, ScoreRequest};
use super::runner::Runner;
use super::sequence::Sequence;
use super::shared::Shared;
use super::status::EngineStatus;
use super::stream::EventStream;
use super::turns::{Place, TooManyWait, Turns};
use super::work::ModelJob;
use super::{prepare, threads};

/// Requests with little text that are prepared at once.
const PREPARED: usize = 16;
/// The same of those with much, at most: each takes a processor for a while.
const LONG: usize = 8;
/// Bytes of text from which on a request has much.
pub const LONG_TEXT: usize = 4096;

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Reserves the cache and starts the model thread.
    ///
    /// # Errors
    /// `BadField` for settings that leave no room for anything, `NotStarted` where the network gets no
    /// cache or the system gives no threads.
    pub fn start(config: EngineConfig, generation: Generation) -> Result<EngineHandle, Error> {
        let denoiser = &generation.denoiser;
        let page_bytes = denoiser.page_bytes(config.page());
        config.check(page_bytes, denoiser.bytes())?;
        let pages = config.kv_bytes / page_bytes;
        let not_started = |detail: String| Error::NotStarted { detail };
        let cache = (denoiser.cache(config.page(), pages))
            .map_err(|error| not_started(format!("no cache of {pages} pages: {error}")))?;
        let threads = threads::pool(config.threads, config.pinned)?;
        let materialised = Materialised::start(config.materialise_bytes)
            .map_err(|error| not_started(error.to_string()))?;
        let preparing = Preparing::new(config.queue);
        let shared = Arc::new(Shared::new(config, &cache, generation));
        let runner = Runner::new(shared.clone(), &cache, materialised);
        let (running, ended) = watch::channel(());
        std::thread::Builder::new()
            .name("choir-engine".into())
            .spawn(move || {
                threads.install(|| runner.run(cache));
                drop(running); // which is what `drain` waits for
            })
            .map_err(|error| not_started(error.to_string()))?;
        let inner = Inner {
            shared,
            preparing,
            ended,
        };
        Ok(EngineHandle(Arc::new(inner)))
    }
}

/// The way in. Cheap to clone; when the last clone goes, the engine finishes what it has and ends.
#[derive(Clone)]
pub struct EngineHandle(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    preparing: Preparing,
    ended: watch::Receiver<()>,
}

/// Two lanes, so that requests with much text are never before those with little.
struct Preparing {
    short: Turns,
    long: Turns,
}

impl Preparing {
    /// Half the processors are for other things than long texts. `queue`: how many may wait for a place.
    fn new(queue: usize) -> Preparing {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Preparing {
            short: Turns::new(PREPARED, queue),
            long: Turns::new((processors / 2).clamp(1, LONG), queue),
        }
    }
}

/// A place to be prepared in: whoever has one may resolve names and make tokens of text. There are few, so that what is done for
/// requests that were not accepted yet is bounded. It may be held by a thread that prepares and outlive the call.
pub struct Preparation {
    _place: Place,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl EngineHandle {
    /// Waits for a place to be prepared in, for a client's request with so many bytes of text. Clients take turns.
    ///
    /// # Errors
    /// `QueueFull` where as many as may wait for the engine wait for a place already; `Draining`, `Stopped`.
    pub async fn prepare(
        &self,
        client: Option<&Arc<str>>,
        bytes: usize,
    ) -> Result<Preparation, Error> {
        let (shared, preparing) = (&self.0.shared, &self.0.preparing);
        if let Some(error) = shared.door().closed() {
            return Err(error.clone());
        }
        let lane = match bytes > LONG_TEXT {
            true => &preparing.long,
            false => &preparing.short,
        };
        let place = lane.place(client).await;
        Ok(Preparation {
            _place: place.map_err(|TooManyWait| shared.door().crowded())?,
        })
    }

    /// Says whether a request that means this could wait now, before anything is done for it.
    ///
    /// # Errors
    /// `QueueFull`, `TooMany`, `Draining`, `Stopped`, as [`submit`](Self::submit)'s.
    pub fn has_room(
        &self,
        resolved: &Resolved,
        priority: Priority,
        client: Option<&Arc<str>>,
    ) -> Result<(), Error> {
        let mut door = self.0.shared.door();
        let payer = door.ledger.payer(resolved.payer());
        let tenant = prepare::tenant(payer, priority, 1, resolved);
        let gone = door.clear();
        let room = door.room(&tenant, client);
        drop(door); // what is let go of here may be a generation's last lease
        drop(gone);
        room.map(drop)
    }

    /// What these names and weights mean now; the answer leases the generation in force.
    ///
    /// # Errors
    /// `UnknownVariant`, `BadField`.
    pub fn resolve(&self, mix: Vec<(String, f32)>) -> Result<Resolved, Error> {
        let shared = &self.0.shared;
        Resolved::new(shared.generation(), mix, shared.config.max_parts)
    }

    fn resolved(&self, target: Target) -> Result<Resolved, Error> {
        match target {
            Target::Named(mix) => self.resolve(mix),
            Target::Resolved(resolved) => Ok(resolved),
        }
    }

    /// Checks a request and lets it wait, or says at once why not. Never blocks on the model.
    ///
    /// The request leases the generation that its names were resolved in, and runs on it to its end.
    pub fn submit(&self, mut request: Request) -> Result<EventStream, Error> {
        let (shared, now) = (&self.0.shared, Instant::now());
        let resolved = self.resolved(std::mem::take(&mut request.mix))?;
        let payer = shared.door().ledger.payer(resolved.payer());
        let (sequence, events) = prepare::text(&shared.config, payer, resolved, request, now)?;
        let request_id = self.enter(sequence, now)?;
        Ok(EventStream::new(request_id, events, shared.wake.clone()))
    }

    /// As [`submit`](Self::submit), for a likelihood. Dropping the reply cancels the request.
    pub fn score(&self, mut request: ScoreRequest) -> Result<ScoreReply, Error> {
        let (shared, now) = (&self.0.shared, Instant::now());
        let resolved = self.resolved(std::mem::take(&mut request.mix))?;
        let payer = shared.door().ledger.payer(resolved.payer());
        let (sequence, reply) = prepare::score(&shared.config, payer, resolved, request, now)?;
        self.enter(sequence, now)?;
        Ok(reply)
    }

    fn enter(&self, sequence: Sequence<ModelJob>, now: Instant) -> Result<u64, Error> {
        let shared = &self.0.shared;
        prepare::can_start(&sequence, shared.pages_total, now)?;
        // What is let go of here may be a generation's last lease, so it goes outside the lock.
        let (entered, gone) = shared.door().enter(Box::new(sequence), now);
        drop(gone);
        let entered = entered.map_err(|(_, error)| error)?;
        if let Some((mut displaced, error)) = entered.displaced {
            displaced.job.fail(error);
        }
        shared.wake.call();
        Ok(entered.id)
    }

    /// Requests use `generation` from now on; those accepted before keep theirs. It must be of the same base.
    pub fn publish(&self, generation: Generation) {
        let before = self.0.shared.publish(Arc::new(generation));
        drop(before); // outside the lock: this may free a model instance
        self.0.shared.wake.call();
    }

    /// A snapshot. Waits for nobody.
    pub fn status(&self) -> EngineStatus {
        self.0.shared.status()
    }

    /// The generation in force.
    pub fn generation(&self) -> Arc<Generation> {
        self.0.shared.generation()
    }

    pub fn config(&self) -> &EngineConfig {
        &self.0.shared.config
    }

    /// Takes nothing new, finishes what was accepted, and returns when the model thread has ended.
    pub async fn drain(&self) {
        self.0.shared.close();
        self.ended().await;
    }

    /// Returns when the model thread has ended: after a drain, or where it cannot go on.
    pub async fn ended(&self) {
        let mut ended = self.0.ended.clone();
        while ended.changed().await.is_ok() {} // nothing is ever sent: this waits for the sender's end
    }
}

/// A score, when it is done; a receive error means that the engine stopped.
pub type ScoreReply = oneshot::Receiver<Result<Score, Error>>;
