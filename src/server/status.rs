//! The one table from what went wrong to what a client is told.

use crate::{catalog, engine};
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Metadata of RESOURCE_EXHAUSTED: milliseconds after which another try may succeed.
pub const RETRY_AFTER: &str = "retry-after-ms";

/// A field of a message that has no meaning, by its name in the proto.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct BadField {
    pub field: &'static str,
    pub reason: String,
}

impl BadField {
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        BadField {
            field,
            reason: reason.into(),
        }
    }
}

impl From<BadField> for Status {
    fn from(error: BadField) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

impl From<engine::Error> for Status {
    fn from(error: engine::Error) -> Self {
        use engine::Error::*;
        let message = error.to_string();
        match error {
            UnknownVariant { .. } => Status::not_found(message),
            BadField { .. } => Status::invalid_argument(message),
            PromptTooLong { .. } => Status::invalid_argument(format!("prompt: {message}")),
            QueueFull { retry_after, .. } => exhausted(message, Some(retry_after)),
            // Coming back later does not help, so no time is given.
            OutOfPages { .. } => exhausted(message, None),
            Draining | NotStarted { .. } | Stopped => Status::unavailable(message),
            DeadlinePassed { .. } => Status::deadline_exceeded(message),
            Cancelled => Status::cancelled(message),
            Device { request_id, .. } => {
                tracing::error!(request_id, "{message}");
                Status::internal(format!("request {request_id} failed; the server's log has the details"))
            }
        }
    }
}

/// RESOURCE_EXHAUSTED, with the time to wait where waiting helps.
pub fn exhausted(message: impl Into<String>, retry_after: Option<Duration>) -> Status {
    let mut status = Status::new(Code::ResourceExhausted, message);
    if let Some(after) = retry_after {
        status
            .metadata_mut()
            .insert(RETRY_AFTER, MetadataValue::from(after.as_millis().max(1) as u64));
    }
    status
}

impl From<catalog::Error> for Status {
    fn from(error: catalog::Error) -> Self {
        use catalog::Error::*;
        let message = error.to_string();
        match error {
            UnknownVariant { .. } => Status::not_found(message),
            NameTaken { .. } => Status::already_exists(message),
            BadName { .. } => Status::invalid_argument(format!("name: {message}")),
            BadField { .. } => Status::invalid_argument(message),
            Mismatch { .. } => Status::failed_precondition(message),
            BadCheckpoint { .. } | Read { .. } => Status::invalid_argument(format!("source: {message}")),
            GenerationMoved { .. } => Status::aborted(message),
            NotArchived { .. } => Status::failed_precondition(message),
            Base { .. } | NotAttached => {
                tracing::error!("{message}");
                Status::internal(message)
            }
        }
    }
}
