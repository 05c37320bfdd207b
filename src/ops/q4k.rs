//! Products with a matrix in 4.5 bits (`q4_K`): y = x W^T for the rows of many variants at once.
//!
//! The numbers are those of candle's `q4_K`: super-blocks of 256 inputs, in each eight blocks of 32 with a scale and a
//! minimum in 6 bits. They are stored for sixteen outputs at a time, four inputs of all sixteen side by side, so that one
//! instruction multiplies four inputs of sixteen outputs with four bytes of x and nothing is ever summed across a
//! vector. x is rounded to 8 bits with one scale to 256 inputs, as candle does.
//!
//! Sums of a block of 32 are exact integers; from there on every element of y is one chain of f32 operations in order
//! of the inputs, the same with every instruction set and for every number of rows: results depend neither on the
//! batch nor on the machine.

use super::isa::Isa;
use candle_core::quantized::k_quants::{BlockQ4K, GgmlType};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use std::ops::Range;

mod kernel;

/// Inputs to a super-block.
pub const SUPER: usize = 256;
/// Inputs that share a scale and a minimum.
const BLOCK: usize = 32;
/// Blocks to a super-block.
const BLOCKS: usize = SUPER / BLOCK;
/// Outputs stored together.
pub(super) const LANES: usize = 16;
/// Bytes of a block's inputs for all lanes: two inputs to a byte.
const PACKED: usize = BLOCK / 2 * LANES;

/// Sixteen outputs of one super-block; sixteen times candle's 144 bytes.
#[derive(Clone)]
#[repr(C, align(64))]
struct Panel {
    /// Bytes `64 g ..` of a block (g < 4) hold inputs `4 g ..` of all lanes in their low halves and inputs
    /// `16 + 4 g ..` in their high halves; within 64 bytes, lane by lane.
    quants: [[u8; PACKED]; BLOCKS],
    scale: [f16; LANES],
    minimum: [f16; LANES],
    /// candle's twelve bytes of 6-bit scales and minima, each for all lanes.
    sixes: [[u8; LANES]; 12],
}

/// The scales and minima of one panel, [block][lane].
struct Levels {
    scale: [[f32; LANES]; BLOCKS],
    minimum: [[f32; LANES]; BLOCKS],
}

impl Panel {
    fn zeros() -> Self {
        Panel {
            quants: [[0; PACKED]; BLOCKS],
            scale: [f16::ZERO; LANES],
            minimum: [f16::ZERO; LANES],
            sixes: [[0; LANES]; 12],
        }
    }

    /// Takes one output's super-block, as the 144 bytes that candle has in memory: scale, minimum, twelve bytes of
    /// sixes, then for every two blocks 32 bytes with the first block in the low halves.
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (self.scale[lane], self.minimum[lane]) = (half(0), half(2));
        for (sixes, byte) in self.sixes.iter_mut().zip(&bytes[4..16]) {
            sixes[lane] = *byte;
        }
        for block in 0..BLOCKS {
            let source = &bytes[16 + block / 2 * BLOCK..][..BLOCK];
            let quant = |input: usize| source[input] >> (block % 2 * 4) & 15;
            for input in 0..BLOCK / 2 {
                let at = input / 4 * 64 + lane * 4 + input % 4;
                self.quants[block][at] = quant(input) | quant(input + BLOCK / 2) << 4;
            }
        }
    }

    /// Quant of one weight, 0 to 15.
    fn quant(&self, lane: usize, input: usize) -> u8 {
        let (block, input) = (input / BLOCK, input % BLOCK);
        let (low, high) = (input % (BLOCK / 2), input / (BLOCK / 2));
        self.quants[block][low / 4 * 64 + lane * 4 + low % 4] >> (4 * high) & 15
    }

    /// The 6-bit scale and minimum of one lane's block.
    fn six(&self, block: usize, lane: usize) -> (u8, u8) {
        let six = &self.sixes;
        match block {
            0..4 => (six[block][lane] & 63, six[block + 4][lane] & 63),
            _ => (
                six[block + 4][lane] & 15 | six[block - 4][lane] >> 6 << 4,
                six[block + 4][lane] >> 4 | six[block][lane] >> 6 << 4,
            ),
        }
    }

    fn levels(&self) -> Levels {
        let (mut scale, mut minimum) = ([0f32; LANES], [0f32; LANES]);
        self.scale.convert_to_f32_slice(&mut scale);
        self.minimum.convert_to_f32_slice(&mut minimum);
        let mut levels = Levels {
            scale: [[0.0; LANES]; BLOCKS],
            minimum: [[0.0; LANES]; BLOCKS],
        };
        for block in 0..BLOCKS {
            for lane in 0..LANES {
                let (s, m) = self.six(block, lane);
                levels.scale[block][lane] = scale[lane] * f32::from(s);
                levels.minimum[block][lane] = minimum[lane] * f32::from(m);
            }
        }
        levels
    }
}

