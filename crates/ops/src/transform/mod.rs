//! The seed-defined orthogonal maps of a matrix: signs on its input and on its output side, for superpositions; signs
//! and a Hadamard transform of its input, for codes ([`Rotation`]).
//!
//! ```text
//! key(seed, tensor, side) = SHA-256("choir/transform/1" || seed as u64 LE || side byte || tensor name UTF-8)
//! sign j                  = +1 if bit (j mod 32) of word (j div 32) of the key's ChaCha8 stream is 0, else -1
//! T(d)                    = l ⊙ d ⊙ r        d [out, in], l the output signs (a sign a row), r the input signs
//! ```
//!
//! This is a file format: what it gives for a (seed, name) may never change. T is its own inverse, since every
//! sign is. See RanDeS (arXiv 2505.11204) for the input side; the output side is ours.

use crate::rng::Key;

mod rotation;
#[cfg(test)]
mod tests;

pub use rotation::{Rotation, hadamard, hadamard_block, hadamard_slow};

/// Names the transform in a store's manifest.
pub const KIND: &str = "signs-on-both-sides";
/// The version in the key derivation.
pub const VERSION: u32 = 1;

/// Which dimension of a matrix [out, in] a vector of signs belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Input = 0,
    Output = 1,
}

/// The key of one side of one tensor.
pub fn key(seed: u64, tensor: &str, side: Side) -> Key {
    Key::derive(&[
        b"choir/transform/1",
        &seed.to_le_bytes(),
        &[side as u8],
        tensor.as_bytes(),
    ])
}

/// Sign `index` alone, +1 or -1, without the ones before it: the definition, one sign at a time.
pub fn sign(seed: u64, tensor: &str, side: Side, index: usize) -> f32 {
    let mut word = [0];
    key(seed, tensor, side).words(index as u64 / 32, &mut word);
    if word[0] >> (index % 32) & 1 == 0 {
        1.0
    } else {
        -1.0
    }
}

/// A vector of signs, 32 to a word: bit `j % 32` of word `j / 32` is set where sign `j` is -1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signs {
    words: Vec<u32>,
    len: usize,
}

impl Signs {
    /// The first `len` signs of one side of one tensor.
    pub fn new(seed: u64, tensor: &str, side: Side, len: usize) -> Self {
        let mut words = vec![0; len.div_ceil(32)];
        key(seed, tensor, side).words(0, &mut words);
        Signs { words, len }
    }

    /// `len` times +1: no transform on this side.
    pub fn ones(len: usize) -> Self {
        Signs {
            words: vec![0; len.div_ceil(32)],
            len,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The packed bits; those past `len` in the last word mean nothing.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// True where sign `index` is -1. Panics past the end, as a slice does.
    pub fn is_negative(&self, index: usize) -> bool {
        self.words[index / 32] >> (index % 32) & 1 == 1
    }

    /// Sign `index` as a number.
    pub fn sign(&self, index: usize) -> f32 {
        if self.is_negative(index) { -1.0 } else { 1.0 }
    }

    /// Multiplies `values` by the signs, element by element; its own inverse. `values` has `len` elements.
    pub fn apply(&self, values: &mut [f32]) {
        self.flip(values, 0);
    }

    /// Multiplies by the signs, all of them negated where `flip` is all ones (it is 0 otherwise).
    fn flip(&self, values: &mut [f32], flip: u32) {
        debug_assert_eq!(values.len(), self.len);
        for (chunk, word) in values.chunks_mut(32).zip(&self.words) {
            let word = word ^ flip;
            for (bit, value) in chunk.iter_mut().enumerate() {
                // Shifting up by 31 leaves nothing but this element's bit, over the sign of the f32.
                *value = f32::from_bits(value.to_bits() ^ (word >> bit) << 31);
            }
        }
    }

    /// The slow twin of [`Signs::apply`].
    pub fn apply_slow(&self, values: &mut [f32]) {
        for (index, value) in values.iter_mut().enumerate() {
            *value *= self.sign(index);
        }
    }
}

/// The transform of one matrix [out, in] of one variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transform {
    /// r: one sign a column.
    pub input: Signs,
    /// l: one sign a row.
    pub output: Signs,
}

impl Transform {
    /// The transform of the matrix `tensor` [rows, cols] under `seed`.
    pub fn new(seed: u64, tensor: &str, [rows, cols]: [usize; 2]) -> Self {
        Transform {
            input: Signs::new(seed, tensor, Side::Input, cols),
            output: Signs::new(seed, tensor, Side::Output, rows),
        }
    }

    /// T: l ⊙ matrix ⊙ r in place; `matrix` is [out, in] in row order.
    pub fn apply(&self, matrix: &mut [f32]) {
        if self.input.is_empty() {
            return;
        }
        for (row, values) in matrix.chunks_exact_mut(self.input.len()).enumerate() {
            self.input
                .flip(values, if self.output.is_negative(row) { !0 } else { 0 });
        }
    }

    /// T⁻¹, which is T.
    pub fn apply_inverse(&self, matrix: &mut [f32]) {
        self.apply(matrix);
    }

    /// The slow twin of [`Transform::apply`].
    pub fn apply_slow(&self, matrix: &mut [f32]) {
        let cols = self.input.len();
        for (index, value) in matrix.iter_mut().enumerate() {
            *value *= self.output.sign(index / cols) * self.input.sign(index % cols);
        }
    }
}
