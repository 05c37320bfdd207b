//! Everything that can go wrong between a request and its last event, as facts.

use std::time::Duration;

/// Why the engine refused or gave up a request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The generation in force serves no such variant. The base never stands in for it.
    #[error("no variant is named {name:?}")]
    UnknownVariant { name: String },
    /// A field of the request is outside its range.
    #[error("{field}: {reason}")]
    BadField { field: &'static str, reason: String },
    #[error("the prompt has {tokens} tokens and at most {limit} are allowed")]
    PromptTooLong { tokens: usize, limit: usize },
    /// The waiting queue is full; `retry_after` is an estimate from recent requests.
    #[error("{waiting} requests are waiting and {limit} may")]
    QueueFull {
        waiting: usize,
        limit: usize,
        retry_after: Duration,
    },
    /// The request could never run: it may need more pages than the whole cache has.
    #[error("the request may need {needed} cache pages and there are {total}")]
    OutOfPages { needed: usize, total: usize },
    /// The engine finishes what it has and takes nothing new.
    #[error("the engine is draining")]
    Draining,
    /// The cache could not be reserved, or the model thread not be started.
    #[error("the engine could not be started: {detail}")]
    NotStarted { detail: String },
    /// The engine's thread is gone; nothing was computed for this request.
    #[error("the engine has stopped")]
    Stopped,
    /// The request's deadline passed before it was finished.
    #[error("the deadline passed after {waited:?}")]
    DeadlinePassed { waited: Duration },
    /// The client left.
    #[error("cancelled")]
    Cancelled,
    /// The network failed in the step this request took part in; the engine goes on. Or the device is lost, and the engine ends.
    #[error("request {request_id}: the device failed: {detail}")]
    Device { request_id: u64, detail: String },
}
