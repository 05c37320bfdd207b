//! Why a file or a checkpoint is refused: each error names the first offender.

use super::{Digest, TooFewBits};
pub use crate::checkpoint::Unreadable;
use crate::ops::coded::NoSuchRate;

/// The tensors do not fit the base.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Mismatch {
    #[error(
        "every tensor has {prefix:?} before its name, as a wrapper leaves it; save the model inside"
    )]
    Wrapped { prefix: String },
    #[error("the tensor {tensor} of the base is missing")]
    Missing { tensor: String },
    #[error("the tensor {tensor} is not one of the base's")]
    Extra { tensor: String },
    #[error("the tensor {tensor} has shape {found:?}; the base's has {expected:?}")]
    Shape {
        tensor: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("the delta of {tensor} is not a finite number at element {index}")]
    NotFinite { tensor: String, index: usize },
    #[error("the delta of {tensor} is too large a number at element {index}")]
    TooLarge { tensor: String, index: usize },
    #[error("it belongs to the base {found}, this is {expected}")]
    OtherBase { expected: Digest, found: Digest },
    #[error(
        "its matrices have nothing in common with the base's (cosine {cosine:.3}): it is no fine-tune of this base"
    )]
    Unrelated { cosine: f64 },
    #[error(
        "the matrix {tensor} has nothing in common with the base's (cosine {cosine:.3}), where others do: is it transposed?"
    )]
    UnrelatedTensor { tensor: String, cosine: f64 },
    #[error(
        "the tensor {tensor} holds {value} at element {index}, out of all proportion to the base's"
    )]
    Outlier {
        tensor: String,
        index: usize,
        value: f32,
    },
    #[error(
        "its delta is {moved:.2} of the base's own size, in nearly every matrix: it looks like another revision of the base, or a training run of its own; it is only added by force"
    )]
    Revision { moved: f64 },
    #[error("{detail}")]
    Adapter { detail: String },
    #[error("every tensor is the base's: there is nothing to keep")]
    Same,
}

/// A file is refused, for its form or for what is in it.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("its content is not what its digest says: it was damaged or changed")]
    Damaged,
    #[error("its {what} is number {found}, which is not known here")]
    Version { what: &'static str, found: u64 },
    #[error(transparent)]
    Rate(#[from] NoSuchRate),
    #[error(transparent)]
    TooFewBits(#[from] TooFewBits),
}
