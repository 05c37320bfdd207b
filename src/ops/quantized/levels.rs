//! What turns the quants of sixteen outputs into weights, for each of the forms that candle quantises to.

#![allow(unsafe_code)]

use super::rows::BLOCKS;
use candle_core::quantized::k_quants::{BlockQ2K, BlockQ4_0, BlockQ4K, BlockQ8_0, GgmlType};
use half::f16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

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

    /// What a kernel with wide registers decodes once for all blocks.
    type Codes;
    fn codes(&self) -> Self::Codes;

    /// [`Levels::scales`] in a register.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW.
    #[cfg(target_arch = "x86_64")]
    unsafe fn scales512(&self, _codes: &Self::Codes, block: usize) -> x86::__m512 {
        // SAFETY: both are sixteen floats.
        unsafe { std::mem::transmute(self.scales(block)) }
    }

    /// [`Levels::ends`] in registers.
    ///
    /// # Safety
    /// As [`Levels::scales512`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn ends512(&self) -> [x86::__m512; 2] {
        // SAFETY: both are sixteen floats.
        self.ends().map(|ends| unsafe { std::mem::transmute(ends) })
    }

    /// Eight lanes of [`Levels::scales`] from `lane` on, which is 0 or 8.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn scales256(&self, block: usize, lane: usize) -> x86::__m256 {
        // SAFETY: there are eight lanes from `lane` on.
        unsafe { x86::_mm256_loadu_ps(self.scales(block).as_ptr().add(lane)) }
    }

    /// Both halves of [`Levels::factors`].
    ///
    /// # Safety
    /// As [`Levels::scales512`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn factors512(&self, block: usize) -> [x86::__m512i; 2] {
        // SAFETY: both are sixteen words.
        [0, 1].map(|half| unsafe { std::mem::transmute(self.factors(block, half)) })
    }

    /// [`Levels::minima`] in a register.
    ///
    /// # Safety
    /// As [`Levels::scales512`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn minima512(&self, _codes: &Self::Codes, block: usize) -> x86::__m512i {
        // SAFETY: both are sixteen words.
        unsafe { std::mem::transmute(self.minima(block)) }
    }
}

#[inline(always)]
fn lanes<T>(of: impl Fn(usize) -> T) -> Lanes<T> {
    std::array::from_fn(of)
}

/// In both halves of a word.
#[inline(always)]
fn twice(value: u8) -> u32 {
    u32::from(value) | u32::from(value) << 16
}

/// Sixteen numbers in half precision.
#[derive(Clone, Copy)]
struct Halves(Lanes<f16>);

impl Halves {
    const ZERO: Self = Halves([f16::ZERO; LANES]);

    fn plain(&self) -> Lanes<f32> {
        self.0.map(f16::to_f32)
    }

    /// # Safety
    /// The processor has AVX-512 F.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn wide(&self) -> x86::__m512 {
        // SAFETY: there are sixteen.
        x86::_mm512_cvtph_ps(unsafe { x86::_mm256_loadu_si256(self.0.as_ptr().cast()) })
    }

    /// Eight lanes from `lane` on, which is 0 or 8.
    ///
    /// # Safety
    /// The processor has F16C.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn half(&self, lane: usize) -> x86::__m256 {
        // SAFETY: there are eight from `lane` on.
        x86::_mm256_cvtph_ps(unsafe { x86::_mm_loadu_si128(self.0.as_ptr().add(lane).cast()) })
    }
}

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// 2.625 bits: super-blocks of 256 inputs; every 16 have a scale and a minimum in four bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Q2K {
    /// By block, lane and half: the scale in the low bits of a byte, the minimum in the high ones.
    codes: [Lanes<[u8; 2]>; BLOCKS],
    scale: Halves,
    minimum: Halves,
}

impl Levels for Q2K {
    type Block = BlockQ2K;
    const BITS: usize = 2;
    const BLOCKS: usize = BLOCKS;
    const FOLDED: bool = true;
    const ZERO: Self = Q2K {
        codes: [[[0; 2]; LANES]; BLOCKS],
        scale: Halves::ZERO,
        minimum: Halves::ZERO,
    };

