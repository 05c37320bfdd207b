//! A bank: one superposition and the variants in it.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::fixed::Direction;
use super::{Delta, FixedTensor, Mismatch, Scheme};

/// The sum of the transformed deltas of up to `capacity` variants, tensor by tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bank {
    pub capacity: usize,
    pub scheme: Scheme,
    pub tensors: BTreeMap<String, FixedTensor>,
}

/// A delta cannot be added or subtracted; the bank is as it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AccumulateError {
    #[error("the superposition of {tensor} would overflow its fixed point")]
    Overflow { tensor: String },
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

impl Bank {
    /// An empty bank of the matrices `shapes`.
    pub fn new(
        capacity: usize,
        scheme: Scheme,
        shapes: impl IntoIterator<Item = (String, [usize; 2])>,
    ) -> Self {
        let zeros = |(name, shape)| (name, FixedTensor::zeros(shape, capacity, scheme));
        Bank {
            capacity,
            scheme,
            tensors: shapes.into_iter().map(zeros).collect(),
        }
    }

    /// S ← S + T(d / a), for every tensor of this bank. Leaves the bank as it was where it fails.
    pub fn accumulate(&mut self, delta: &Delta, seed: u64) -> Result<(), AccumulateError> {
        self.change(delta, seed, Direction::Add)
    }

    /// S ← S − T(d / a), the exact inverse of [`Bank::accumulate`].
    pub fn subtract(&mut self, delta: &Delta, seed: u64) -> Result<(), AccumulateError> {
        self.change(delta, seed, Direction::Subtract)
    }

    fn change(&mut self, delta: &Delta, seed: u64, way: Direction) -> Result<(), AccumulateError> {
        for (name, tensor) in &self.tensors {
            let matrix = delta.matrices.get(name);
            let matrix = matrix.ok_or_else(|| Mismatch::Missing {
                tensor: name.clone(),
            })?;
            if (matrix.rows, matrix.cols) != (tensor.rows, tensor.cols) {
                return Err(AccumulateError::Mismatch(Mismatch::Shape {
                    tensor: name.clone(),
                    expected: vec![tensor.rows, tensor.cols],
                    found: vec![matrix.rows, matrix.cols],
                }));
            }
        }
        let Some(tensor) = self.apply(delta, seed, way) else {
            return Ok(());
        };
        self.apply(
            delta,
            seed,
            match way {
                Direction::Add => Direction::Subtract,
                Direction::Subtract => Direction::Add,
            },
        );
        Err(AccumulateError::Overflow { tensor })
    }

    /// Adds to every tensor; the first one that wrapped around, if any.
    fn apply(&mut self, delta: &Delta, seed: u64, way: Direction) -> Option<String> {
        let scheme = self.scheme;
        let add = |(name, tensor): (&String, &mut FixedTensor)| {
            let matrix = delta.matrices.get(name)?;
            let transform = scheme.transform(seed, name, [matrix.rows, matrix.cols]);
            (!tensor.add(matrix, &transform, scheme.gains, way)).then(|| name.clone())
        };
        self.tensors.par_iter_mut().filter_map(add).min()
    }

    /// S_b of one tensor in f32, [rows, cols] in row order; `None` where the bank does not hold it.
    pub fn dense(&self, name: &str) -> Option<Vec<f32>> {
        self.tensors.get(name).map(FixedTensor::dense)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(FixedTensor::bytes).sum()
    }
}
