//! Everything that can go wrong between a request and its last event, as facts.

use std::time::Duration;

use crate::sampler;

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
    /// As many requests as may of what is capped wait or run already.
    #[error("{count} requests of {} wait or run and {limit} may", .capped)]
    TooMany {
        capped: Capped,
        count: usize,
        limit: usize,
        retry_after: Duration,
    },
    /// At the door: with what is ahead of it, the request would not be finished before its deadline.
    #[error(
        "it would take about {needed:?} with what is ahead of it, and its deadline is in {left:?}"
    )]
    Overloaded {
        needed: Duration,
        left: Duration,
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
    /// What is left to do takes longer than what is left of the time, even at the engine's best.
    #[error("the deadline is in {left:?} and what is left to do takes {needed:?} at best")]
    DeadlineOutOfReach { needed: Duration, left: Duration },
    /// The client did not read what was made for it.
    #[error("nothing was read for {waited:?}")]
    Stalled { waited: Duration },
    /// The client left.
    #[error("cancelled")]
    Cancelled,
    /// The network made of this request's tokens what is no distribution: of broken weights, or of a mix that adds up to such.
    #[error("request {request_id}: the logits are not finite numbers")]
    NotFinite { request_id: u64 },
    /// The network failed in the step this request took part in; the engine goes on. Or the device is lost, and the engine ends.
    #[error("request {request_id}: the device failed: {detail}")]
    Device { request_id: u64, detail: String },
}

impl Error {
    /// The refusal of a field.
    pub fn bad(field: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Error::BadField { field, reason }
    }
}

impl From<sampler::Error> for Error {
    fn from(error: sampler::Error) -> Self {
        Error::bad(error.field(), error.reason())
    }
}

/// Of what only so many requests may be in the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capped {
    Variant(String),
    Client,
}

impl std::fmt::Display for Capped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Capped::Variant(name) => write!(f, "variant {name:?}"),
            Capped::Client => f.write_str("this client"),
        }
    }
}