/// A super-block of x in 8 bits, four inputs to a word.
type Quants = [[i8; 4]; SUPER / 4];

/// Rows of x in 8 bits: super-blocks, [rows, input / 256].
pub struct Rows {
    input: usize,
    quants: Vec<Quants>,
    /// Sums of each block's quants, whole numbers.
    sums: Vec<[f32; BLOCKS]>,
    scales: Vec<f32>,
}

impl Rows {
    /// Rounds `rows` rows of `input` elements, each made by `fill` in a buffer of its own.
    pub fn quantise(rows: usize, input: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let across = input / SUPER;
        let mut all = Rows {
            input,
            quants: vec![[[0; 4]; SUPER / 4]; rows * across],
            sums: vec![[0.0; BLOCKS]; rows * across],
            scales: vec![0.0; rows * across],
        };
        let quants = all.quants.par_chunks_mut(across);
        let sums = all.sums.par_chunks_mut(across);
        let scales = all.scales.par_chunks_mut(across);
        let work = quants.zip(sums).zip(scales).enumerate().with_min_len(8);
        work.for_each_init(
            || vec![0f32; input],
            |row, (index, ((quants, sums), scales))| {
                fill(index, row);
                for (at, values) in row.chunks_exact(SUPER).enumerate() {
                    let quants = quants[at].as_flattened_mut();
                    scales[at] = round(values, quants);
                    for (sum, quants) in sums[at].iter_mut().zip(quants.chunks_exact(BLOCK)) {
                        *sum = quants.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
                    }
                }
            },
        );
        all
    }

    fn len(&self) -> usize {
        self.scales.len() / (self.input / SUPER)
    }

    /// One super-block of one row.
    fn part(&self, row: usize, at: usize) -> (&Quants, &[f32; BLOCKS], f32) {
        let index = row * (self.input / SUPER) + at;
        (&self.quants[index], &self.sums[index], self.scales[index])
    }
}

/// Rounds one super-block to -127 ..= 127 and returns the scale. A value that is not finite makes all of it not a number.
fn round(values: &[f32], quants: &mut [i8]) -> f32 {
    // Sixteen at a time, which the compiler turns into vectors; a sum of magnitudes that is finite has no summand that is not.
    let (mut largest, mut sum) = ([0f32; 16], [0f32; 16]);
    for values in values.as_chunks::<16>().0 {
        for ((largest, sum), value) in largest.iter_mut().zip(&mut sum).zip(values) {
            let size = value.abs();
            *largest = if size > *largest { size } else { *largest };
            *sum += size;
        }
    }
    let largest = largest.into_iter().fold(0f32, f32::max);
    if !sum.iter().sum::<f32>().is_finite() && values.iter().any(|value| !value.is_finite()) {
        return f32::NAN;
    }
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (quant, value) in quants.iter_mut().zip(values) {
        // Clamped: a denormal scale has an inverse that is too large. Adding 1.5 · 2^23 rounds to the nearest, ties to even,
        // and leaves the integer in the low bits.
        let value = (value * inverse).clamp(-127.0, 127.0) + 12_582_912.0;
        *quant = value.to_bits() as i8;
    }
    scale
}

