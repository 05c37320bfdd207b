//! Why an operator's action was refused; nothing has changed then.

use crate::model::tokenizer::TokenizerError;
use crate::store;
use crate::superposition::DeltaError;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A variant's file cannot be read, or does not match the base.
    #[error("{origin}: {source}")]
    Checkpoint { origin: String, source: DeltaError },
    /// The configuration beside a checkpoint is another one than the base's.
    #[error("{origin}: it is configured otherwise than the base: {field}")]
    OtherConfig { origin: String, field: &'static str },
    /// The tokenizer beside a checkpoint has other pieces than the base's, or its files cannot be read.
    #[error("{origin}: the tokenizer beside it does not fit the base: {source}")]
    OtherTokenizer {
        origin: String,
        source: TokenizerError,
    },
    #[error("{field}: {reason}")]
    BadField { field: &'static str, reason: String },
    /// The base or its tokenizer cannot be served.
    #[error("the base {origin} cannot be loaded: {reason}")]
    Base { origin: String, reason: String },
    /// A folder without a store where one was expected, or the reverse.
    #[error("{}: {reason}", dir.display())]
    DataDir { dir: PathBuf, reason: String },
    /// A variant keeps less of its fine-tune's gain than was asked for.
    #[error("{name} keeps {share:.4} of its fine-tune's gain, less than {least}")]
    ShareBelow {
        name: String,
        share: f32,
        least: f32,
    },
    /// What a variant keeps could not be measured.
    #[error("what the variant keeps cannot be measured: {reason}")]
    Unmeasured { reason: String },
    /// So many additions are under way that another would have to wait too long.
    #[error("{waiting} changes are under way already")]
    Busy { waiting: usize },
    /// The system gives no threads.
    #[error("the catalog cannot start: {reason}")]
    NotStarted { reason: String },
    /// The model instance could not be built. A change is not committed then; a generation that was committed earlier cannot be
    /// opened.
    #[error("generation {generation} cannot be served: {reason}")]
    Unserved { generation: u64, reason: String },
    /// The same, since the device's memory does not hold it beside what is being served.
    #[error("generation {generation} does not fit the device: {reason}")]
    NoMemory { generation: u64, reason: String },
}
