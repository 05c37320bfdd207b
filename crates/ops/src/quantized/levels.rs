//! What turns the quants of sixteen outputs into weights, for each of the forms that candle quantises to.

#![allow(unsafe_code)]

use super::raw::Plain;
use candle_core::quantized::k_quants::GgmlType;
use half::f16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

mod blocks;
mod supers;

pub use blocks::{Q4_0, Q8_0};
pub use supers::{Q2K, Q4K};

/// Outputs stored together.
pub const LANES: usize = 16;
/// A value for every lane.
pub type Lanes<T> = [T; LANES];

/// Scales and minima of sixteen outputs. With `[d, m]` of [`Levels::ends`], a weight is
/// `d · scale · factor · (quant - OFFSET) - m · minimum`.
///
/// `block` is one of 32 inputs, `half` a half of it. What is asked for in registers, eight lanes or all, is the same.
pub trait Levels: Plain + Send + Sync {
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
    /// Whether both halves of a block have one minimum.
    const WHOLE_MINIMA: bool = false;
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
    unsafe fn scales256(&self, _codes: &Self::Codes, block: usize, lane: usize) -> x86::__m256 {
        // SAFETY: there are eight lanes from `lane` on.
        unsafe { x86::_mm256_loadu_ps(self.scales(block).as_ptr().add(lane)) }
    }

    /// Eight lanes of both halves of [`Levels::factors`].
    ///
    /// # Safety
    /// As [`Levels::scales256`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn factors256(&self, block: usize, lane: usize) -> [x86::__m256i; 2] {
        // SAFETY: there are eight lanes from `lane` on.
        [0, 1].map(|half| unsafe {
            x86::_mm256_loadu_si256(self.factors(block, half).as_ptr().add(lane).cast())
        })
    }

    /// Eight lanes of [`Levels::minima`].
    ///
    /// # Safety
    /// As [`Levels::scales256`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn minima256(&self, _codes: &Self::Codes, block: usize, lane: usize) -> x86::__m256i {
        // SAFETY: there are eight lanes from `lane` on.
        unsafe { x86::_mm256_loadu_si256(self.minima(block).as_ptr().add(lane).cast()) }
    }

    /// Eight lanes of [`Levels::ends`].
    ///
    /// # Safety
    /// As [`Levels::scales256`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn ends256(&self, lane: usize) -> [x86::__m256; 2] {
        // SAFETY: there are eight lanes from `lane` on.
        self.ends()
            .map(|ends| unsafe { x86::_mm256_loadu_ps(ends.as_ptr().add(lane)) })
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

fn lanes<T>(of: impl Fn(usize) -> T) -> Lanes<T> {
    std::array::from_fn(of)
}

/// In both halves of a word.
fn twice(value: u8) -> u32 {
    u32::from(value) | u32::from(value) << 16
}

/// Sixteen numbers in half precision.
#[derive(Clone, Copy)]
#[repr(transparent)]
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
