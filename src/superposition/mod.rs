//! Superpositions of transformed deltas: named tensors in memory, on plain slices.
//!
//! ```text
//! S   = sum over k of  l_k ⊙ (d_k / a_k) ⊙ r_k         accumulate
//! d_k ~= c_k · (a_k l_k) ⊙ S ⊙ r_k                     retrieve
//! ```
//!
//! A [`Bank`] holds S in fixed point, so that any order of adding and removing the same variants gives the same
//! bits; a [`Delta`] is a variant's d_k in the form that is archived and accumulated; [`Private`] is what the
//! variant keeps whole: its gains a_k and the deltas of its vectors.
//!
//! A [`CodedDelta`] is a variant by itself, in codes of a few bits and thin factors: no sum, no interference.

mod archive;
mod bank;
mod bank_file;
mod bitdelta;
mod checkpoint;
mod code;
mod container;
mod delta;
mod digest;
mod fixed;
mod interference;
mod packed;
mod private;
mod refusal;
mod relation;
mod retrieve;
mod role;
mod scheme;
mod source;
#[cfg(test)]
mod tests;

pub use crate::checkpoint::read_file;
pub use bank::{AccumulateError, Bank};
pub use bitdelta::{BitDelta, BitMatrix};
pub use checkpoint::{NamedTensor, NamedTensors};
pub use code::{
    About, BadSensitivities, CodedDelta, Encoding, KeptTensor, Measured, Plan, Sensitivities,
    Singular, TooFewBits, is_by_token, leading, noise,
};
pub use container::is_own;
pub use delta::{Delta, DeltaMatrix};
pub use digest::{Digest, TensorDigest};
pub use fixed::{Cells, FixedTensor};
pub use interference::{Moments, measure, similarity};
pub use packed::{Remarks, pack, pack_with};
pub use private::Private;
pub use refusal::{DeltaError, Mismatch, Unreadable};
pub use relation::Relation;
pub use retrieve::{Retrieval, retrieve};
pub use role::MatrixRole;
pub use scheme::Scheme;
pub use source::{TensorSource, digest, first_odd};

/// The output head: the most sensitive matrix, superposed in banks of its own.
pub const HEAD: &str = "output_layer.linear.weight";
/// The embedding: second to it.
pub const EMBEDDING: &str = "vocab_embed.embedding";