    /// Sixteen codes, 64 bytes of quants, scale, minimum. A byte holds inputs 32 apart of one half of 128.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]) {
        for (codes, halves) in self.codes.iter_mut().zip(block.as_chunks().0) {
            codes[lane] = *halves;
        }
        (self.scale.0[lane], self.minimum.0[lane]) = (half(block, 80), half(block, 82));
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
        lanes(|lane| twice(self.codes[block][lane][half] & 15))
    }

    #[inline(always)]
    fn minima(&self, block: usize) -> Lanes<u32> {
        lanes(|lane| {
            let [low, high] = self.codes[block][lane].map(|code| u32::from(code >> 4));
            low | high << 16
        })
    }

    fn ends(&self) -> [Lanes<f32>; 2] {
        [self.scale.plain(), self.minimum.plain()]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn ends512(&self) -> [x86::__m512; 2] {
        // SAFETY: the caller's.
        unsafe { [self.scale.wide(), self.minimum.wide()] }
    }

    type Codes = ();
    fn codes(&self) {}

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn factors512(&self, block: usize) -> [x86::__m512i; 2] {
        use x86::*;
        let low = _mm512_set1_epi32(15);
        // SAFETY: a block has 32 codes.
        let codes = unsafe { _mm256_loadu_si256(self.codes[block].as_ptr().cast()) };
        let codes = _mm512_cvtepu8_epi16(codes);
        let (first, second) = (
            _mm512_and_si512(codes, low),
            _mm512_and_si512(_mm512_srli_epi32::<16>(codes), low),
        );
        [first, second].map(|factor| _mm512_or_si512(factor, _mm512_slli_epi32::<16>(factor)))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minima512(&self, _: &(), block: usize) -> x86::__m512i {
        // SAFETY: a block has 32 codes.
        let codes = unsafe { x86::_mm256_loadu_si256(self.codes[block].as_ptr().cast()) };
        x86::_mm512_srli_epi16::<4>(x86::_mm512_cvtepu8_epi16(codes))
    }
}

/// 4.5 bits: super-blocks of 256 inputs; every 32 have a scale and a minimum in six bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Q4K {
    /// candle's twelve bytes of 6-bit scales and minima.
    sixes: [Lanes<u8>; 12],
    scale: Halves,
    minimum: Halves,
}

