//! From a fine-tune to its coded delta, one tensor in memory at a time.

use std::collections::BTreeMap;

use half::bf16;
use rayon::prelude::*;

use super::matrix::squares;
use super::plan::{MatrixRate, Plan, codable};
use super::{About, CodedDelta, KeptTensor, dense, low_rank, matrix};
use crate::ops::coded::{Kept, LowRank};
use crate::superposition::digest::TensorHash;
use crate::superposition::source::difference;
use crate::superposition::{Digest, Mismatch, Refused, Relation, Remarks, TensorSource};
use crate::transform::Rotation;

/// No element of a delta is larger. A file's numbers may be, by as much as a matrix's norm exceeds its elements.
const LARGEST_DELTA: f32 = (1 << 20) as f32;

/// How a delta is to be coded.
#[derive(Clone, Debug, Default)]
pub struct Encoding {
    pub plan: Plan,
    /// Defines the rotations [default: from the delta itself].
    pub seed: Option<u64>,
    pub remarks: Remarks,
}

impl CodedDelta {
    /// Codes fine-tuned − base.
    ///
    /// # Errors
    /// What [`Relation::of`] refuses, and a budget that is too small.
    pub fn between(
        base: &dyn TensorSource,
        fine_tuned: &dyn TensorSource,
        encoding: &Encoding,
    ) -> Result<CodedDelta, Refused> {
        let digest = Relation::of(base, fine_tuned)?.base;
        CodedDelta::differences(digest, base, fine_tuned, encoding)
    }

    /// The same of one whose relation to the base `digest` is known.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn differences(
        digest: Digest,
        base: &dyn TensorSource,
        fine_tuned: &dyn TensorSource,
        encoding: &Encoding,
    ) -> Result<CodedDelta, Refused> {
        CodedDelta::encode(digest, &base.shapes(), encoding, |name| {
            difference(base, fine_tuned, name)
        })
    }

    /// Codes the delta that `delta` gives for each of the base's tensors, as many elements in row order. It is asked three times
    /// for each, and never holds more than one: the seed comes of all of them, and what each of them gets depends on all.
    ///
    /// # Errors
    /// What `delta` refuses, a delta that is not finite or too large, and a budget below the smallest plan.
    pub fn encode(
        base: Digest,
        shapes: &BTreeMap<String, Vec<usize>>,
        encoding: &Encoding,
        delta: impl Fn(&str) -> Result<Vec<f32>, Refused>,
    ) -> Result<CodedDelta, Refused> {
        let mut hash = TensorHash::new("choir/delta-source/1");
        for (name, shape) in shapes {
            hash.tensor(name, shape);
            hash.f32s(&bounded(name, delta(name)?)?);
        }
        let source = hash.finish();
        let seed = encoding.seed.unwrap_or(source.seed());
        let turned = |name: &str, [_, cols]: [usize; 2]| -> Result<Vec<f32>, Refused> {
            let (mut values, rotation) = (delta(name)?, Rotation::new(seed, name, cols));
            let rows = values.par_chunks_exact_mut(cols);
            rows.for_each(|row| rotation.apply(row));
            Ok(values)
        };
        let mut survey = encoding.plan.survey();
        for (name, shape) in shapes {
            match codable(shape) {
                Some(shape) => survey.matrix(name, shape, &turned(name, shape)?),
                None => survey.whole(shape, &delta(name)?),
            }
        }
        let mut choices = survey.choose()?;
        let (mut error, mut total) = (0.0, 0.0);
        let mut tensors = BTreeMap::new();
        for (name, shape) in shapes {
            let (kept, power) = match (codable(shape), choices.remove(name)) {
                (Some(matrix), Some(choice)) => {
                    let rotated = turned(name, matrix)?;
                    let kept = keep(&rotated, matrix, choice);
                    error += apart(&kept, matrix, &rotated);
                    (kept, squares(&rotated))
                }
                _ => {
                    let values = delta(name)?;
                    let power = squares(&values);
                    (
                        Kept::Whole(values.into_iter().map(bf16::from_f32).collect()),
                        power,
                    )
                }
            };
            if power > 0.0 {
                total += power;
                let shape = shape.clone();
                tensors.insert(name.clone(), KeptTensor { shape, kept });
            }
        }
        Ok(CodedDelta {
            base,
            seed,
            tensors,
            about: About {
                remarks: encoding.remarks.clone(),
                error: if total > 0.0 {
                    (error / total).sqrt()
                } else {
                    0.0
                },
                source,
                measured: None,
            },
        })
    }
}

/// A delta that can be kept so that a reader takes what was written.
fn bounded(name: &str, delta: Vec<f32>) -> Result<Vec<f32>, Mismatch> {
    let within = |value: &f32| value.abs() <= LARGEST_DELTA;
    let Some(index) = delta.iter().position(|value| !within(value)) else {
        return Ok(delta);
    };
    let tensor = name.to_owned();
    Err(match delta[index].is_finite() {
        true => Mismatch::TooLarge { tensor, index },
        false => Mismatch::NotFinite { tensor, index },
    })
}

/// One rotated matrix as it was chosen to be kept.
fn keep(rotated: &[f32], [_, cols]: [usize; 2], choice: MatrixRate) -> Kept {
    let (rate, factors) = match choice {
        MatrixRate::Factors(factors) => return Kept::LowRank(LowRank::Nibbles(factors)),
        MatrixRate::Code(rate, factors) => (rate, factors),
    };
    let mut rest = rotated.to_vec();
    if let Some(nibbles) = &factors {
        let mut low = vec![0.0; rest.len()];
        low_rank::add(nibbles, cols, &mut low);
        rest.iter_mut()
            .zip(low)
            .for_each(|(rest, low)| *rest -= low);
    }
    let (code, gains) = matrix::encode(&rest, cols, rate);
    Kept::Coded {
        code,
        gains,
        low_rank: factors.map(LowRank::Nibbles),
    }
}

/// The power of what `kept` lacks of a rotated matrix.
fn apart(kept: &Kept, shape: [usize; 2], rotated: &[f32]) -> f64 {
    let kept = dense(kept, shape, &Rotation::none(shape[1]));
    let apart: Vec<f32> = kept.iter().zip(rotated).map(|(a, b)| a - b).collect();
    squares(&apart)
}
