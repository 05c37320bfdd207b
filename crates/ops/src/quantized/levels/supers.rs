//! Super-blocks: scales and minima in few bits, which share a scale each.
#![allow(unsafe_code)]

use super::{Halves, LANES, Lanes, Levels, Plain, half, lanes, twice};
use crate::quantized::rows::BLOCKS;
use candle_core::quantized::k_quants::{BlockQ2K, BlockQ4K};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

/// The ends of a form that has a scale and a minimum to a super-block.
macro_rules! two_ends {
    () => {
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

        #[cfg(target_arch = "x86_64")]
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn ends256(&self, lane: usize) -> [x86::__m256; 2] {
            // SAFETY: the caller's.
            unsafe { [self.scale.half(lane), self.minimum.half(lane)] }
        }
    };
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

// SAFETY: bytes, and numbers of two bytes, which fill five lines of 64 bytes.
unsafe impl Plain for Q2K {}

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

    fn scales(&self, _: usize) -> Lanes<f32> {
        [1.0; LANES]
    }

    fn factors(&self, block: usize, half: usize) -> Lanes<u32> {
        lanes(|lane| twice(self.codes[block][lane][half] & 15))
    }

    fn minima(&self, block: usize) -> Lanes<u32> {
        lanes(|lane| {
            let [low, high] = self.codes[block][lane].map(|code| u32::from(code >> 4));
            low | high << 16
        })
    }

    two_ends!();

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn factors256(&self, block: usize, lane: usize) -> [x86::__m256i; 2] {
        use x86::*;
        let low = _mm256_set1_epi32(15);
        // SAFETY: a block has 32 codes.
        let codes = unsafe { _mm_loadu_si128(self.codes[block].as_ptr().add(lane).cast()) };
        let codes = _mm256_cvtepu8_epi16(codes);
        let (first, second) = (
            _mm256_and_si256(codes, low),
            _mm256_and_si256(_mm256_srli_epi32::<16>(codes), low),
        );
        [first, second].map(|factor| _mm256_or_si256(factor, _mm256_slli_epi32::<16>(factor)))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn minima256(&self, _: &(), block: usize, lane: usize) -> x86::__m256i {
        // SAFETY: a block has 32 codes.
        let codes = unsafe { x86::_mm_loadu_si128(self.codes[block].as_ptr().add(lane).cast()) };
        x86::_mm256_srli_epi16::<4>(x86::_mm256_cvtepu8_epi16(codes))
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

// SAFETY: bytes, and numbers of two bytes, which fill four lines of 64 bytes.
unsafe impl Plain for Q4K {}

impl Levels for Q4K {
    type Block = BlockQ4K;
    const BITS: usize = 4;
    const WHOLE_MINIMA: bool = true;
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

    fn scales(&self, block: usize) -> Lanes<f32> {
        let [scales, _] = self.sixes(block);
        lanes(|lane| f32::from(scales[lane]))
    }

    fn minima(&self, block: usize) -> Lanes<u32> {
        let [_, minima] = self.sixes(block);
        lanes(|lane| twice(minima[lane]))
    }

    two_ends!();

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn scales256(&self, codes: &Self::Codes, block: usize, lane: usize) -> x86::__m256 {
        // SAFETY: a block has sixteen scales.
        let codes = unsafe { x86::_mm_loadl_epi64(codes[0][block].as_ptr().add(lane).cast()) };
        x86::_mm256_cvtepi32_ps(x86::_mm256_cvtepu8_epi32(codes))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn minima256(&self, codes: &Self::Codes, block: usize, lane: usize) -> x86::__m256i {
        // SAFETY: a block has sixteen minima.
        let codes = unsafe { x86::_mm_loadl_epi64(codes[1][block].as_ptr().add(lane).cast()) };
        let minima = x86::_mm256_cvtepu8_epi32(codes);
        x86::_mm256_or_si256(minima, x86::_mm256_slli_epi32::<16>(minima))
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
            (of_scales.1[at], of_minima.1[at]) =
                (rest & 15 | scale >> 2 & 48, rest >> 4 | minimum >> 2 & 48);
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
