//! The inner loop, once for every instruction set; all give the same bits.

use super::{BLOCK, BLOCKS, LANES, Levels, Panel, Rows};
use crate::ops::isa::Isa;

/// Rows computed together.
pub const TILE: usize = 8;

/// Sums of up to [`TILE`] rows of x, from `start`, with sixteen outputs: `panels` and their `levels` are those of all
/// super-blocks in order.
#[allow(unsafe_code)]
pub fn run(isa: Isa, panels: &[Panel], levels: &[Levels], x: &Rows, start: usize, sums: &mut [[f32; LANES]]) {
    match isa {
        Isa::Portable => portable(panels, levels, x, start, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: whoever has this value has asked the processor for its instructions.
        Isa::Avx2 => unsafe { x86::avx2(panels, levels, x, start, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { x86::avx512(panels, levels, x, start, sums) },
    }
}

fn portable(panels: &[Panel], levels: &[Levels], x: &Rows, start: usize, sums: &mut [[f32; LANES]]) {
    for (row, sums) in (start..).zip(sums) {
        for (at, (panel, levels)) in panels.iter().zip(levels).enumerate() {
            let (quants, block_sums, scale) = x.part(row, at);
            for (lane, sum) in sums.iter_mut().enumerate() {
                let mut inner = 0f32;
                for block in 0..BLOCKS {
                    let product = |i: usize| {
                        i32::from(panel.quant(lane, block * BLOCK + i))
                            * i32::from(quants[(block * BLOCK + i) / 4][i % 4])
                    };
                    let dot: i32 = (0..BLOCK).map(product).sum();
                    inner = (dot as f32).mul_add(levels.scale[block][lane], inner);
                    inner = (-levels.minimum[block][lane]).mul_add(block_sums[block], inner);
                }
                *sum = inner.mul_add(scale, *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    /// Four inputs of x as a word.
    #[inline(always)]
    fn word(quants: [i8; 4]) -> i32 {
        i32::from_le_bytes(quants.map(i8::cast_unsigned))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn avx512(panels: &[Panel], levels: &[Levels], x: &Rows, start: usize, sums: &mut [[f32; LANES]]) {
        match sums.len() {
            0 => {}
            1 => avx512_tile::<1>(panels, levels, x, start, sums),
            2 => avx512_tile::<2>(panels, levels, x, start, sums),
            3 => avx512_tile::<3>(panels, levels, x, start, sums),
            4 => avx512_tile::<4>(panels, levels, x, start, sums),
            5 => avx512_tile::<5>(panels, levels, x, start, sums),
            6 => avx512_tile::<6>(panels, levels, x, start, sums),
            7 => avx512_tile::<7>(panels, levels, x, start, sums),
            _ => avx512_tile::<TILE>(panels, levels, x, start, sums),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn avx512_tile<const ROWS: usize>(
        panels: &[Panel],
        levels: &[Levels],
        x: &Rows,
        start: usize,
        sums: &mut [[f32; LANES]],
    ) {
        let mask = _mm512_set1_epi8(15);
        let mut total = [_mm512_setzero_ps(); ROWS];
        for (at, (panel, levels)) in panels.iter().zip(levels).enumerate() {
            let rows: [_; ROWS] = std::array::from_fn(|row| x.part(start + row, at));
            let mut inner = [_mm512_setzero_ps(); ROWS];
            for block in 0..BLOCKS {
                let mut dots = [_mm512_setzero_si512(); ROWS];
                for group in 0..4 {
                    // SAFETY: a block has 256 bytes, of which `64 group ..` are read; unaligned loads may read anywhere.
                    let both = unsafe { _mm512_loadu_si512(panel.quants[block].as_ptr().add(64 * group).cast()) };
                    let low = _mm512_and_si512(both, mask);
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
                    let first = block * (BLOCK / 4) + group;
                    for row in 0..ROWS {
                        let quants = rows[row].0;
                        dots[row] = _mm512_dpbusd_epi32(dots[row], low, _mm512_set1_epi32(word(quants[first])));
                        dots[row] =
                            _mm512_dpbusd_epi32(dots[row], high, _mm512_set1_epi32(word(quants[first + BLOCK / 8])));
                    }
                }
                // SAFETY: a block has sixteen scales and sixteen minima.
                let (scale, minimum) = unsafe {
                    (
                        _mm512_loadu_ps(levels.scale[block].as_ptr()),
                        _mm512_loadu_ps(levels.minimum[block].as_ptr()),
                    )
                };
                for row in 0..ROWS {
                    inner[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[row]), scale, inner[row]);
                    inner[row] = _mm512_fnmadd_ps(minimum, _mm512_set1_ps(rows[row].1[block]), inner[row]);
                }
            }
            for row in 0..ROWS {
                total[row] = _mm512_fmadd_ps(inner[row], _mm512_set1_ps(rows[row].2), total[row]);
            }
        }
        for (sums, total) in sums.iter_mut().zip(total) {
            // SAFETY: sixteen floats are written to an array of sixteen.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(panels: &[Panel], levels: &[Levels], x: &Rows, start: usize, sums: &mut [[f32; LANES]]) {
        let mut start = start;
        for sums in sums.chunks_mut(2) {
            match sums {
                [_, _] => avx2_tile::<2>(panels, levels, x, start, sums),
                _ => avx2_tile::<1>(panels, levels, x, start, sums),
            }
            start += sums.len();
        }
    }

    #[expect(clippy::needless_range_loop, reason = "the two halves of four arrays")]
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn avx2_tile<const ROWS: usize>(
        panels: &[Panel],
        levels: &[Levels],
        x: &Rows,
        start: usize,
        sums: &mut [[f32; LANES]],
    ) {
        let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
        for (at, (panel, levels)) in panels.iter().zip(levels).enumerate() {
            let rows: [_; ROWS] = std::array::from_fn(|row| x.part(start + row, at));
            let mut inner = [[_mm256_setzero_ps(); 2]; ROWS];
            for block in 0..BLOCKS {
                let mut dots = [[_mm256_setzero_si256(); 2]; ROWS];
                for group in 0..4 {
                    let first = block * (BLOCK / 4) + group;
                    for half in 0..2 {
                        // SAFETY: a block has 256 bytes, of which `64 group + 32 half ..` are read.
                        let both = unsafe {
                            _mm256_loadu_si256(panel.quants[block].as_ptr().add(64 * group + 32 * half).cast())
                        };
                        let low = _mm256_and_si256(both, mask);
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
                        for row in 0..ROWS {
                            let quants = rows[row].0;
                            // At most 2 · 15 · 127, four times: no sum of 16 bits overflows.
                            let a = _mm256_maddubs_epi16(low, _mm256_set1_epi32(word(quants[first])));
                            let b = _mm256_maddubs_epi16(high, _mm256_set1_epi32(word(quants[first + BLOCK / 8])));
                            let pairs = _mm256_madd_epi16(_mm256_add_epi16(a, b), ones);
                            dots[row][half] = _mm256_add_epi32(dots[row][half], pairs);
                        }
                    }
                }
                for half in 0..2 {
                    // SAFETY: a block has sixteen scales and sixteen minima, of which eight are read from `8 half`.
                    let (scale, minimum) = unsafe {
                        (
                            _mm256_loadu_ps(levels.scale[block].as_ptr().add(8 * half)),
                            _mm256_loadu_ps(levels.minimum[block].as_ptr().add(8 * half)),
                        )
                    };
                    for row in 0..ROWS {
                        let dot = _mm256_cvtepi32_ps(dots[row][half]);
                        inner[row][half] = _mm256_fmadd_ps(dot, scale, inner[row][half]);
                        inner[row][half] =
                            _mm256_fnmadd_ps(minimum, _mm256_set1_ps(rows[row].1[block]), inner[row][half]);
                    }
                }
            }
            for row in 0..ROWS {
                for half in 0..2 {
                    total[row][half] = _mm256_fmadd_ps(inner[row][half], _mm256_set1_ps(rows[row].2), total[row][half]);
                }
            }
        }
        for (sums, total) in sums.iter_mut().zip(total) {
            for (half, total) in total.into_iter().enumerate() {
                // SAFETY: eight floats are written from `8 half` to an array of sixteen.
                unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(8 * half), total) };
            }
        }
    }
}
