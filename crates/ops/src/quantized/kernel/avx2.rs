//! Eight lanes to a register: half a panel at a time.
#![allow(unsafe_code)]

use super::*;
use std::arch::x86_64::*;

/// # Safety
/// Every block has its lines.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<L: Levels>(
    panel: QuantPanel<L>,
    x: &QuantisedRows,
    start: usize,
    sums: &mut [[f32; LANES]],
) {
    let mut start = start;
    for sums in sums.chunks_mut(4) {
        for first in [0, LANES / 2] {
            // SAFETY: the caller's.
            unsafe {
                match sums.len() {
                    1 => tile::<L, 1>(panel, x, start, first, sums),
                    2 => tile::<L, 2>(panel, x, start, first, sums),
                    3 => tile::<L, 3>(panel, x, start, first, sums),
                    _ => tile::<L, 4>(panel, x, start, first, sums),
                }
            }
        }
        start += sums.len();
    }
}

/// # Safety
/// As [`run`]; `lane` is 0 or 8, the first of the eight lanes that are computed.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<L: Levels, const ROWS: usize>(
    panel: QuantPanel<L>,
    x: &QuantisedRows,
    start: usize,
    lane: usize,
    sums: &mut [[f32; LANES]],
) {
    // Steps until sums of products, which are in 16 bits, must be widened: 2 · 15 · 127 eight times, 2 · 45 · 127 twice, 2 · 128 · 127
    // once are below 2^15.
    let widened = match (L::FOLDED, L::BITS) {
        (true, _) => 2,
        (false, 8) => 1,
        _ => 8,
    };
    let mask = _mm256_set1_epi8((u8::MAX >> (8 - L::BITS)).cast_signed());
    let mut total = [_mm256_setzero_ps(); ROWS];
    for (at, (first, blocks)) in panel.supers().enumerate() {
        let rows: [_; ROWS] = std::array::from_fn(|row| x.part(start + row, at));
        let mut inner = [_mm256_setzero_ps(); ROWS];
        let mut minima = [_mm256_setzero_si256(); ROWS];
        let codes = panel.levels[first / L::BLOCKS].codes();
        for of_super in 0..blocks {
            let block = first + of_super;
            let (levels, of) = (&panel.levels[block / L::BLOCKS], block % L::BLOCKS);
            // SAFETY: the caller's.
            let lines = unsafe { panel.lines.as_ptr().add(block * L::BITS) };
            let mut dots = [_mm256_setzero_si256(); ROWS];
            // SAFETY: this function has the features.
            let (minimum, factors) = unsafe {
                (
                    match L::SUPER {
                        true => levels.minima256(&codes, of, lane),
                        false => _mm256_set1_epi16(-L::OFFSET),
                    },
                    match L::FOLDED {
                        true => levels.factors256(of, lane),
                        false => [mask; 2],
                    },
                )
            };
            for row in 0..ROWS {
                let sums =
                    _mm256_madd_epi16(minimum, _mm256_set1_epi32(pair(rows[row].sums[of_super])));
                match (L::SUPER, L::BITS) {
                    (true, _) => minima[row] = _mm256_add_epi32(minima[row], sums),
                    (false, 8) => {} // taken from the quants below
                    _ => dots[row] = sums,
                }
            }
            let mut short = [_mm256_setzero_si256(); ROWS];
            for (half, factor) in factors.into_iter().enumerate() {
                for step in 4 * half..4 * half + 4 {
                    // SAFETY: a block has as many lines as a quant has bits, and a line 32 bytes from `4 lane` on.
                    let line = unsafe {
                        _mm256_load_si256(lines.add(step * L::BITS / 8).byte_add(4 * lane).cast())
                    };
                    let line = match step * L::BITS % 8 {
                        2 => _mm256_srli_epi16::<2>(line),
                        4 => _mm256_srli_epi16::<4>(line),
                        6 => _mm256_srli_epi16::<6>(line),
                        _ => line,
                    };
                    let mut quants = _mm256_and_si256(line, mask);
                    if L::FOLDED {
                        quants = _mm256_mullo_epi16(quants, factor);
                    }
                    if L::BITS == 8 {
                        quants = _mm256_xor_si256(quants, _mm256_set1_epi8(i8::MIN));
                    }
                    for row in 0..ROWS {
                        let x = rows[row].quants[of_super][step];
                        let x = _mm256_set1_epi32(word(x));
                        // One side of a product of bytes has no sign: eight bits give theirs to x.
                        let products = match L::BITS {
                            8 => _mm256_maddubs_epi16(
                                _mm256_abs_epi8(quants),
                                _mm256_sign_epi8(x, quants),
                            ),
                            _ => _mm256_maddubs_epi16(quants, x),
                        };
                        short[row] = match step % widened {
                            0 => products,
                            _ => _mm256_add_epi16(short[row], products),
                        };
                        if step % widened == widened - 1 {
                            let wide = _mm256_madd_epi16(short[row], _mm256_set1_epi16(1));
                            dots[row] = _mm256_add_epi32(dots[row], wide);
                        }
                    }
                }
            }
            // SAFETY: this function has the features.
            let scale = unsafe { levels.scales256(&codes, of, lane) };
            for row in 0..ROWS {
                inner[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[row]), scale, inner[row]);
            }
        }
        if L::SUPER {
            // SAFETY: this function has the features.
            let [scale, minimum] = unsafe { panel.levels[first / L::BLOCKS].ends256(lane) };
            for row in 0..ROWS {
                inner[row] = _mm256_mul_ps(scale, inner[row]);
                inner[row] = _mm256_fnmadd_ps(minimum, _mm256_cvtepi32_ps(minima[row]), inner[row]);
            }
        }
        for row in 0..ROWS {
            total[row] = _mm256_fmadd_ps(inner[row], _mm256_set1_ps(rows[row].scale), total[row]);
        }
    }
    for (sums, total) in sums.iter_mut().zip(total) {
        // SAFETY: eight floats are written from `lane` on to an array of sixteen.
        unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(lane), total) };
    }
}
