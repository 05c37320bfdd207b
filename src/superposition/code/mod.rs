//! Coded deltas: a variant in about a bit a weight, by itself.
//!
//! ```text
//! R     = H · diag(r)                        r: signs of the variant's seed, H: Walsh-Hadamard over blocks of the input
//! d     = B A + rest                         two thin factors, where they pay
//! q_i   = code(u_i),   u_i = rest_i Rᵀ / a_i  each row by itself; a_i its RMS
//! g_i   = |u_i|² / <q_i, u_i>                so that the row's own part comes back whole
//! d_i  ~= B_i A + a_i g_i · (q_i R)          materialised
//! y_i   = W_0 x + a_i g_i · (q_i (R x)) + B_i (A x)
//! ```
//!
//! A code of R bits a weight has a noise of about 2^-2R of the delta's own power, whatever the delta looks like: the
//! rotation makes it Gaussian. Nobody else's comings and goings change it. What a network does not bear is a delta
//! that is too small, so the gain is not the one of least squares.

mod encode;
mod file;
mod low_rank;
mod matrix;
mod plan;
mod svd;
#[cfg(test)]
mod tests;
mod viterbi;

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::delta::check_shape;
use super::digest::TensorHash;
use super::{Digest, Mismatch, Remarks};
use crate::ops::coded::{Kept, LowRank};
use crate::transform::Rotation;

pub use encode::Encoding;
pub(super) use file::FORMAT;
pub use plan::{BadSensitivities, Plan, Sensitivities, TooFewBits, is_by_token, noise};
pub use svd::{Singular, leading};

/// What one variant changed, as it is shipped and served: one immutable file.
#[derive(Clone, Debug, PartialEq)]
pub struct CodedDelta {
    /// The base it belongs to.
    pub base: Digest,
    /// Defines its rotations.
    pub seed: u64,
    /// By name; the base's tensors that are not here are as in the base.
    pub tensors: BTreeMap<String, KeptTensor>,
    pub about: About,
}

/// What a coded delta says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    pub remarks: Remarks,
    /// |kept - delta| / |delta| over everything that is no exact copy.
    pub error: f64,
    /// Of the delta that it was made from: two encodings of one fine-tune share it.
    pub source: Digest,
    pub measured: Option<Measured>,
}

/// How much of the fine-tune's gain is left, as its maker measured it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// (base - kept) / (base - fine-tune), in nats a token.
    pub share: f64,
    /// What was measured, for a reader.
    pub method: String,
    /// Of the text's bytes; of a skill's name.
    pub text: Digest,
}

/// What is kept of one tensor's delta.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptTensor {
    pub shape: Vec<usize>,
    /// Of a vector, and of a matrix too small for a code: [`Kept::Whole`].
    pub kept: Kept,
}

impl CodedDelta {
    /// Whether a file is a coded delta, of whatever version.
    pub fn is_one(bytes: &[u8]) -> bool {
        let metadata = super::container::metadata(bytes).unwrap_or_default();
        let format = metadata.get("format");
        format.is_some_and(|format| format.starts_with("choir/coded-delta/"))
    }

    /// Of tensors that are kept as they are, an adapter's, or in bf16. Nothing of it is rotated; the seed comes of all of them.
    pub fn exactly(base: Digest, tensors: BTreeMap<String, KeptTensor>) -> CodedDelta {
        let mut hash = TensorHash::new("choir/adapter/1");
        for (name, KeptTensor { shape, kept }) in &tensors {
            hash.tensor(name, shape);
            match kept {
                Kept::LowRank(LowRank::Exact { rank, a, b }) => {
                    hash.tensor("factors", &[*rank]);
                    hash.f32s(a);
                    hash.f32s(b);
                }
                kept => {
                    let cols = shape.last().copied().unwrap_or(1);
                    let rows = shape.iter().product::<usize>() / cols.max(1);
                    hash.f32s(&dense(kept, [rows, cols], &Rotation::none(cols)));
                }
            }
        }
        let source = hash.finish();
        CodedDelta {
            base,
            seed: source.seed(),
            tensors,
            about: About {
                source,
                ..About::default()
            },
        }
    }

    /// The rotation of one of its matrices' input.
    pub fn rotation(&self, name: &str, cols: usize) -> Rotation {
        Rotation::new(self.seed, name, cols)
    }

    /// The delta of one tensor in row order, as it is read back; `None` where the variant leaves the base's.
    pub fn dense(&self, name: &str) -> Option<Vec<f32>> {
        let KeptTensor { shape, kept } = self.tensors.get(name)?;
        Some(match (kept, &shape[..]) {
            (Kept::Whole(values), _) => values.iter().map(|value| value.to_f32()).collect(),
            (kept, &[rows, cols]) => dense(kept, [rows, cols], &self.rotation(name, cols)),
            _ => return None,
        })
    }

    /// Whether all elements of some tensor are kept.
    pub fn has_whole(&self) -> bool {
        let mut tensors = self.tensors.values();
        tensors.any(|tensor| matches!(tensor.kept, Kept::Whole(_)))
    }

    /// Bytes of what is kept, without the file's header.
    pub fn bytes(&self) -> usize {
        self.tensors
            .values()
            .map(|tensor| tensor.kept.bytes())
            .sum()
    }

    /// Bits of everything that is kept for each weight of the base's matrices, of which there are `weights`.
    pub fn bits(&self, weights: usize) -> f64 {
        8.0 * self.bytes() as f64 / weights.max(1) as f64
    }

    /// Refuses a coded delta that belongs to another base or has tensors that are not among those of `shapes`.
    pub fn check(
        &self,
        base: Digest,
        shapes: &BTreeMap<String, Vec<usize>>,
    ) -> Result<(), Mismatch> {
        if self.base != base {
            let (expected, found) = (base, self.base);
            return Err(Mismatch::OtherBase { expected, found });
        }
        for (name, tensor) in &self.tensors {
            check_shape(name, shapes.get(name), &tensor.shape)?;
        }
        Ok(())
    }
}

/// The matrix [rows, cols] that `kept` stands for, in row order: the definition.
fn dense(kept: &Kept, [rows, cols]: [usize; 2], rotation: &Rotation) -> Vec<f32> {
    let (code, low_rank) = match kept {
        Kept::Whole(values) => return values.iter().map(|value| value.to_f32()).collect(),
        Kept::LowRank(part) => (None, Some(part)),
        Kept::Coded {
            code,
            gains,
            low_rank,
        } => (Some((code, gains)), low_rank.as_ref()),
    };
    let mut values = match code {
        Some((code, gains)) => matrix::rotated(code, gains),
        None => vec![0.0; rows * cols],
    };
    if let Some(LowRank::Nibbles(nibbles)) = low_rank {
        low_rank::add(nibbles, cols, &mut values);
    }
    let turned = values.par_chunks_exact_mut(cols);
    turned.for_each(|row| rotation.apply_inverse(row));
    if let Some(LowRank::Exact { rank, a, b }) = low_rank {
        let rows = values
            .par_chunks_exact_mut(cols)
            .zip(b.par_chunks_exact(*rank));
        rows.for_each(|(values, b)| {
            for (a, b) in a.chunks_exact(cols).zip(b) {
                for (value, a) in values.iter_mut().zip(a) {
                    *value = a.mul_add(*b, *value);
                }
            }
        });
    }
    values
}
