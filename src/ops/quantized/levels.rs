//! What turns the quants of sixteen outputs into weights, for each of the forms that candle quantises to.

use super::rows::BLOCKS;
use candle_core::quantized::k_quants::{BlockQ2K, BlockQ4_0, BlockQ4K, BlockQ8_0, GgmlType};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Outputs stored together.
pub const LANES: usize = 16;
/// A value for every lane.
pub type Lanes<T> = [T; LANES];

/// Scales and minima of sixteen outputs. With `[d, m]` of [`Levels::ends`], a weight is
/// `d · scale · factor · (quant - OFFSET) - m · minimum`.
///
/// `block` is one of 32 inputs, `half` a half of it. Kernels call these in their innermost loops, so they are made of
/// loops over lanes that the compiler turns into vectors.
pub trait Levels: Clone + Copy + Send + Sync {
    /// candle's block, plain bytes.
    type Block: GgmlType + Send + Sync;
    /// Bits of a quant.
    const BITS: usize;
    /// Blocks of 32 inputs that one value of this type is for.
    const BLOCKS: usize;
    /// Taken from every quant.
    const OFFSET: i16 = 0;
    /// Whether factors are other than 1. A factor times a quant is 45 at most.
    const FOLDED: bool = false;
    /// Whether there are minima and ends.
    const SUPER: bool = Self::BLOCKS > 1;

    const ZERO: Self;

    /// Takes one output's block, as candle has it in memory; the quants go to `quants`.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]);

    fn scales(&self, block: usize) -> Lanes<f32>;

    /// As two halves of a word.
    fn factors(&self, _block: usize, _half: usize) -> Lanes<u32> {
        [0x1_0001; LANES]
    }

    /// The first half's in the low half of a word, the second's in the high one.
    fn minima(&self, _block: usize) -> Lanes<u32> {
        [0; LANES]
    }

    fn ends(&self) -> [Lanes<f32>; 2] {
        [[1.0; LANES], [0.0; LANES]]
    }
}

#[inline(always)]
fn lanes<T>(of: impl Fn(usize) -> T) -> Lanes<T> {
    std::array::from_fn(of)
}

#[inline(always)]
fn widened(halves: &Lanes<f16>) -> Lanes<f32> {
    let mut wide = [0.0; LANES];
    halves.convert_to_f32_slice(&mut wide);
    wide
}

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// 2.625 bits: super-blocks of 256 inputs; every 16 have a scale and a minimum in four bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Q2K {
    /// By block and half: the scale in the low half of a byte, the minimum in the high one.
    codes: [[Lanes<u8>; 2]; BLOCKS],
    scale: Lanes<f16>,
    minimum: Lanes<f16>,
}

impl Levels for Q2K {
    type Block = BlockQ2K;
    const BITS: usize = 2;
    const BLOCKS: usize = BLOCKS;
    const FOLDED: bool = true;
    const ZERO: Self = Q2K {
        codes: [[[0; LANES]; 2]; BLOCKS],
        scale: [f16::ZERO; LANES],
        minimum: [f16::ZERO; LANES],
    };

    /// Sixteen codes, 64 bytes of quants, scale, minimum. A byte holds inputs 32 apart of one half of 128.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]) {
        for (codes, code) in self.codes.as_flattened_mut().iter_mut().zip(block) {
            codes[lane] = *code;
        }
        (self.scale[lane], self.minimum[lane]) = (half(block, 80), half(block, 82));
        for (input, quant) in quants.iter_mut().enumerate() {
            *quant = block[16 + input / 128 * 32 + input % 32] >> (input % 128 / 32 * 2) & 3;
        }
    }

    #[inline(always)]
    fn scales(&self, _: usize) -> Lanes<f32> {
        [1.0; LANES]
    }

    #[inline(always)]
    fn factors(&self, block: usize, half: usize) -> Lanes<u32> {
        let codes = &self.codes[block][half];
        lanes(|lane| u32::from(codes[lane] & 15) * 0x1_0001)
    }

    #[inline(always)]
    fn minima(&self, block: usize) -> Lanes<u32> {
        let [low, high] = &self.codes[block];
        lanes(|lane| u32::from(low[lane] >> 4) | u32::from(high[lane] >> 4) << 16)
    }

    #[inline(always)]
    fn ends(&self) -> [Lanes<f32>; 2] {
        [widened(&self.scale), widened(&self.minimum)]
    }
}

