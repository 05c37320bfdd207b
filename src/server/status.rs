//! The one table from what went wrong to what a client is told.

use super::access::Overspent;
use super::requests::Refusal;
use crate::model::tokenizer::ChatError;
use crate::superposition::DeltaError;
use crate::{catalog, engine, store};
use std::io::ErrorKind;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Metadata of RESOURCE_EXHAUSTED: milliseconds after which another try may succeed.
pub const RETRY_AFTER: &str = "retry-after-ms";

/// How long an addition takes, as a rule.
const BUSY: Duration = Duration::from_secs(10);

/// Bytes of a message to a client, at most.
const LONGEST: usize = 512;

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
        Status::invalid_argument(told(&error))
    }
}

/// What a client is told of an error: it may hold a name or a path of any length, and travels in a header.
fn told(error: &dyn std::error::Error) -> String {
    short(error.to_string())
}

/// The beginning of a message, which may repeat what was sent.
pub fn short(mut message: String) -> String {
    if message.len() > LONGEST {
        message.truncate(message.floor_char_boundary(LONGEST));
        message.push('…');
    }
    message
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Field(error) => error.into(),
            Refusal::Engine(error) => error.into(),
            Refusal::Chat(ChatError::NoTemplate | ChatError::Template(_) | ChatError::Endless) => {
                Status::failed_precondition(told(&refusal))
            }
            Refusal::Chat(_) => Status::invalid_argument(told(&refusal)),
            Refusal::Overspent(error) => {
                let retry_after = match error {
                    // Whenever another of the key's requests ends.
                    Overspent::Requests { .. } => Some(Duration::from_secs(1)),
                    Overspent::Tokens { retry_after, .. } => Some(retry_after),
                    Overspent::Never { .. } => None,
                };
                exhausted(told(&error), retry_after)
            }
        }
    }
}

impl From<engine::Error> for Status {
    fn from(error: engine::Error) -> Self {
        use engine::Error::*;
        let message = told(&error);
        match error {
            UnknownVariant { .. } => Status::not_found(message),
            BadField { field, reason } => self::BadField { field, reason }.into(),
            PromptTooLong { .. } => self::BadField::new("prompt", message).into(),
            // Overloaded: not DEADLINE_EXCEEDED, which would say that time was spent on it; coming back later, or going
            // elsewhere, is what helps.
            QueueFull { retry_after, .. }
            | TooMany { retry_after, .. }
            | Overloaded { retry_after, .. } => exhausted(message, Some(retry_after)),
            // Coming back later does not help, so no time is given.
            OutOfPages { .. } | Stalled { .. } => exhausted(message, None),
            Draining | NotStarted { .. } | Stopped => Status::unavailable(message),
            DeadlinePassed { .. } | DeadlineOutOfReach { .. } => Status::deadline_exceeded(message),
            Cancelled => Status::cancelled(message),
            NotFinite { .. } => Status::internal(message),
            Device { request_id, detail } => {
                tracing::error!(request_id, "the device failed: {detail}");
                Status::internal(format!(
                    "request {request_id} failed; the server's log has the details"
                ))
            }
        }
    }
}

/// RESOURCE_EXHAUSTED, with the time to wait where waiting helps.
pub fn exhausted(message: impl Into<String>, retry_after: Option<Duration>) -> Status {
    let mut status = Status::new(Code::ResourceExhausted, message);
    if let Some(after) = retry_after {
        status.metadata_mut().insert(
            RETRY_AFTER,
            MetadataValue::from(after.as_millis().max(1) as u64),
        );
    }
    status
}

impl From<store::Error> for Status {
    fn from(error: store::Error) -> Self {
        use store::Error::*;
        let message = told(&error);
        match error {
            UnknownVariant { .. } => Status::not_found(message),
            NameTaken { .. } => Status::already_exists(message),
            // Only an addition brings a name or a scale of its own.
            BadName { .. } => BadField::new("header.name", message).into(),
            BadScale { .. } => BadField::new("header.scale", message).into(),
            BadOption { .. } => Status::invalid_argument(message),
            GenerationMoved { .. } | DeltaMoved { .. } => Status::aborted(message),
            OtherBase { .. }
            | OtherTokenizer { .. }
            | OtherTransform { .. }
            | DeltaNeeded { .. }
            | OtherDelta { .. }
            | Overflow { .. }
            | Mismatch(_) => Status::failed_precondition(message),
            Corrupt { .. } => {
                tracing::error!("{message}");
                Status::data_loss(message)
            }
            Io { source, .. }
                if matches!(
                    source.kind(),
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded
                ) =>
            {
                tracing::error!("{message}");
                exhausted(message, None)
            }
            Io { .. }
            | NotAStore { .. }
            | Exists { .. }
            | Locked { .. }
            | Format { .. }
            | UnknownBank { .. } => {
                tracing::error!("{message}");
                Status::internal(message)
            }
        }
    }
}

impl From<catalog::Error> for Status {
    fn from(error: catalog::Error) -> Self {
        use catalog::Error::*;
        let message = told(&error);
        match error {
            Store(error) => error.into(),
            Checkpoint {
                source: DeltaError::Mismatch(_),
                ..
            }
            | OtherConfig { .. }
            | OtherTokenizer { .. } => Status::failed_precondition(message),
            Checkpoint {
                source:
                    DeltaError::Unreadable(_)
                    | DeltaError::Version { .. }
                    | DeltaError::Rate(_)
                    | DeltaError::TooFewBits(_),
                ..
            } => Status::invalid_argument(message),
            Checkpoint {
                source: DeltaError::Damaged,
                ..
            } => Status::data_loss(message),
            BadField { .. } => Status::invalid_argument(format!("header.{message}")),
            ShareBelow { .. } => Status::failed_precondition(message),
            Busy { .. } => exhausted(message, Some(BUSY)),
            NoMemory { .. } => {
                tracing::error!("{message}");
                exhausted(message, None)
            }
            Base { .. }
            | DataDir { .. }
            | NotStarted { .. }
            | Unmeasured { .. }
            | Unserved { .. } => {
                tracing::error!("{message}");
                Status::internal(message)
            }
        }
    }
}

/// What a client is told of a change whose checkpoint it gave in `field`.
pub fn of_change(error: catalog::Error, field: &'static str) -> Status {
    match error {
        catalog::Error::Checkpoint {
            source: DeltaError::Unreadable(_),
            ..
        } => BadField::new(field, error.to_string()).into(),
        catalog::Error::Checkpoint {
            source: DeltaError::Damaged,
            ..
        } => Status::data_loss(told(&BadField::new(field, error.to_string()))),
        error => error.into(),
    }
}
