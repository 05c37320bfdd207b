//! What can go wrong with a store.

use std::io;
use std::path::PathBuf;

use super::{BankId, Operation};
use crate::superposition::{AccumulateError, Digest, Mismatch};

/// Every change that fails leaves the store as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {}: {source}", path.display())]
    Io {
        operation: Operation,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} holds no store", dir.display())]
    NotAStore { dir: PathBuf },
    #[error("{} holds a store already", dir.display())]
    Exists { dir: PathBuf },
    #[error("the store {} is open in another process", dir.display())]
    Locked { dir: PathBuf },
    /// A file is missing or not what was written.
    #[error("{} is damaged: {detail}", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error("the store has format {found}; this program reads formats 1 and 2")]
    Format { found: u32 },
    #[error(
        "the store uses the transform {kind}, version {version}, which this program does not have"
    )]
    OtherTransform { kind: String, version: u32 },
    #[error("the store belongs to the base {expected}, this is {found}")]
    OtherBase { expected: Digest, found: Digest },
    #[error("the store belongs to the tokenizer {expected}, this is {found}")]
    OtherTokenizer { expected: Digest, found: Digest },
    #[error("{field} {reason}")]
    BadOption {
        field: &'static str,
        reason: &'static str,
    },
    #[error("{name:?} cannot be a variant's name: {reason}")]
    BadName { name: String, reason: &'static str },
    #[error("there is a variant {name} already")]
    NameTaken { name: String },
    #[error("there is no variant {name:?}")]
    UnknownVariant { name: String },
    /// Another delta is under the name than the one that was to be replaced.
    #[error("the variant {name} has the delta {found}, not {expected}")]
    DeltaMoved {
        name: String,
        expected: Digest,
        found: Digest,
    },
    #[error("there is no bank {bank}")]
    UnknownBank { bank: BankId },
    #[error("the store is at generation {current}, not {expected}")]
    GenerationMoved { expected: u64, current: u64 },
    /// A scale must be a finite number.
    #[error("the scale {scale} is not a finite number")]
    BadScale { scale: f32 },
    #[error("the store keeps no archive of {name}: its delta is needed to remove it")]
    DeltaNeeded { name: String },
    #[error("the delta given for {name} is {found}; the one that was added is {expected}")]
    OtherDelta {
        name: String,
        expected: Digest,
        found: Digest,
    },
    #[error("the superposition of {tensor} would overflow its fixed point")]
    Overflow { tensor: String },
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

impl From<AccumulateError> for Error {
    fn from(error: AccumulateError) -> Self {
        match error {
            AccumulateError::Overflow { tensor } => Error::Overflow { tensor },
            AccumulateError::Mismatch(mismatch) => Error::Mismatch(mismatch),
        }
    }
}
