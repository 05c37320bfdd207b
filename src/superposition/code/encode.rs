//! From a fine-tune to its coded delta, one tensor in memory at a time.

use std::collections::BTreeMap;

use half::bf16;
use rayon::prelude::*;

use super::matrix::power;
use super::plan::{MatrixRate, Plan, codable};
use super::{About, CodedDelta, KeptTensor, low_rank, matrix};
use crate::ops::coded::{Kept, LowRank, Nibbles};
use crate::superposition::digest::TensorHash;
use crate::superposition::source::{difference, first_odd};
use crate::superposition::{DeltaError, Digest, Mismatch, Relation, Remarks, TensorSource};
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
    ) -> Result<CodedDelta, DeltaError> {
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
    ) -> Result<CodedDelta, DeltaError> {
        CodedDelta::encode(digest, &base.shapes(), encoding, |name| {
            difference(base, fine_tuned, name)
        })
    }

    /// Codes the delta that `delta` gives for each of the base's tensors, as many elements in row order. It is asked at most three
    /// times for each, and never holds more than one: the seed comes of all of them, and what each of them gets depends on all.
    ///
    /// # Errors
    /// What `delta` refuses, a delta that is not finite or too large, and a budget below the smallest plan.
    pub fn encode(
        base: Digest,
        shapes: &BTreeMap<String, Vec<usize>>,
        encoding: &Encoding,
        delta: impl Fn(&str) -> Result<Vec<f32>, DeltaError>,
    ) -> Result<CodedDelta, DeltaError> {
        let mut hash = TensorHash::new("choir/delta-source/1");
        let mut powers = BTreeMap::new();
        for (name, shape) in shapes {
            hash.tensor(name, shape);
            let delta = bounded(name, delta(name)?)?;
            let ((), found) = rayon::join(|| hash.f32s(&delta), || power(&delta));
            powers.insert(name.as_str(), found);
        }
        let source = hash.finish();
        let seed = encoding.seed.unwrap_or(source.seed());
        let turned = |name: &str, [_, cols]: [usize; 2]| -> Result<Vec<f32>, DeltaError> {
            let (mut values, rotation) = (delta(name)?, Rotation::new(seed, name, cols));
            let rows = values.par_chunks_exact_mut(cols);
            rows.for_each(|row| rotation.apply(row));
            Ok(values)
        };
        let mut survey = encoding.plan.survey();
        for (name, shape) in shapes {
            let power = powers[name.as_str()];
            match codable(shape) {
                Some(shape) => survey.matrix(name, shape, power, || turned(name, shape))?,
                None => survey.whole(shape, power),
            }
        }
        let mut choices = survey.choose()?;
        let (mut error, mut total) = (0.0, 0.0);
        let mut tensors = BTreeMap::new();
        for (name, shape) in shapes {
            let power = powers[name.as_str()];
            if power == 0.0 {
                continue;
            }
            let kept = match (codable(shape), choices.remove(name)) {
                (Some(matrix), Some(choice)) => {
                    let (kept, lost) = keep(turned(name, matrix)?, matrix, choice);
                    error += lost;
                    kept
                }
                _ => Kept::Whole(delta(name)?.into_iter().map(bf16::from_f32).collect()),
            };
            total += power;
            let shape = shape.clone();
            tensors.insert(name.clone(), KeptTensor { shape, kept });
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
    let odd = |value: f32| value.is_nan() || value.abs() > LARGEST_DELTA;
    let Some(index) = first_odd(&delta, odd) else {
        return Ok(delta);
    };
    let tensor = name.to_owned();
    Err(match delta[index].is_finite() {
        true => Mismatch::TooLarge { tensor, index },
        false => Mismatch::NotFinite { tensor, index },
    })
}

/// One rotated matrix as it was chosen to be kept, and the power of what that lacks.
fn keep(rotated: Vec<f32>, shape: [usize; 2], choice: MatrixRate) -> (Kept, f64) {
    let cols = shape[1];
    let without = |factors: &Nibbles| {
        let mut rest = vec![0.0; rotated.len()];
        low_rank::add(factors, cols, &mut rest);
        for (rest, value) in rest.iter_mut().zip(&rotated) {
            *rest = value - *rest;
        }
        rest
    };
    let (rate, factors) = match choice {
        MatrixRate::Factors(factors) => {
            let lost = power(&without(&factors));
            return (Kept::LowRank(LowRank::Nibbles(factors)), lost);
        }
        MatrixRate::Code(rate, factors) => (rate, factors),
    };
    let rest = match &factors {
        Some(factors) => without(factors),
        None => rotated,
    };
    let (code, gains) = matrix::encode(&rest, cols, rate);
    let lost = matrix::lost(&code, &gains, &rest);
    let low_rank = factors.map(LowRank::Nibbles);
    let kept = Kept::Coded {
        code,
        gains,
        low_rank,
    };
    (kept, lost)
}
