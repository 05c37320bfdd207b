//! Why an operator's action was refused; nothing has changed then.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no variant is named {name:?}")]
    UnknownVariant { name: String },
    #[error("a variant is named {name:?} already")]
    NameTaken { name: String },
    /// Names are 1 to 64 of `a-z 0-9 -` and begin with a letter or digit.
    #[error("{name:?} is no name for a variant: {reason}")]
    BadName { name: String, reason: &'static str },
    #[error("{field}: {reason}")]
    BadField { field: &'static str, reason: String },
    /// The checkpoint does not fit the base; `tensor` is the first offender.
    #[error("the checkpoint does not match the base: {tensor}: {reason}")]
    Mismatch { tensor: String, reason: String },
    /// The checkpoint is not a safetensors file.
    #[error("the checkpoint cannot be read: {reason}")]
    BadCheckpoint { reason: String },
    #[error("the store is at generation {found}, not {expected}")]
    GenerationMoved { expected: u64, found: u64 },
    /// The store keeps no delta of this variant: give the checkpoint again.
    #[error("no delta of {name:?} is archived, so removing it needs the checkpoint")]
    NotArchived { name: String },
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The base or its tokenizer cannot be served.
    #[error("the base cannot be loaded: {reason}")]
    Base { reason: String },
    /// No engine is attached to publish to.
    #[error("no engine is attached")]
    NotAttached,
}
