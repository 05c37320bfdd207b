//! Blocks with one scale.
#![allow(unsafe_code)]

use super::{Halves, Lanes, Levels, Plain, half};
use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ8_0};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

/// The methods of a form whose blocks have one scale.
macro_rules! one_scale {
    () => {
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
        unsafe fn scales256(&self, _: &(), _: usize, lane: usize) -> x86::__m256 {
            // SAFETY: the caller's.
            unsafe { self.0.half(lane) }
        }

        type Codes = ();
        fn codes(&self) {}
    };
}

/// 4.5 bits: one scale to 32 inputs.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Q4_0(Halves);

// SAFETY: sixteen numbers of two bytes.
unsafe impl Plain for Q4_0 {}

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

    one_scale!();
}

/// 8.5 bits: one scale to 32 inputs.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Q8_0(Halves);

// SAFETY: sixteen numbers of two bytes.
unsafe impl Plain for Q8_0 {}

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

    one_scale!();
}
