//! Products with a matrix in few bits: y = x W^T for the rows of many variants at once.
//!
//! The numbers are candle's. They are stored for sixteen outputs at a time, four inputs of all sixteen side by side, so
//! that one instruction multiplies four inputs of sixteen outputs with four bytes of x and nothing is ever summed
//! across a vector. x is rounded to 8 bits with one scale to 256 inputs.
//!
//! Sums over a block of 32 inputs, and minima times sums of x, are exact integers; from there on every element of y is one
//! chain of f32 operations in order of the inputs, the same with every instruction set and for every number of
//! rows: results depend neither on the batch nor on the machine.

use super::kernel::{self, QuantPanel};
use super::levels::{LANES, Levels};
use super::raw::{self, Plain};
use super::rows::{BLOCK, QuantisedRows};
use crate::isa::Isa;
use candle_core::quantized::k_quants::GgmlType;
use rayon::prelude::*;
use std::ops::Range;

/// Quants of one step of the innermost loop. A block of 32 inputs has eight steps of four inputs and as many lines as a quant
/// has bits: line `step * BITS / 8` holds the step's quants lane by lane, from bit `step * BITS % 8` of every byte on.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct QuantLine(pub [u8; 4 * LANES]);

#[allow(unsafe_code)]
// SAFETY: 64 bytes.
unsafe impl Plain for QuantLine {}

/// A matrix [out, input], `input` a multiple of the form's block.
#[derive(Clone)]
pub struct QuantPanels<L> {
    out: usize,
    input: usize,
    /// [ceil(out / 16)][input / 32][BITS]; lanes past the last output mean nothing.
    lines: Vec<QuantLine>,
    /// [ceil(out / 16)][input / 32 / BLOCKS]
    levels: Vec<L>,
}

/// Where input `input` of a block of 32 lies: line and bit.
fn place(input: usize, bits: usize) -> (usize, usize) {
    (input / 4 * bits / 8, input / 4 * bits % 8)
}

impl<L: Levels> QuantPanels<L> {
    /// Quantises `weights`, [out, in] by rows, as candle does.
    pub fn new(weights: &[f32], out: usize, input: usize) -> Self {
        assert!(
            weights.len() == out * input && input.is_multiple_of(BLOCK * L::BLOCKS),
            "{out} x {input}"
        );
        let (panels, blocks) = (out.div_ceil(LANES), input / BLOCK);
        let mut lines = vec![QuantLine([0; 4 * LANES]); panels * blocks * L::BITS];
        let mut levels = vec![L::ZERO; panels * blocks / L::BLOCKS];
        let work = lines
            .par_chunks_mut((blocks * L::BITS).max(1))
            .zip(levels.par_chunks_mut((blocks / L::BLOCKS).max(1)))
            .zip(weights.par_chunks(input.max(1) * LANES));
        work.for_each(|((lines, levels), weights)| {
            let mut rounded = vec![L::Block::zeros(); levels.len()];
            let mut quants = vec![0; BLOCK * L::BLOCKS];
            for (lane, row) in weights.chunks_exact(input).enumerate() {
                L::Block::from_float(row, &mut rounded);
                let blocks = lines.chunks_exact_mut(L::BITS * L::BLOCKS);
                for ((lines, levels), block) in blocks.zip(&mut *levels).zip(&rounded) {
                    levels.put(lane, bytes(block), &mut quants);
                    for (lines, quants) in lines
                        .chunks_exact_mut(L::BITS)
                        .zip(quants.chunks_exact(BLOCK))
                    {
                        for (input, quant) in quants.iter().enumerate() {
                            let (line, bit) = place(input, L::BITS);
                            lines[line].0[4 * lane + input % 4] |= quant << bit;
                        }
                    }
                }
            }
        });
        Self {
            out,
            input,
            lines,
            levels,
        }
    }

    /// Lines and levels, as they lie in memory.
    pub fn raw(&self) -> [&[u8]; 2] {
        [raw::bytes(&self.lines), raw::bytes(&self.levels)]
    }

