//! Sixteen lanes to a register.
#![allow(unsafe_code)]

use super::*;
use std::arch::x86_64::*;

/// How far ahead lines are asked for where several rows share them, in lines: 16 KiB.
const AHEAD: usize = 256;
/// Bytes within which the processor's own look-ahead stays.
const PAGE: usize = 4096;

/// Asks for what the block's lines are followed by. One or two rows are computed so fast that the processor's own look-ahead keeps
/// every line coming, except at the start of a page: asking for more takes its places. With more rows it falls behind, so every
/// line is asked for, into the second cache. (What is in two bits is a bank, and lies in the cache.)
#[inline(always)]
fn ask_ahead<L: Levels, const ROWS: usize>(lines: *const QuantLine) {
    if L::BITS < 4 {
        return;
    }
    if ROWS > 2 {
        for line in 0..L::BITS {
            // SAFETY: a hint; no address is wrong for it.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(lines.wrapping_add(AHEAD + line).cast()) };
        }
        return;
    }
    let into_page = lines.addr() % PAGE;
    if into_page < L::BITS * size_of::<QuantLine>() {
        let next = lines.wrapping_byte_add(PAGE - into_page);
        for line in 0..L::BITS {
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast()) };
        }
    }
}

/// The high half of every word.
const HIGH_HALVES: u32 = 0xaaaa_aaaa;

/// # Safety
/// Every block has its lines.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn run<L: Levels>(
    panel: QuantPanel<L>,
    x: &QuantisedRows,
    start: usize,
    sums: &mut [[f32; LANES]],
) {
    // SAFETY: the caller's.
    unsafe {
        match sums.len() {
            0 => {}
            1 => tile::<L, 1>(panel, x, start, sums),
            2 => tile::<L, 2>(panel, x, start, sums),
            3 => tile::<L, 3>(panel, x, start, sums),
            4 => tile::<L, 4>(panel, x, start, sums),
            5 => tile::<L, 5>(panel, x, start, sums),
            6 => tile::<L, 6>(panel, x, start, sums),
            7 => tile::<L, 7>(panel, x, start, sums),
            _ => tile::<L, TILE>(panel, x, start, sums),
        }
    }
}

/// # Safety
/// As [`run`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<L: Levels, const ROWS: usize>(
    panel: QuantPanel<L>,
    x: &QuantisedRows,
    start: usize,
    sums: &mut [[f32; LANES]],
) {
    let mask = _mm512_set1_epi8((u8::MAX >> (8 - L::BITS)).cast_signed());
    let offset = _mm512_set1_epi16(-L::OFFSET);
    let mut total = [_mm512_setzero_ps(); ROWS];
    for (at, (first, blocks)) in panel.supers().enumerate() {
        let rows: [_; ROWS] = std::array::from_fn(|row| x.part(start + row, at));
        let mut inner = [_mm512_setzero_ps(); ROWS];
        let codes = panel.levels[first / L::BLOCKS].codes();
        for of_super in 0..blocks {
            let block = first + of_super;
            let (levels, of) = (&panel.levels[block / L::BLOCKS], block % L::BLOCKS);
            // SAFETY: the caller's.
            let lines = unsafe { panel.lines.as_ptr().add(block * L::BITS) };
            ask_ahead::<L, ROWS>(lines);
            let mut dots = [_mm512_setzero_si512(); ROWS];
            let factors = match L::FOLDED {
                // SAFETY: this function has the features.
                true => unsafe { levels.factors512(of) },
                false => [mask; 2],
            };
            for (half, factor) in factors.into_iter().enumerate() {
                for step in 4 * half..4 * half + 4 {
                    // SAFETY: a block has as many lines as a quant has bits.
                    let line = unsafe { _mm512_load_si512(lines.add(step * L::BITS / 8).cast()) };
                    let line = match step * L::BITS % 8 {
                        2 => _mm512_srli_epi16::<2>(line),
                        4 => _mm512_srli_epi16::<4>(line),
                        6 => _mm512_srli_epi16::<6>(line),
                        _ => line,
                    };
                    let mut quants = _mm512_and_si512(line, mask);
                    if L::FOLDED {
                        // Two quants of a word at once: neither product is more than a byte.
                        quants = _mm512_mullo_epi16(quants, factor);
                    }
                    for row in 0..ROWS {
                        let x = rows[row].quants[of_super][step];
                        dots[row] =
                            _mm512_dpbusd_epi32(dots[row], quants, _mm512_set1_epi32(word(x)));
                    }
                }
            }
            // SAFETY: this function has the features.
            let scale = unsafe { levels.scales512(&codes, of) };
            for row in 0..ROWS {
                if L::OFFSET != 0 {
                    let sums = _mm512_set1_epi32(pair(rows[row].sums[of_super]));
                    dots[row] = _mm512_dpwssd_epi32(dots[row], offset, sums);
                }
                inner[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[row]), scale, inner[row]);
            }
        }
        if L::SUPER {
            let levels = &panel.levels[first / L::BLOCKS];
            let mut minima = [_mm512_setzero_si512(); ROWS];
            if L::WHOLE_MINIMA {
                // One instruction for two blocks.
                for block in (0..BLOCKS).step_by(2) {
                    // SAFETY: this function has the features.
                    let [low, high] =
                        [block, block + 1].map(|block| unsafe { levels.minima512(&codes, block) });
                    let minimum = _mm512_mask_blend_epi16(HIGH_HALVES, low, high);
                    for row in 0..ROWS {
                        let sums = [block, block + 1].map(|block| rows[row].whole[block]);
                        let sums = _mm512_set1_epi32(pair(sums));
                        minima[row] = _mm512_dpwssd_epi32(minima[row], minimum, sums);
                    }
                }
            } else {
                for block in 0..BLOCKS {
                    // SAFETY: this function has the features.
                    let minimum = unsafe { levels.minima512(&codes, block) };
                    for row in 0..ROWS {
                        let sums = _mm512_set1_epi32(pair(rows[row].sums[block]));
                        minima[row] = _mm512_dpwssd_epi32(minima[row], minimum, sums);
                    }
                }
            }
            // SAFETY: as above.
            let [scale, minimum] = unsafe { levels.ends512() };
            for row in 0..ROWS {
                inner[row] = _mm512_mul_ps(scale, inner[row]);
                inner[row] = _mm512_fnmadd_ps(minimum, _mm512_cvtepi32_ps(minima[row]), inner[row]);
            }
        }
        for row in 0..ROWS {
            total[row] = _mm512_fmadd_ps(inner[row], _mm512_set1_ps(rows[row].scale), total[row]);
        }
    }
    for (sums, total) in sums.iter_mut().zip(total) {
        // SAFETY: sixteen floats are written to an array of sixteen.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
    }
}
