//! Factors of four bits as kernels like them: two thin products of bytes.

use rayon::prelude::*;

use super::kept::Nibbles;
use super::kernel::DecodeKernel;
use super::panels::LANES;
use super::rows::{Facts, length, place};
use crate::quantized::round;

/// Inputs to a line.
pub const DEEP: usize = 8;

/// Numbers of four bits: sixteen outputs by eight inputs, four bytes to an output, the first four inputs in their low halves.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct ThinLine(pub [u8; 4 * LANES]);

impl ThinLine {
    fn put(&mut self, output: usize, input: usize, nibble: u8) {
        self.0[4 * output + input % 4] |= nibble << (input / 4 * 4);
    }

    fn get(&self, output: usize, input: usize) -> u8 {
        self.0[4 * output + input % 4] >> (input / 4 * 4) & 15
    }
}

/// Both factors. A's outputs are ranks, and its inputs in the order of [`RotatedRows`](super::rows::RotatedRows); B's inputs are ranks.
#[derive(Clone, Debug)]
pub struct ThinFactors {
    scales: Vec<f32>,
    /// Lines of sixteen ranks.
    across: usize,
    /// [ceil(rank / 16)][across]
    a: Vec<ThinLine>,
    /// Lines of sixteen outputs.
    deep: usize,
    /// [ceil(out / 16)][deep]
    b: Vec<ThinLine>,
}

/// What belongs to what the first factor gives for a row of x, rounded to 8 bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Between {
    scale: f32,
    sum: i32,
}

impl ThinFactors {
    /// For rows of x that are dealt out for `per_step` weights to a step.
    pub fn new(of: &Nibbles, [out, input]: [usize; 2], per_step: usize) -> Self {
        let (rank, row) = (of.scales.len(), |width: usize| width.div_ceil(2));
        let (across, deep) = (length(input, per_step) / DEEP, rank.div_ceil(DEEP));
        let nibble = |factor: &[u8], width: usize, rank: usize, index: usize| {
            factor[rank * row(width) + index / 2] >> (4 * (index % 2)) & 15
        };
        let mut a = vec![ThinLine([0; 4 * LANES]); rank.div_ceil(LANES) * across];
        for (panel, lines) in a.chunks_exact_mut(across).enumerate() {
            for lane in 0..LANES.min(rank - panel * LANES) {
                for index in 0..input {
                    let (place, rank) = (place(index, per_step), panel * LANES + lane);
                    lines[place / DEEP].put(lane, place % DEEP, nibble(&of.a, input, rank, index));
                }
            }
        }
        let mut b = vec![ThinLine([0; 4 * LANES]); out.div_ceil(LANES) * deep];
        let panels = b.par_chunks_mut(deep.max(1)).enumerate();
        panels.for_each(|(panel, lines)| {
            for lane in 0..LANES.min(out - panel * LANES) {
                for rank in 0..rank {
                    let number = nibble(&of.b, out, rank, panel * LANES + lane);
                    lines[rank / DEEP].put(lane, rank % DEEP, number);
                }
            }
        });
        ThinFactors {
            scales: of.scales.clone(),
            across,
            a,
            deep,
            b,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.scales[..]) + size_of_val(&self.a[..]) + size_of_val(&self.b[..])
    }

    /// Row `index` of the product of both factors, in the order of [`RotatedRows`](super::rows::RotatedRows).
    pub fn row(&self, index: usize) -> Vec<f32> {
        let (lines, lane) = (&self.b[index / LANES * self.deep..], index % LANES);
        let mut row = vec![0f32; DEEP * self.across];
        let number = |nibble: u8| f32::from(2 * nibble.cast_signed() - 15);
        for (rank, scale) in self.scales.iter().enumerate() {
            let factor = scale * number(lines[rank / DEEP].get(lane, rank % DEEP));
            let lines = &self.a[rank / LANES * self.across..][..self.across];
            for (line, row) in lines.iter().zip(row.as_chunks_mut::<DEEP>().0) {
                for (input, value) in row.iter_mut().enumerate() {
                    *value = factor.mul_add(number(line.get(rank % LANES, input)), *value);
                }
            }
        }
        row
    }

    /// Lines that t takes.
    pub fn deep(&self) -> usize {
        self.deep
    }

    /// t = scales ⊙ (A x), for a row of x; `room` is for t before it is rounded.
    pub fn first(
        &self,
        kernel: DecodeKernel,
        (x, facts): (&[i8], Facts),
        room: &mut Vec<f32>,
        t: &mut [[i8; DEEP]],
    ) -> Between {
        let x = &x.as_chunks().0[..self.across];
        room.clear();
        for (lines, scales) in self
            .a
            .chunks_exact(self.across)
            .zip(self.scales.chunks(LANES))
        {
            let mut sums = [[0; LANES]];
            kernel.nibbles(lines, &[x], &mut sums);
            room.extend(sums[0].iter().zip(scales).map(|(&sum, scale)| {
                let exact = 2 * i64::from(sum) - 15 * i64::from(facts.sum);
                exact as f32 * (facts.scale * scale)
            }));
        }
        let t = &mut t[..self.deep];
        let scale = round(room, t.as_flattened_mut());
        let sum = t.as_flattened().iter().map(|&q| i32::from(q)).sum();
        Between { scale, sum }
    }

    /// B t for the sixteen outputs of panel `index` and some rows' t: integers, of which [`Between::value`] makes numbers.
    pub fn second(
        &self,
        kernel: DecodeKernel,
        index: usize,
        t: &[&[[i8; DEEP]]],
        sums: &mut [[i32; LANES]],
    ) {
        kernel.nibbles(&self.b[index * self.deep..][..self.deep], t, sums);
    }
}

impl Between {
    /// An element of B t, of its sum.
    #[inline]
    pub fn value(&self, sum: i32) -> f32 {
        (2 * sum - 15 * self.sum) as f32 * self.scale
    }
}