    /// What [`raw`](Self::raw) gave; `None` where it is of another size.
    pub fn from_raw([lines, levels]: [&[u8]; 2], out: usize, input: usize) -> Option<Self> {
        let (panels, blocks) = (out.div_ceil(LANES), input / BLOCK);
        Some(Self {
            out,
            input,
            lines: raw::values(lines, panels * blocks * L::BITS)?,
            levels: raw::values(levels, panels * blocks / L::BLOCKS)?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..]) + size_of_val(&self.levels[..])
    }

    /// Sixteen outputs from `16 panel` on.
    fn panel(&self, panel: usize) -> QuantPanel<'_, L> {
        let (lines, levels) = (self.input / BLOCK * L::BITS, self.input / BLOCK / L::BLOCKS);
        QuantPanel {
            lines: &self.lines[panel * lines..][..lines],
            levels: &self.levels[panel * levels..][..levels],
        }
    }

    /// Row `row` of the matrix, dequantised into `target` [input].
    pub fn row(&self, row: usize, target: &mut [f32]) {
        let (panel, lane) = (self.panel(row / LANES), row % LANES);
        for (block, target) in target.chunks_exact_mut(BLOCK).enumerate() {
            let (levels, of) = (&panel.levels[block / L::BLOCKS], block % L::BLOCKS);
            let [scale, minimum] = levels.ends().map(|ends| ends[lane]);
            let (scale, minima) = (scale * levels.scales(of)[lane], levels.minima(of)[lane]);
            let halves = [0, 1].map(|half| {
                let factor = levels.factors(of, half)[lane] & 0xffff;
                (
                    scale * factor as f32,
                    minimum * (minima >> (16 * half) & 0xffff) as f32,
                )
            });
            for (input, value) in target.iter_mut().enumerate() {
                let (scale, minimum) = halves[input / (BLOCK / 2)];
                *value = scale * f32::from(i16::from(panel.quant(block, lane, input)) - L::OFFSET)
                    - minimum;
            }
        }
    }

    /// Hands `take` every (row, first output, products): up to sixteen elements of x W^T at a time, each once, from
    /// several threads. No two calls have the same outputs, so tasks may write to columns of their own.
    pub fn products(&self, x: &QuantisedRows, take: impl Fn(usize, usize, &[f32]) + Sync) {
        (0..self.out.div_ceil(LANES))
            .into_par_iter()
            .for_each(|index| {
                self.product(index, x, 0..x.len(), &take);
            });
    }

    /// As [`products`](Self::products), of some rows of x with the sixteen outputs from `16 index` on, in this thread.
    pub fn product(
        &self,
        index: usize,
        x: &QuantisedRows,
        rows: Range<usize>,
        mut take: impl FnMut(usize, usize, &[f32]),
    ) {
        assert_eq!(x.input, self.input, "rows of another size");
        let (isa, panel, first) = (Isa::best(), self.panel(index), index * LANES);
        let width = LANES.min(self.out - first);
        for start in rows.clone().step_by(kernel::TILE) {
            let count = kernel::TILE.min(rows.end - start);
            let mut sums = [[0f32; LANES]; kernel::TILE];
            kernel::run(isa, panel, x, start, &mut sums[..count]);
            for (row, sums) in (start..).zip(&sums[..count]) {
                take(row, first, &sums[..width]);
            }
        }
    }
}

impl<L: Levels> QuantPanel<'_, L> {
    /// Quant of one weight of a block.
    pub fn quant(&self, block: usize, lane: usize, input: usize) -> u8 {
        let (line, bit) = place(input, L::BITS);
        let mask = u8::MAX >> (8 - L::BITS);
        self.lines[block * L::BITS + line].0[4 * lane + input % 4] >> bit & mask
    }
}

/// candle's block as it lies in memory.
#[allow(unsafe_code)]
pub fn bytes<B: GgmlType>(block: &B) -> &[u8] {
    // SAFETY: candle's blocks are `repr(C)`, have no padding (their own size assertions add up their fields) and only plain
    // numbers.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(block).cast(), size_of::<B>()) }
}

#[cfg(test)]
pub(super) mod tests;