/// A matrix [out, input] in `q4_K`, `input` a multiple of 256.
#[derive(Clone)]
pub struct Q4K {
    out: usize,
    input: usize,
    /// [ceil(out / 16)][input / 256]; lanes past the last output are zero.
    panels: Vec<Panel>,
}

impl Q4K {
    /// Quantises `weights`, [out, input] by rows, as candle does.
    pub fn new(weights: &[f32], out: usize, input: usize) -> Self {
        assert!(
            weights.len() == out * input && input.is_multiple_of(SUPER),
            "{out} x {input}"
        );
        let across = input / SUPER;
        let mut panels = vec![Panel::zeros(); out.div_ceil(LANES) * across];
        let work = panels
            .par_chunks_mut(across.max(1))
            .zip(weights.par_chunks(input.max(1) * LANES));
        work.for_each(|(panels, weights)| {
            let mut blocks = vec![BlockQ4K::zeros(); across];
            for (lane, row) in weights.chunks_exact(input).enumerate() {
                BlockQ4K::from_float(row, &mut blocks);
                for (panel, block) in panels.iter_mut().zip(&blocks) {
                    panel.put(lane, bytes(block));
                }
            }
        });
        Q4K { out, input, panels }
    }

    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.input)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.panels[..])
    }

    /// Row `row` of the matrix, dequantised into `target` [input].
    pub fn row(&self, row: usize, target: &mut [f32]) {
        let (lane, across) = (row % LANES, self.input / SUPER);
        let panels = &self.panels[row / LANES * across..][..across];
        for (panel, target) in panels.iter().zip(target.chunks_exact_mut(SUPER)) {
            for (block, target) in target.chunks_exact_mut(BLOCK).enumerate() {
                let (scale, minimum) = panel.six(block, lane);
                let scale = panel.scale[lane].to_f32() * f32::from(scale);
                let minimum = panel.minimum[lane].to_f32() * f32::from(minimum);
                for (input, value) in target.iter_mut().enumerate() {
                    *value = scale * f32::from(panel.quant(lane, block * BLOCK + input)) - minimum;
                }
            }
        }
    }

    /// Hands `take` every (row, first output, products): up to sixteen elements of x W^T at a time, each once, from
    /// several threads. No two calls have the same outputs, so tasks may write to columns of their own.
    pub fn products(&self, x: &Rows, take: impl Fn(usize, usize, &[f32]) + Sync) {
        (0..self.panels()).into_par_iter().for_each(|panel| {
            self.panel(panel, x, 0..x.len(), &take);
        });
    }

    /// Pieces of up to sixteen outputs that the matrix is cut into.
    pub fn panels(&self) -> usize {
        self.out.div_ceil(LANES)
    }

    /// As [`Q4K::products`], of some rows of x with one panel, in this thread.
    pub fn panel(&self, index: usize, x: &Rows, rows: Range<usize>, mut take: impl FnMut(usize, usize, &[f32])) {
        assert_eq!(x.input, self.input, "rows of another size");
        let across = self.input / SUPER;
        let panels = &self.panels[index * across..][..across];
        let levels: Vec<Levels> = panels.iter().map(Panel::levels).collect();
        let (isa, first) = (Isa::best(), index * LANES);
        let width = LANES.min(self.out - first);
        for start in rows.clone().step_by(kernel::TILE) {
            let count = kernel::TILE.min(rows.end - start);
            let mut sums = [[0f32; LANES]; kernel::TILE];
            kernel::run(isa, panels, &levels, x, start, &mut sums[..count]);
            for (row, sums) in (start..).zip(&sums[..count]) {
                take(row, first, &sums[..width]);
            }
        }
    }
}

/// candle's block as it lies in memory.
#[allow(unsafe_code)]
pub(super) fn bytes(block: &BlockQ4K) -> &[u8] {
    const _: () = assert!(size_of::<BlockQ4K>() == 144);
    // SAFETY: the type is `repr(C)`, has no padding (its own size assertion adds up its fields) and only plain numbers.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(block).cast(), size_of::<BlockQ4K>()) }
}

#[cfg(test)]
mod tests;
