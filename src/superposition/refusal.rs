//! Why a file or a checkpoint is refused: each error names the first offender.

use super::Digest;

/// The bytes are not a safetensors file that can be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("it is a directory; give the safetensors file itself")]
    Directory,
    #[error("it is no regular file")]
    NotAFile,
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("it is empty")]
    Empty,
    #[error("it is a pickle (a PyTorch checkpoint), which can run code; convert it to safetensors")]
    Pickle,
    #[error("it is shorter or longer than its header says: it may be truncated")]
    WrongLength,
    #[error("it is not a safetensors file: {detail}")]
    Malformed { detail: String },
    #[error("its tensor {tensor} is of type {dtype}; F32, F16 and BF16 are understood here")]
    Dtype { tensor: String, dtype: String },
    #[error("it has the tensor {tensor} twice, with and without the prefix")]
    Twice { tensor: String },
    #[error("its tensor {tensor} has no elements")]
    NoElements { tensor: String },
    #[error("its format is {found:?}, which is not understood here")]
    Format { found: String },
}

/// The tensors do not fit the base.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Mismatch {
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
    #[error("it belongs to the base {found}, this is {expected}")]
    OtherBase { expected: Digest, found: Digest },
    #[error(
        "its matrices have nothing in common with the base's (cosine {cosine:.3}): it is no fine-tune of this base"
    )]
    Unrelated { cosine: f64 },
}

/// A file is refused, for its form or for what is in it.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}
