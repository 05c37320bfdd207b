//! The inner loop: up to [`TILE`] rows of x with one panel of outputs.

use super::{HALVES, LINES, Line, PANEL};
use crate::isa::{Isa, Set};

/// Rows computed together: with AVX-512 four registers each, so that eight loads feed 24 multiply-adds, and even one row
/// has four chains to hide their latency.
pub const TILE: usize = 6;

/// `sums[r] = x[r] W^T` for the panel's outputs; x holds as many rows of the panel's inputs as there are sums.
#[allow(unsafe_code)]
pub fn run(isa: Isa, panel: &[Line], x: &[f32], sums: &mut [[f32; PANEL]]) {
    assert!(sums.len() <= TILE && x.len() * LINES == panel.len() * sums.len());
    match isa.set() {
        Set::Portable => portable(panel, x, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: whoever has this value has asked the processor for its instructions; lengths were checked above.
        Set::Avx2 => unsafe { x86::avx2(panel, x, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Set::Avx512 => unsafe { x86::avx512(panel, x, sums) },
    }
}

fn portable(panel: &[Line], x: &[f32], sums: &mut [[f32; PANEL]]) {
    for (x, sums) in x.chunks_exact(panel.len() / LINES).zip(sums) {
        *sums = [0.0; PANEL];
        for (lines, x) in panel.chunks_exact(LINES).zip(x) {
            for (line, sums) in lines.iter().zip(sums.chunks_exact_mut(HALVES)) {
                let (low, high) = sums.split_at_mut(HALVES / 2);
                for ((word, low), high) in line.0.iter().zip(low).zip(high) {
                    *low = x.mul_add(f32::from_bits(word << 16), *low);
                    *high = x.mul_add(f32::from_bits(word & 0xffff_0000), *high);
                }
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
    /// x has an element for every [`LINES`] lines of the panel and each of the sums.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(panel: &[Line], x: &[f32], sums: &mut [[f32; PANEL]]) {
        // SAFETY: the caller's.
        unsafe {
            match sums.len() {
                0 => {}
                1 => avx512_rows::<1>(panel, x, sums),
                2 => avx512_rows::<2>(panel, x, sums),
                3 => avx512_rows::<3>(panel, x, sums),
                4 => avx512_rows::<4>(panel, x, sums),
                5 => avx512_rows::<5>(panel, x, sums),
                _ => avx512_rows::<TILE>(panel, x, sums),
            }
        }
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` sums.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_rows<const ROWS: usize>(panel: &[Line], x: &[f32], sums: &mut [[f32; PANEL]]) {
        let (input, x) = (panel.len() / LINES, x.as_ptr());
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut total = [[_mm512_setzero_ps(); 2 * LINES]; ROWS];
        for k in 0..input {
            let mut weights = [_mm512_setzero_ps(); 2 * LINES];
            for line in 0..LINES {
                // SAFETY: k < input, and every input has its lines.
                let both =
                    unsafe { _mm512_load_si512(panel.as_ptr().add(k * LINES + line).cast()) };
                weights[2 * line] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both));
                weights[2 * line + 1] = _mm512_castsi512_ps(_mm512_and_si512(both, high));
            }
            for (row, total) in total.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let x = _mm512_set1_ps(unsafe { *x.add(row * input + k) });
                for (total, weights) in total.iter_mut().zip(weights) {
                    *total = _mm512_fmadd_ps(x, weights, *total);
                }
            }
        }
        for (sums, total) in sums.iter_mut().zip(total) {
            for (part, total) in total.into_iter().enumerate() {
                // SAFETY: sixteen floats, four times, go to an array of sixty-four.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr().add(16 * part), total) };
            }
        }
    }

    /// # Safety
    /// As [`avx512`].
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(panel: &[Line], x: &[f32], sums: &mut [[f32; PANEL]]) {
        // A quarter of a panel and four rows of two registers: eight sums.
        for (x, sums) in x.chunks(4 * (panel.len() / LINES)).zip(sums.chunks_mut(4)) {
            for (line, word) in [(0, 0), (0, 8), (1, 0), (1, 8)] {
                // SAFETY: the caller's; these are some of its rows.
                unsafe {
                    match sums.len() {
                        1 => avx2_rows::<1>(panel, x, (line, word), sums),
                        2 => avx2_rows::<2>(panel, x, (line, word), sums),
                        3 => avx2_rows::<3>(panel, x, (line, word), sums),
                        _ => avx2_rows::<4>(panel, x, (line, word), sums),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` sums; of each those are computed that lie in eight words from `word`, 0 or 8, of line `line`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_rows<const ROWS: usize>(
        panel: &[Line],
        x: &[f32],
        (line, word): (usize, usize),
        sums: &mut [[f32; PANEL]],
    ) {
        let (input, x) = (panel.len() / LINES, x.as_ptr());
        let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
        for k in 0..input {
            // SAFETY: k < input, every input has its lines, and a line eight words from `word` on.
            let both = unsafe {
                let line = panel.as_ptr().add(k * LINES + line);
                _mm256_loadu_si256(line.cast::<u32>().add(word).cast())
            };
            let weights = [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)),
                _mm256_castsi256_ps(_mm256_and_si256(both, high)),
            ];
            for (row, total) in total.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let x = _mm256_set1_ps(unsafe { *x.add(row * input + k) });
                *total = [
                    _mm256_fmadd_ps(x, weights[0], total[0]),
                    _mm256_fmadd_ps(x, weights[1], total[1]),
                ];
            }
        }
        for (sums, total) in sums.iter_mut().zip(total) {
            for (half, total) in total.into_iter().enumerate() {
                // SAFETY: `word + 8` is 16 at most, so eight floats lie in each half of the line's thirty-two.
                unsafe {
                    _mm256_storeu_ps(
                        sums.as_mut_ptr().add(line * HALVES + 16 * half + word),
                        total,
                    )
                };
            }
        }
    }
}