impl Q4K {
    /// Scales, minima.
    #[inline(always)]
    fn sixes(&self, block: usize) -> [Lanes<u8>; 2] {
        let six = &self.sixes;
        match block {
            0..4 => [
                lanes(|lane| six[block][lane] & 63),
                lanes(|lane| six[block + 4][lane] & 63),
            ],
            _ => [
                lanes(|lane| six[block + 4][lane] & 15 | six[block - 4][lane] >> 6 << 4),
                lanes(|lane| six[block + 4][lane] >> 4 | six[block][lane] >> 6 << 4),
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
        scale: Halves::ZERO,
        minimum: Halves::ZERO,
    };

    /// Scale, minimum, twelve bytes of sixes, then for every two blocks 32 bytes with the first block in the low halves.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]) {
        (self.scale.0[lane], self.minimum.0[lane]) = (half(block, 0), half(block, 2));
        for (sixes, six) in self.sixes.iter_mut().zip(&block[4..]) {
            sixes[lane] = *six;
        }
        for (input, quant) in quants.iter_mut().enumerate() {
            *quant = block[16 + input / 64 * 32 + input % 32] >> (input % 64 / 32 * 4) & 15;
        }
    }

    #[inline(always)]
    fn scales(&self, block: usize) -> Lanes<f32> {
        let [scales, _] = self.sixes(block);
        lanes(|lane| f32::from(scales[lane]))
    }

    #[inline(always)]
    fn minima(&self, block: usize) -> Lanes<u32> {
        let [_, minima] = self.sixes(block);
        lanes(|lane| twice(minima[lane]))
    }

    fn ends(&self) -> [Lanes<f32>; 2] {
        [self.scale.plain(), self.minimum.plain()]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn ends512(&self) -> [x86::__m512; 2] {
        // SAFETY: the caller's.
        unsafe { [self.scale.wide(), self.minimum.wide()] }
    }

    /// Scales and minima of all blocks, a byte each.
    type Codes = [[Lanes<u8>; BLOCKS]; 2];

    #[inline(always)]
    fn codes(&self) -> Self::Codes {
        let (mut scales, mut minima) = ([[0; LANES]; BLOCKS], [[0; LANES]; BLOCKS]);
        let (low, high) = self.sixes.split_at(BLOCKS);
        let (low, high) = (low.as_flattened(), high.as_flattened());
        let of_scales = scales.as_flattened_mut().split_at_mut(4 * LANES);
        let of_minima = minima.as_flattened_mut().split_at_mut(4 * LANES);
        for at in 0..4 * LANES {
            let (scale, minimum, rest) = (low[at], low[4 * LANES + at], high[at]);
            (of_scales.0[at], of_minima.0[at]) = (scale & 63, minimum & 63);
            (of_scales.1[at], of_minima.1[at]) = (rest & 15 | scale >> 2 & 48, rest >> 4 | minimum >> 2 & 48);
        }
        [scales, minima]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales512(&self, codes: &Self::Codes, block: usize) -> x86::__m512 {
        // SAFETY: a block has sixteen scales.
        let codes = unsafe { x86::_mm_loadu_si128(codes[0][block].as_ptr().cast()) };
        x86::_mm512_cvtepi32_ps(x86::_mm512_cvtepu8_epi32(codes))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minima512(&self, codes: &Self::Codes, block: usize) -> x86::__m512i {
        // SAFETY: a block has sixteen minima.
        let codes = unsafe { x86::_mm_loadu_si128(codes[1][block].as_ptr().cast()) };
        let minima = x86::_mm512_cvtepu8_epi32(codes);
        x86::_mm512_or_si512(minima, x86::_mm512_slli_epi32::<16>(minima))
    }
}

/// 4.5 bits: one scale to 32 inputs.
#[derive(Clone, Copy)]
pub struct Q4_0(Halves);

impl Levels for Q4_0 {
    type Block = BlockQ4_0;
    const BITS: usize = 4;
    const BLOCKS: usize = 1;
    const OFFSET: i16 = 8;
    const ZERO: Self = Q4_0(Halves::ZERO);

    /// Scale, then sixteen bytes with the first half in the low halves.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]) {
        self.0.0[lane] = half(block, 0);
        for (input, quant) in quants.iter_mut().enumerate() {
            *quant = block[2 + input % 16] >> (input / 16 * 4) & 15;
        }
    }

    fn scales(&self, _: usize) -> Lanes<f32> {
        self.0.plain()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scales512(&self, _: &(), _: usize) -> x86::__m512 {
        // SAFETY: the caller's.
        unsafe { self.0.wide() }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn scales256(&self, _: usize, lane: usize) -> x86::__m256 {
        // SAFETY: the caller's.
        unsafe { self.0.half(lane) }
    }

    type Codes = ();
    fn codes(&self) {}
}

/// 8.5 bits: one scale to 32 inputs.
#[derive(Clone, Copy)]
pub struct Q8_0(Halves);

impl Levels for Q8_0 {
    type Block = BlockQ8_0;
    const BITS: usize = 8;
    const BLOCKS: usize = 1;
    const OFFSET: i16 = 128;
    const ZERO: Self = Q8_0(Halves::ZERO);

    /// Scale, then 32 bytes.
    fn put(&mut self, lane: usize, block: &[u8], quants: &mut [u8]) {
        self.0.0[lane] = half(block, 0);
        for (quant, byte) in quants.iter_mut().zip(&block[2..]) {
            *quant = byte ^ 128;
        }
    }

    fn scales(&self, _: usize) -> Lanes<f32> {
        self.0.plain()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scales512(&self, _: &(), _: usize) -> x86::__m512 {
        // SAFETY: the caller's.
        unsafe { self.0.wide() }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn scales256(&self, _: usize, lane: usize) -> x86::__m256 {
        // SAFETY: the caller's.
        unsafe { self.0.half(lane) }
    }

    type Codes = ();
    fn codes(&self) {}
}
