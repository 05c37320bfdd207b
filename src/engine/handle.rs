//! The way in: a handle that any thread may hold, and the stream of events it returns.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Error, Event, Generation, Request, Score, ScoreRequest};

/// Settings of one engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that share the steps at most.
    pub max_running: usize,
    /// Requests that wait at most; the next one is refused at once.
    pub queue: usize,
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
    /// Compute threads; 0 means one for each processor.
    pub threads: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_running: 32,
            queue: 64,
            kv_bytes: 64 << 20,
            page_tokens: 16,
            step_tokens: 512,
            max_prompt: 16_384,
            max_tokens: 16_384,
            threads: 0,
        }
    }
}

/// What the engine is doing, at one moment between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub generation: u64,
    pub waiting: usize,
    pub queue_limit: usize,
    pub running: usize,
    pub max_running: usize,
    pub pages_used: usize,
    pub pages_total: usize,
    pub kv_bytes: u64,
    /// Network evaluations since the start, all sequences of a step together counting once.
    pub steps: u64,
    pub tokens_generated: u64,
    pub finished: u64,
    pub cancelled: u64,
    pub failed: u64,
    pub draining: bool,
    /// Mean time of recent requests from leaving the queue to the end.
    pub typical_compute: Duration,
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Reserves the cache and starts the model thread.
    pub fn start(config: EngineConfig, generation: Generation) -> Result<EngineHandle, Error> {
        let _ = (config, generation);
        Err(Error::Stopped)
    }
}

/// The way in. Cheap to clone; when the last clone goes, the engine drains and ends.
#[derive(Clone)]
pub struct EngineHandle {}

impl EngineHandle {
    /// Checks a request and lets it wait, or says at once why not. Never blocks on the model.
    ///
    /// The request leases the generation in force now and runs on it to its end.
    pub fn submit(&self, _request: Request) -> Result<EventStream, Error> {
        Err(Error::Stopped)
    }

    /// As [`submit`](Self::submit), for a likelihood.
    pub fn score(&self, _request: ScoreRequest) -> Result<oneshot::Receiver<Result<Score, Error>>, Error> {
        Err(Error::Stopped)
    }

    /// New requests use `generation` from now on.
    pub fn publish(&self, _generation: Generation) {}

    pub fn status(&self) -> Status {
        Status::default()
    }

    /// The generation in force.
    pub fn generation(&self) -> Option<Arc<Generation>> {
        None
    }

    /// Takes nothing new, finishes what was accepted, and returns when the model thread has ended.
    pub async fn drain(&self) {}
}

/// A request's events. Dropping it cancels the request.
///
/// The channel holds as many events as its request can produce at most (that is known when it is accepted), so
/// a slow client neither blocks the engine nor loses events, and no client holds more than it asked for.
#[derive(Debug)]
pub struct EventStream {
    request_id: u64,
    events: mpsc::Receiver<Event>,
}

impl EventStream {
    pub fn request_id(&self) -> u64 {
        self.request_id
    }

    /// The next event; `None` after the last one.
    pub async fn recv(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// As [`recv`](Self::recv), for threads outside a runtime.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

impl tokio_stream::Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }
}
