//! Factors of four bits as kernels like them: two thin products of bytes.

use rayon::prelude::*;

use super::kept::Nibbles;
use super::kernel::Kernel;
use super::panels::LANES;
use super::rows::{Facts, length, place};
use crate::ops::quantized::round;

/// Ranks to a line of the second factor.
pub const RANKS: usize = 8;

/// 64 inputs of one rank: the first 32 in the low halves of bytes. In the order of [`Rows`](super::rows::Rows).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct Half(pub [u8; 32]);

/// Eight ranks of sixteen outputs, four bytes to an output: the first four ranks in their low halves.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 4 * LANES]);

/// Both factors.
#[derive(Clone, Debug)]
pub struct Thin {
    scales: Vec<f32>,
    /// Halves of a rank.
    pub across: usize,
    /// [rank][across]
    pub a: Vec<Half>,
    /// Lines of a panel.
    pub deep: usize,
    /// [ceil(out / 16)][deep]
    pub b: Vec<Line>,
}

/// What the first factor gives for a row of x, rounded to 8 bits.
#[derive(Clone, Debug, Default)]
pub struct Between {
    pub quants: Vec<[i8; RANKS]>,
    scale: f32,
    sum: i32,
}

impl Thin {
    /// For rows of x that are dealt out for `per_step` weights to a step.
    pub fn new(of: &Nibbles, [out, input]: [usize; 2], per_step: usize) -> Self {
        let (rank, row) = (of.scales.len(), |width: usize| width.div_ceil(2));
        let across = length(input, per_step) / 64;
        let nibble = |factor: &[u8], width: usize, rank: usize, index: usize| {
            factor[rank * row(width) + index / 2] >> (4 * (index % 2)) & 15
        };
        let mut a = vec![Half([0; 32]); rank * across];
        for (rank, halves) in a.chunks_exact_mut(across).enumerate() {
            for index in 0..input {
                let place = place(index, per_step);
                halves[place / 64].0[place % 32] |=
                    nibble(&of.a, input, rank, index) << (4 * (place % 64 / 32));
            }
        }
        let deep = rank.div_ceil(RANKS);
        let mut b = vec![Line([0; 4 * LANES]); out.div_ceil(LANES) * deep];
        b.par_chunks_mut(deep.max(1))
            .enumerate()
            .for_each(|(panel, lines)| {
                for lane in 0..LANES.min(out - panel * LANES) {
                    for rank in 0..rank {
                        let (line, at) = (rank / RANKS, rank % RANKS);
                        lines[line].0[4 * lane + at % 4] |=
                            nibble(&of.b, out, rank, panel * LANES + lane) << (4 * (at / 4));
                    }
                }
            });
        Thin {
            scales: of.scales.clone(),
            across,
            a,
            deep,
            b,
        }
    }

    pub fn rank(&self) -> usize {
        self.scales.len()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.scales[..]) + size_of_val(&self.a[..]) + size_of_val(&self.b[..])
    }

    /// Row `index` of the product of both factors, in the order of [`Rows`](super::rows::Rows).
    pub fn row(&self, index: usize) -> Vec<f32> {
        let (lines, lane) = (&self.b[index / LANES * self.deep..], index % LANES);
        let mut row = vec![0f32; 64 * self.across];
        for (rank, scale) in self.scales.iter().enumerate() {
            let (byte, shift) = (4 * lane + rank % 4, 4 * (rank % RANKS / 4));
            let number = |nibble: u8| f32::from(2 * (nibble & 15).cast_signed() - 15);
            let factor = scale * number(lines[rank / RANKS].0[byte] >> shift);
            let halves = &self.a[rank * self.across..][..self.across];
            for (half, row) in halves.iter().zip(row.as_chunks_mut::<64>().0) {
                let (low, high) = row.split_at_mut(32);
                for ((byte, low), high) in half.0.iter().zip(low).zip(high) {
                    *low = factor.mul_add(number(*byte), *low);
                    *high = factor.mul_add(number(byte >> 4), *high);
                }
            }
        }
        row
    }

    /// t = scales ⊙ (A x), for a row of x.
    pub fn first(&self, kernel: Kernel, x: &[i8], facts: Facts) -> Between {
        let mut sums = vec![0; self.rank()];
        kernel.first(self, x, &mut sums);
        let t = sums.iter().zip(&self.scales).map(|(&sum, scale)| {
            let exact = 2 * i64::from(sum) - 15 * i64::from(facts.sum);
            exact as f32 * (facts.scale * scale)
        });
        let t: Vec<f32> = t.collect();
        let mut quants = vec![[0; RANKS]; self.deep];
        let scale = round(&t, quants.as_flattened_mut());
        let sum = quants.as_flattened().iter().map(|&q| i32::from(q)).sum();
        Between { quants, scale, sum }
    }

    /// B t for the sixteen outputs of panel `index`.
    pub fn second(&self, kernel: Kernel, index: usize, t: &Between, y: &mut [f32; LANES]) {
        let mut sums = [0; LANES];
        kernel.second(self, index, &t.quants, &mut sums);
        for (y, sum) in y.iter_mut().zip(sums) {
            *y = (2 * sum - 15 * t.sum) as f32 * t.scale;
        }
    }
}
