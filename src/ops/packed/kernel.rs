//! The inner loop: up to [`TILE`] rows of x with one panel of outputs. Every sum is one chain of fused multiply-adds
//! over the inputs in order, with every instruction set.

use super::PANEL;
use crate::ops::isa::Isa;

/// Rows computed together: with AVX-512 two registers each, so that ten loads feed sixteen multiply-adds, whose latency
/// they hide.
pub const TILE: usize = 8;

/// `sums[r] = x[r] W^T` for the panel's outputs; x holds as many rows of `input` elements as there are sums.
#[allow(unsafe_code)]
pub fn run(isa: Isa, panel: &[f32], x: &[f32], input: usize, sums: &mut [[f32; PANEL]]) {
    assert!(sums.len() <= TILE && panel.len() == input * PANEL && x.len() == input * sums.len());
    match isa {
        Isa::Portable => portable(panel, x, input, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: whoever has this value has asked the processor for its instructions; lengths were checked above.
        Isa::Avx2 => unsafe { x86::avx2(panel, x, input, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { x86::avx512(panel, x, input, sums) },
    }
}

fn portable(panel: &[f32], x: &[f32], input: usize, sums: &mut [[f32; PANEL]]) {
    for (x, sums) in x.chunks_exact(input).zip(sums) {
        *sums = [0.0; PANEL];
        for (step, x) in panel.chunks_exact(PANEL).zip(x) {
            for (sum, weight) in sums.iter_mut().zip(step) {
                *sum = x.mul_add(*weight, *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    /// # Safety
    /// `panel` has `input * PANEL` elements, x `input` for each of the sums, of which there are at most [`TILE`].
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(panel: &[f32], x: &[f32], input: usize, sums: &mut [[f32; PANEL]]) {
        // SAFETY: the caller's.
        unsafe {
            match sums.len() {
                0 => {}
                1 => avx512_rows::<1>(panel, x, input, sums),
                2 => avx512_rows::<2>(panel, x, input, sums),
                3 => avx512_rows::<3>(panel, x, input, sums),
                4 => avx512_rows::<4>(panel, x, input, sums),
                5 => avx512_rows::<5>(panel, x, input, sums),
                6 => avx512_rows::<6>(panel, x, input, sums),
                7 => avx512_rows::<7>(panel, x, input, sums),
                _ => avx512_rows::<TILE>(panel, x, input, sums),
            }
        }
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` sums.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_rows<const ROWS: usize>(panel: &[f32], x: &[f32], input: usize, sums: &mut [[f32; PANEL]]) {
        let (panel, x) = (panel.as_ptr(), x.as_ptr());
        let mut total = [[_mm512_setzero_ps(); 2]; ROWS];
        for k in 0..input {
            // SAFETY: k < input, and every read lies inside what the caller promises.
            unsafe {
                let weights = [0, 16].map(|half| _mm512_loadu_ps(panel.add(k * PANEL + half)));
                for (row, total) in total.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*x.add(row * input + k));
                    *total = [
                        _mm512_fmadd_ps(x, weights[0], total[0]),
                        _mm512_fmadd_ps(x, weights[1], total[1]),
                    ];
                }
            }
        }
        for (sums, total) in sums.iter_mut().zip(total) {
            // SAFETY: twice sixteen floats go to an array of thirty-two.
            unsafe {
                _mm512_storeu_ps(sums.as_mut_ptr(), total[0]);
                _mm512_storeu_ps(sums.as_mut_ptr().add(16), total[1]);
            }
        }
    }

    /// # Safety
    /// As [`avx512`].
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(panel: &[f32], x: &[f32], input: usize, sums: &mut [[f32; PANEL]]) {
        // Half a panel and four rows of two registers: eight sums, and room for the rest of what sixteen registers must hold.
        for (x, sums) in x.chunks(4 * input).zip(sums.chunks_mut(4)) {
            for half in [0, PANEL / 2] {
                // SAFETY: the caller's; these are some of its rows.
                unsafe {
                    match sums.len() {
                        1 => avx2_rows::<1>(panel, x, input, half, sums),
                        2 => avx2_rows::<2>(panel, x, input, half, sums),
                        3 => avx2_rows::<3>(panel, x, input, half, sums),
                        _ => avx2_rows::<4>(panel, x, input, half, sums),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` sums; of each the sixteen from `half` on are computed, which is 0 or 16.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_rows<const ROWS: usize>(
        panel: &[f32],
        x: &[f32],
        input: usize,
        half: usize,
        sums: &mut [[f32; PANEL]],
    ) {
        let (panel, x) = (panel.as_ptr(), x.as_ptr());
        let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
        for k in 0..input {
            // SAFETY: k < input, and every read lies inside what the caller promises.
            unsafe {
                let weights = [0, 8].map(|part| _mm256_loadu_ps(panel.add(k * PANEL + half + part)));
                for (row, total) in total.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.add(row * input + k));
                    *total = [
                        _mm256_fmadd_ps(x, weights[0], total[0]),
                        _mm256_fmadd_ps(x, weights[1], total[1]),
                    ];
                }
            }
        }
        for (sums, total) in sums.iter_mut().zip(total) {
            // SAFETY: twice eight floats go to one half of an array of thirty-two.
            unsafe {
                _mm256_storeu_ps(sums.as_mut_ptr().add(half), total[0]);
                _mm256_storeu_ps(sums.as_mut_ptr().add(half + 8), total[1]);
            }
        }
    }
}
