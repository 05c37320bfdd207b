//! Rows of x rounded to 8 bits for products with quantised matrices.

use rayon::prelude::*;

/// Inputs that share a scale of x: a super-block.
pub const SUPER: usize = 256;
/// Inputs to a block of a matrix.
pub const BLOCK: usize = 32;
/// Blocks to a super-block.
pub const BLOCKS: usize = SUPER / BLOCK;

/// A super-block of one row; past the row's end it is zeros.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct SuperBlock {
    /// By block, four inputs to a word.
    pub quants: [[[i8; 4]; BLOCK / 4]; BLOCKS],
    /// Sums of quants over the two halves of every block.
    pub sums: [[i16; 2]; BLOCKS],
    /// The same over whole blocks.
    pub whole: [i16; BLOCKS],
    pub scale: f32,
}

/// Rows of x in 8 bits: [rows, ceil(input / 256)].
pub struct QuantisedRows {
    pub input: usize,
    across: usize,
    parts: Vec<SuperBlock>,
}

impl QuantisedRows {
    /// Rounds `rows` rows of `input` elements, each made by `fill` in a buffer of its own.
    pub fn quantise(rows: usize, input: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let across = input.div_ceil(SUPER);
        let zero = SuperBlock {
            quants: [[[0; 4]; BLOCK / 4]; BLOCKS],
            sums: [[0; 2]; BLOCKS],
            whole: [0; BLOCKS],
            scale: 0.0,
        };
        let mut parts = vec![zero; rows * across];
        let work = parts
            .par_chunks_mut(across.max(1))
            .enumerate()
            .with_min_len(8);
        work.for_each_init(
            || vec![0f32; input],
            |row, (index, parts)| {
                fill(index, row);
                for (part, values) in parts.iter_mut().zip(row.chunks(SUPER)) {
                    part.take(values);
                }
            },
        );
        QuantisedRows {
            input,
            across,
            parts,
        }
    }

    pub fn len(&self) -> usize {
        self.parts.len() / self.across.max(1)
    }

    /// One super-block of one row.
    pub fn part(&self, row: usize, at: usize) -> &SuperBlock {
        &self.parts[row * self.across + at]
    }
}

impl SuperBlock {
    fn take(&mut self, values: &[f32]) {
        let quants = self.quants.as_flattened_mut().as_flattened_mut();
        self.scale = round(values, quants);
        for (sum, quants) in self
            .sums
            .as_flattened_mut()
            .iter_mut()
            .zip(quants.chunks_exact(BLOCK / 2))
        {
            *sum = quants.iter().map(|&q| i16::from(q)).sum();
        }
        self.whole = self.sums.map(|[first, second]| first + second);
    }
}

/// Rounds to -127 ..= 127 and returns the scale. A value that is not finite makes all of it not a number.
pub fn round(values: &[f32], quants: &mut [i8]) -> f32 {
    // Sixteen at a time, which the compiler turns into vectors; a sum of magnitudes that is finite has no summand that is not.
    let mut largest = [0f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for (value, largest) in rest.iter().zip(&mut largest) {
        *largest = value.abs();
    }
    let mut sum = largest;
    for values in chunks {
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