/// 4.5 bits: super-blocks of 256 inputs; every 32 have a scale and a minimum in six bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Q4K {
    /// candle's twelve bytes of 6-bit scales and minima.
    sixes: [Lanes<u8>; 12],
    scale: Lanes<f16>,
    minimum: Lanes<f16>,
}

impl Q4K {
    /// Scale and minimum.
    #[inline(always)]
    fn six(&self, block: usize, lane: usize) -> [u8; 2] {
        let six = &self.sixes;
        match block {
            0..4 => [six[block][lane] & 63, six[block + 4][lane] & 63],
            _ => [
                six[block + 4][lane] & 15 | six[block - 4][lane] >> 6 << 4,
                six[block + 4][lane] >> 4 | six[block][lane] >> 6 << 4,
            ],
        }
    }
}

impl Levels for Q4K {
    type Block = BlockQ4K;
    const BITS: usize = 4;
    const BLOCKS: usize = BLOCKS;
    const ZERO: Self = Q4K {
        sixes: [[0; LANES]; 12],
        scale: [f16::ZERO; LANES],
        minimum: [f16::ZERO; LANES],
    };

    /// Scale, minimum, twelve bytes of sixes, then for every two blocks 32 bytes with the first block in the low halves.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]) {
        (self.scale[lane], self.minimum[lane]) = (half(block, 0), half(block, 2));
        for (sixes, six) in self.sixes.iter_mut().zip(&block[4..]) {
            sixes[lane] = *six;
        }
        for (input, quant) in quants.iter_mut().enumerate() {
            *quant = block[16 + input / 64 * 32 + input % 32] >> (input % 64 / 32 * 4) & 15;
        }
    }

    #[inline(always)]
    fn scales(&self, block: usize) -> Lanes<f32> {
        lanes(|lane| f32::from(self.six(block, lane)[0]))
    }

    #[inline(always)]
    fn minima(&self, block: usize) -> Lanes<u32> {
        lanes(|lane| u32::from(self.six(block, lane)[1]) * 0x1_0001)
    }

    #[inline(always)]
    fn ends(&self) -> [Lanes<f32>; 2] {
        [widened(&self.scale), widened(&self.minimum)]
    }
}

/// 4.5 bits: one scale to 32 inputs.
#[derive(Clone, Copy)]
pub struct Q4_0(Lanes<f16>);

impl Levels for Q4_0 {
    type Block = BlockQ4_0;
    const BITS: usize = 4;
    const BLOCKS: usize = 1;
    const OFFSET: i16 = 8;
    const ZERO: Self = Q4_0([f16::ZERO; LANES]);

    /// Scale, then sixteen bytes with the first half in the low halves.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]) {
        self.0[lane] = half(block, 0);
        for (input, quant) in quants.iter_mut().enumerate() {
            *quant = block[2 + input % 16] >> (input / 16 * 4) & 15;
        }
    }

    #[inline(always)]
    fn scales(&self, _: usize) -> Lanes<f32> {
        widened(&self.0)
    }
}

/// 8.5 bits: one scale to 32 inputs.
#[derive(Clone, Copy)]
pub struct Q8_0(Lanes<f16>);

impl Levels for Q8_0 {
    type Block = BlockQ8_0;
    const BITS: usize = 8;
    const BLOCKS: usize = 1;
    const OFFSET: i16 = 128;
    const ZERO: Self = Q8_0([f16::ZERO; LANES]);

    /// Scale, then 32 bytes.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]) {
        self.0[lane] = half(block, 0);
        for (quant, byte) in quants.iter_mut().zip(&block[2..]) {
            *quant = byte ^ 128;
        }
    }

    #[inline(always)]
    fn scales(&self, _: usize) -> Lanes<f32> {
        widened(&self.0)
    }
}
