//! A matrix in fixed point. Integer addition is associative and exactly invertible: the sum does not depend on
//! the order, and what was added can be taken away without a trace.

use super::{DeltaMatrix, Scheme};
use crate::transform::Transform;

/// The integers of a [`FixedTensor`]; narrow where the range leaves room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cells {
    I16(Vec<i16>),
    I32(Vec<i32>),
}

/// A matrix [rows, cols] in row order whose elements are `cells * 2^-fraction_bits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedTensor {
    pub rows: usize,
    pub cols: usize,
    pub fraction_bits: u32,
    pub cells: Cells,
}

/// Fewest fraction bits worth having in 16 bits: a quantum of 1/256 of a row's RMS adds 1/800 of noise.
const NARROW_BITS: u32 = 8;
/// Fraction bits in 32 bits, where the range leaves room for them.
const WIDE_BITS: u32 = 16;
/// Without gains elements are weights, not multiples of a row's RMS: up to ±128 with a quantum of 6e-8.
const PLAIN_BITS: u32 = 24;

/// Whether `capacity` normalised deltas of rows of `cols` elements can be added without ever passing `largest`.
///
/// An element divided by its row's RMS is at most sqrt(cols), reached where all others are 0.
fn fits(cols: usize, capacity: usize, bits: u32, largest: u128) -> bool {
    let element = ((cols as u128) << (2 * bits)).isqrt() + 1; // rounded up
    element * capacity as u128 <= largest
}

/// How to add one matrix: an addition and its exact inverse.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Add,
    Subtract,
}

impl FixedTensor {
    /// Zeros, with as many fraction bits as `capacity` members of this shape leave room for.
    pub fn zeros([rows, cols]: [usize; 2], capacity: usize, scheme: Scheme) -> Self {
        let most = |largest: u32, bits: std::ops::RangeInclusive<u32>| {
            bits.rev()
                .find(|bits| fits(cols, capacity, *bits, u128::from(largest)))
        };
        let narrow = most(i16::MAX.cast_unsigned().into(), NARROW_BITS..=15);
        let (fraction_bits, cells) = match narrow {
            _ if !scheme.gains => (PLAIN_BITS, Cells::I32(vec![0; rows * cols])),
            Some(bits) => (bits, Cells::I16(vec![0; rows * cols])),
            None => {
                let bits = most(i32::MAX.cast_unsigned(), 0..=WIDE_BITS).unwrap_or(0);
                (bits, Cells::I32(vec![0; rows * cols]))
            }
        };
        FixedTensor {
            rows,
            cols,
            fraction_bits,
            cells,
        }
    }

    /// The value of 1 in a cell.
    pub fn quantum(&self) -> f64 {
        (-f64::from(self.fraction_bits)).exp2()
    }

    /// The matrix in f32, [rows, cols] in row order.
    pub fn dense(&self) -> Vec<f32> {
        let quantum = self.quantum() as f32;
        match &self.cells {
            Cells::I16(cells) => cells
                .iter()
                .map(|cell| f32::from(*cell) * quantum)
                .collect(),
            Cells::I32(cells) => cells.iter().map(|cell| *cell as f32 * quantum).collect(),
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match &self.cells {
            Cells::I16(cells) => size_of_val(&cells[..]),
            Cells::I32(cells) => size_of_val(&cells[..]),
        }
    }

    /// Adds or subtracts l ⊙ (d / a) ⊙ r. Returns false where a cell wrapped around; the opposite direction then
    /// brings every cell back, since wrapping addition is a group.
    pub(super) fn add(
        &mut self,
        delta: &DeltaMatrix,
        transform: &Transform,
        gains: bool,
        way: Direction,
    ) -> bool {
        let one = f64::from(self.fraction_bits).exp2();
        let mut fits = true;
        for (row, levels) in delta.values.chunks_exact(self.cols).enumerate() {
            let rms = delta.row_rms(levels);
            let factor = match gains {
                _ if rms == 0.0 => continue,
                true => one / rms,
                false => one * f64::from(delta.scales[row]),
            };
            let negative = transform.output.is_negative(row) != (way == Direction::Subtract);
            let flip = if negative { !0 } else { 0 };
            let signs = transform.input.words();
            let range = row * self.cols..(row + 1) * self.cols;
            fits &= match &mut self.cells {
                Cells::I16(cells) => add_row(&mut cells[range], levels, factor, signs, flip),
                Cells::I32(cells) => add_row(&mut cells[range], levels, factor, signs, flip),
            };
        }
        fits
    }
}

/// Adds `round(levels * factor)` with the signs in `words`, all of them negated where `flip` is all ones.
///
/// Rounding is to the nearest, ties to even, in f64: symmetric, and the same on every platform.
fn add_row<T: Cell>(cells: &mut [T], levels: &[i8], factor: f64, words: &[u32], flip: u32) -> bool {
    let mut wrapped = false;
    for ((cells, levels), word) in cells.chunks_mut(32).zip(levels.chunks(32)).zip(words) {
        let word = word ^ flip;
        for (bit, (cell, level)) in cells.iter_mut().zip(levels).enumerate() {
            let value = (f64::from(*level) * factor).round_ties_even() as i32;
            let mask = (word >> bit & 1).cast_signed().wrapping_neg();
            let (sum, over) = cell.add((value ^ mask).wrapping_sub(mask));
            *cell = sum;
            wrapped |= over;
        }
    }
    !wrapped
}

/// An integer that can be added to, modulo its size.
trait Cell: Copy {
    /// The sum modulo the size, and whether it differs from the true sum.
    fn add(self, value: i32) -> (Self, bool);
}

impl Cell for i16 {
    fn add(self, value: i32) -> (i16, bool) {
        let sum = i32::from(self).wrapping_add(value);
        (sum as i16, i32::from(sum as i16) != sum)
    }
}

impl Cell for i32 {
    fn add(self, value: i32) -> (i32, bool) {
        self.overflowing_add(value)
    }
}
