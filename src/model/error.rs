//! Why a network was not built, or did not evaluate a batch.

use crate::ops;
use crate::ops::coded::KeptError;
use crate::ops::gpu::Fault;
use crate::superposition::MatrixRole;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Device(#[from] Fault),
    #[error(transparent)]
    Ops(#[from] ops::Error),
    /// What gives the tensors, one after another, could not.
    #[error(transparent)]
    Unread(Box<dyn std::error::Error + Send + Sync>),
    /// The system would not give so much memory.
    #[error("{bytes} bytes: {detail}")]
    Memory { bytes: usize, detail: String },

    #[error("{what} of {found} is more than {limit}")]
    TooLarge {
        what: &'static str,
        found: usize,
        limit: usize,
    },
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name} has shape {found:?}, not {expected:?}")]
    TensorShape {
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("no tensor is the {role:?} of layer {layer:?}")]
    MissingRole {
        role: MatrixRole,
        layer: Option<usize>,
    },
    #[error("{found} gains for {name}, which has {rows} rows")]
    Gains {
        name: String,
        found: usize,
        rows: usize,
    },
    #[error("{name}: {reason}")]
    Kept { name: String, reason: KeptError },
    #[error("{holder} holds {name} in another shape than {} x {}", .shape.0, .shape.1)]
    HeldShape {
        /// A bank, or a variant.
        holder: &'static str,
        name: String,
        /// [out, in] of the base's.
        shape: (usize, usize),
    },
    #[error("variant {variant} lies in no bank that holds {name}")]
    InNoBank { variant: usize, name: String },
    #[error("no bank {bank} in this instance")]
    NoBank { bank: usize },
    #[error("a bank or a variant lies elsewhere than its base")]
    Elsewhere,

    #[error("no variant {variant} in this instance")]
    NoVariant { variant: u32 },
    #[error("token {token} is outside the vocabulary of {rows}")]
    Token { token: u32, rows: usize },
    /// A cache on the host for a network on a device, or the other way round.
    #[error("the cache lies elsewhere than the network")]
    CacheElsewhere,
    #[error("{pages} pages do not hold {needed} positions")]
    Pages { pages: usize, needed: usize },
    #[error("a page outside the cache of {pages}")]
    PageOutside { pages: usize },
    #[error("a row outside the segment's {tokens} tokens")]
    RowOutside { tokens: usize },
    #[error("{draws} draws for {rows} rows")]
    Draws { draws: usize, rows: usize },
    #[error("{found} logits instead of [{rows}, {vocab}]")]
    Logits {
        found: usize,
        rows: usize,
        vocab: usize,
    },

    #[error("tokens do not fill {batch} sequences of {length}")]
    Sequences { batch: usize, length: usize },
    #[error("{found} noise levels for {batch} sequences of {length} in units of {unit}")]
    NoiseLevels {
        found: usize,
        batch: usize,
        length: usize,
        unit: usize,
    },
    #[error("nothing is asked of the network")]
    NoRows,
    /// Of an evaluation, or of a layer of it.
    #[error("{0} is not there")]
    NotKept(&'static str),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Error::Ops(error.into())
    }
}
