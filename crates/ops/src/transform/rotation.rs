//! Signs on the input, then the Walsh-Hadamard transform: R = H · diag(r).
//!
//! H is orthonormal and block-diagonal; a block is the largest power of two that divides the input, at most 4096. A
//! rotated row has hardly any outliers, whatever the row was: each of its elements is a signed sum over a block.

use super::{Side, Signs};

/// The longest block of a Hadamard transform.
const LONGEST: usize = 4096;

/// The rotation of a matrix's input under one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// r: one sign a column.
    pub signs: Signs,
    block: usize,
}

/// Elements to a block of the Hadamard transform over `len` of them: the largest power of two that divides `len`, at
/// most 4096.
pub fn hadamard_block(len: usize) -> usize {
    match len {
        0 => 1,
        _ => (1 << len.trailing_zeros().min(usize::BITS - 2)).min(LONGEST),
    }
}

impl Rotation {
    /// The rotation of the matrix `tensor` with `cols` inputs under `seed`.
    pub fn new(seed: u64, tensor: &str, cols: usize) -> Self {
        Rotation {
            signs: Signs::new(seed, tensor, Side::Input, cols),
            block: hadamard_block(cols),
        }
    }

    /// What leaves `cols` inputs as they are.
    pub fn none(cols: usize) -> Self {
        Rotation {
            signs: Signs::ones(cols),
            block: 1,
        }
    }

    /// Elements to a block of H.
    pub fn block(&self) -> usize {
        self.block
    }

    /// R x in place; `row` has as many elements as the matrix has columns.
    pub fn apply(&self, row: &mut [f32]) {
        self.signs.apply(row);
        hadamard(row, self.block);
    }

    /// Rᵀ x = R⁻¹ x in place.
    pub fn apply_inverse(&self, row: &mut [f32]) {
        hadamard(row, self.block);
        self.signs.apply(row);
    }

    /// The slow twin of [`Rotation::apply`].
    pub fn apply_slow(&self, row: &mut [f32]) {
        self.signs.apply_slow(row);
        hadamard_slow(row, self.block);
    }
}

/// H over every block of `values`, in place; its own inverse. The order of the additions is fixed, so the result is the
/// same on every machine. `block` is a power of two that divides the length.
pub fn hadamard(values: &mut [f32], block: usize) {
    let scale = (1.0 / (block as f64).sqrt()) as f32;
    for values in values.chunks_exact_mut(block) {
        let mut half = 1;
        // Eight elements stay in registers for the three narrow stages.
        if block >= 8 {
            values.as_chunks_mut::<8>().0.iter_mut().for_each(eight);
            half = 8;
        }
        while half < block {
            for pair in values.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        values.iter_mut().for_each(|value| *value *= scale);
    }
}

/// The first three stages.
fn eight(v: &mut [f32; 8]) {
    for half in [1, 2, 4] {
        let from = *v;
        for (i, to) in v.iter_mut().enumerate() {
            *to = match i & half {
                0 => from[i] + from[i + half],
                _ => from[i - half] - from[i],
            };
        }
    }
}

/// The definition: element i is the sum over j of (-1)^popcount(i & j) · x_j, over √block.
pub fn hadamard_slow(values: &mut [f32], block: usize) {
    for values in values.chunks_exact_mut(block) {
        let from = values.to_vec();
        for (i, to) in values.iter_mut().enumerate() {
            let signed = |(j, x): (usize, &f32)| match (i & j).count_ones() % 2 {
                0 => f64::from(*x),
                _ => -f64::from(*x),
            };
            let sum: f64 = from.iter().enumerate().map(signed).sum();
            *to = (sum / (block as f64).sqrt()) as f32;
        }
    }
}
