//! Why a checkpoint cannot be read.

use super::NoRoom;

/// The bytes are not a safetensors file, or a set of them, that can be read.
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
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("it is longer than {longest} bytes")]
    TooLong { longest: u64 },
    #[error("it is a pickle (a PyTorch checkpoint), which can run code; convert it to safetensors")]
    Pickle,
    #[error("it is {what}")]
    Foreign { what: &'static str },
    #[error("it is shorter than its header says: it may be truncated")]
    WrongLength,
    #[error("{bytes} bytes follow its last tensor, which no header names")]
    Trailing { bytes: u64 },
    #[error("it is not a safetensors file: {detail}")]
    Malformed { detail: String },
    #[error("its tensor {tensor} is of type {dtype}; F32, F16 and BF16 are understood here")]
    Dtype { tensor: String, dtype: String },
    #[error("it has the tensor {tensor} twice")]
    Twice { tensor: String },
    #[error("its tensor {tensor} has not the bytes that its shape and type take")]
    Bytes { tensor: String },
    #[error("its tensor {tensor} overlaps another")]
    Overlap { tensor: String },
    #[error("before its tensor {tensor} are bytes of none")]
    Hole { tensor: String },
    #[error("its tensor {tensor} has no elements")]
    NoElements { tensor: String },
    #[error("its format is {found:?}, which is not understood here")]
    Format { found: String },
    #[error(
        "it has neither model.safetensors nor model.safetensors.index.json{}",
        instead.as_ref().map_or(String::new(), |file| format!(", but {file}"))
    )]
    NoWeights { instead: Option<String> },
    #[error(
        "it is one shard of several; {}",
        if *index {
            "give the folder, or the index beside it (model.safetensors.index.json), by path"
        } else {
            "model.safetensors.index.json, which says what the others are, is not beside it"
        }
    )]
    OneShard { index: bool },
    #[error("its index cannot be read: {detail}")]
    Index { detail: String },
    #[error("its index names {shard:?}, which is no file beside it")]
    Outside { shard: String },
    #[error("its shard {shard} is missing")]
    MissingShard { shard: String },
    #[error("its shard {shard}: {source}")]
    Shard {
        shard: String,
        source: Box<Unreadable>,
    },
    #[error("its index puts the tensor {tensor} into {shard}, which does not have it")]
    NotInShard { tensor: String, shard: String },
    #[error("its index does not name the tensor {tensor}, which is in one of its shards")]
    NotIndexed { tensor: String },
}
