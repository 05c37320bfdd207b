//! BitDelta (arXiv 2402.10193), to compare with: each delta's signs and one mean magnitude a matrix.

use std::collections::BTreeMap;

use super::{Mismatch, NamedTensors, delta};

/// One bit an element of one matrix [rows, cols].
#[derive(Clone, Debug, PartialEq)]
pub struct BitMatrix {
    pub shape: [usize; 2],
    /// Mean magnitude: the scale that gives the least squared error.
    pub mean: f32,
    /// Bit `j % 32` of word `j / 32` is set where element `j` is negative.
    pub negative: Vec<u32>,
}

/// The one-bit deltas of a fine-tune's matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct BitDelta {
    pub matrices: BTreeMap<String, BitMatrix>,
}

impl BitDelta {
    /// Quantises fine-tuned − base; refuses what [`super::Delta::between`] refuses for its shapes.
    pub fn between(base: &NamedTensors, fine_tuned: &NamedTensors) -> Result<BitDelta, Mismatch> {
        delta::check_shapes(&base.shapes(), &fine_tuned.shapes())?;
        let matrices =
            base.0
                .iter()
                .zip(fine_tuned.0.values())
                .filter_map(|((name, base), tuned)| {
                    let deltas: Vec<f32> = tuned
                        .data
                        .iter()
                        .zip(&base.data)
                        .map(|(tuned, base)| tuned - base)
                        .collect();
                    let mut negative = vec![0u32; deltas.len().div_ceil(32)];
                    for (index, delta) in deltas.iter().enumerate() {
                        negative[index / 32] |= u32::from(*delta < 0.0) << (index % 32);
                    }
                    let total: f64 = deltas.iter().map(|delta| f64::from(delta.abs())).sum();
                    let mean = (total / deltas.len() as f64) as f32;
                    Some((
                        name.clone(),
                        BitMatrix {
                            shape: base.matrix()?,
                            mean,
                            negative,
                        },
                    ))
                });
        Ok(BitDelta {
            matrices: matrices.collect(),
        })
    }

    /// The delta of one matrix as it is served, in row order.
    pub fn dense(&self, name: &str) -> Option<Vec<f32>> {
        let BitMatrix {
            shape: [rows, cols],
            mean,
            negative,
        } = self.matrices.get(name)?;
        let sign = |index: usize| {
            if negative[index / 32] >> (index % 32) & 1 == 1 {
                -mean
            } else {
                *mean
            }
        };
        Some((0..rows * cols).map(sign).collect())
    }
}
