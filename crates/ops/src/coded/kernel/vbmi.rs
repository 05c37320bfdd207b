//! Eight rows of a code to a register, eight weights of each.
#![allow(unsafe_code)]

use super::*;
use std::arch::x86_64::*;

/// # Safety
/// Rows of x have the panel's chunks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2")]
pub unsafe fn run(panel: CodePanel, x: &RotatedRows, start: usize, sums: &mut [[i32; LANES]]) {
    // SAFETY: the caller's.
    unsafe {
        match panel.rate {
            Rate::Quarter => of_rate::<1, 4>(panel, x, start, sums),
            Rate::Half => of_rate::<1, 2>(panel, x, start, sums),
            Rate::One => of_rate::<1, 1>(panel, x, start, sums),
            Rate::Two => of_rate::<2, 1>(panel, x, start, sums),
            Rate::Three => of_rate::<3, 1>(panel, x, start, sums),
            Rate::Four => of_rate::<4, 1>(panel, x, start, sums),
        }
    }
}

/// # Safety
/// As [`run`]; a step has `K` bits and `M` weights.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2")]
unsafe fn of_rate<const K: usize, const M: usize>(
    panel: CodePanel,
    x: &RotatedRows,
    start: usize,
    sums: &mut [[i32; LANES]],
) {
    // SAFETY: the caller's.
    unsafe {
        match sums.len() {
            0 => {}
            1 => tile::<K, M, 1>(panel, x, start, sums),
            2 => tile::<K, M, 2>(panel, x, start, sums),
            3 => tile::<K, M, 3>(panel, x, start, sums),
            4 => tile::<K, M, 4>(panel, x, start, sums),
            5 => tile::<K, M, 5>(panel, x, start, sums),
            6 => tile::<K, M, 6>(panel, x, start, sums),
            7 => tile::<K, M, 7>(panel, x, start, sums),
            _ => tile::<K, M, TILE>(panel, x, start, sums),
        }
    }
}

/// # Safety
/// As [`of_rate`], with `ROWS` sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2")]
unsafe fn tile<const K: usize, const M: usize, const ROWS: usize>(
    panel: CodePanel,
    x: &RotatedRows,
    start: usize,
    sums: &mut [[i32; LANES]],
) {
    // One side of a product of bytes has no sign: weights are 128 too much, which the sums of x take off again. (What has
    // registers stays out of closures, which others cannot inline.)
    let offset = _mm512_set1_epi8(i8::MIN);
    let mut tables = [[_mm512_setzero_si512(); 2]; M];
    for (halves, table) in tables.iter_mut().zip(panel.rate.tables()) {
        for (at, half) in halves.iter_mut().enumerate() {
            // SAFETY: a table has 128 bytes.
            let weights = unsafe { _mm512_loadu_si512(table.as_ptr().add(64 * at).cast()) };
            *half = _mm512_xor_si512(weights, offset);
        }
    }
    let rows: [*const i8; ROWS] = std::array::from_fn(|row| x.row(start + row).as_ptr());
    let (across, chunks) = (panel.words.len() / 2, panel.chunks());
    let mut total = [[_mm512_setzero_si512(); 2]; ROWS];
    for chunk in 0..chunks {
        // The chunk's words of both groups of eight rows, and the next one.
        let mut words = [[_mm512_setzero_si512(); 2]; 5];
        for group in 0..2 {
            for at in 0..K {
                // SAFETY: a group has `across` words, K to a chunk.
                words[at][group] = unsafe {
                    let words = panel.words.as_ptr().add(group * across + chunk * K + at);
                    _mm512_load_si512(words.cast())
                };
            }
            words[K][group] = if chunk + 1 < chunks {
                // SAFETY: there is another chunk.
                unsafe {
                    let words = panel.words.as_ptr().add(group * across + chunk * K + K);
                    _mm512_load_si512(words.cast())
                }
            } else {
                // SAFETY: eight bytes.
                _mm512_cvtepu8_epi64(unsafe { _mm_loadl_epi64(panel.ends[group].as_ptr().cast()) })
            };
        }
        macro_rules! eight_steps {
            ($($i:literal)*) => {$({
                let (at, bit) = (8 * K * $i / 64, 8 * K * $i % 64);
                // Windows of a word that do not reach into the next one are taken where they are.
                let inside = bit + 7 * K + WINDOW <= 64;
                let from = if inside { bit as i64 } else { 0 };
                let step = K as i64;
                let first = from | (from + step) << 8 | (from + 2 * step) << 16 | (from + 3 * step) << 24;
                let control = _mm512_set1_epi64(first | (first + 0x0101_0101 * 4 * step) << 32);
                let mut windows = words[at];
                if !inside {
                    for group in 0..2 {
                        let by = _mm512_set1_epi64(bit as i64);
                        windows[group] = _mm512_shrdv_epi64(words[at][group], words[at + 1][group], by);
                    }
                }
                for group in 0..2 {
                    windows[group] = _mm512_multishift_epi64_epi8(control, windows[group]);
                }
                for j in 0..M {
                    let weights = [
                        _mm512_permutex2var_epi8(tables[j][0], windows[0], tables[j][1]),
                        _mm512_permutex2var_epi8(tables[j][0], windows[1], tables[j][1]),
                    ];
                    for row in 0..ROWS {
                        // SAFETY: rows have all chunks.
                        let x = _mm512_set1_epi64(unsafe {
                            rows[row].add(((chunk * 8 + $i) * M + j) * 8).cast::<i64>().read_unaligned()
                        });
                        for group in 0..2 {
                            total[row][group] = _mm512_dpbusd_epi32(total[row][group], weights[group], x);
                        }
                    }
                }
            })*};
        }
        eight_steps!(0 1 2 3 4 5 6 7);
    }
    for row in 0..ROWS {
        let offset = _mm256_set1_epi32(x.facts(start + row).sum.wrapping_mul(128));
        for group in 0..2 {
            // A row's two halves of four weights.
            let total = total[row][group];
            let total = _mm512_add_epi32(total, _mm512_srli_epi64::<32>(total));
            let total = _mm256_sub_epi32(_mm512_cvtepi64_epi32(total), offset);
            // SAFETY: eight numbers go to one half of sixteen.
            unsafe { _mm256_storeu_si256(sums[row].as_mut_ptr().add(GROUP * group).cast(), total) };
        }
    }
}

/// # Safety
/// There are as many sums as rows, and all of these have the lines' inputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn nibbles(lines: &[ThinLine], x: &[&[[i8; DEEP]]], sums: &mut [[i32; LANES]]) {
    // SAFETY: the caller's.
    unsafe {
        match sums.len() {
            0 => {}
            1 => nibbles_of::<1>(lines, x, sums),
            2 => nibbles_of::<2>(lines, x, sums),
            3 => nibbles_of::<3>(lines, x, sums),
            4 => nibbles_of::<4>(lines, x, sums),
            5 => nibbles_of::<5>(lines, x, sums),
            6 => nibbles_of::<6>(lines, x, sums),
            7 => nibbles_of::<7>(lines, x, sums),
            _ => nibbles_of::<TILE>(lines, x, sums),
        }
    }
}

/// # Safety
/// As [`nibbles`], with `ROWS` sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn nibbles_of<const ROWS: usize>(
    lines: &[ThinLine],
    x: &[&[[i8; DEEP]]],
    sums: &mut [[i32; LANES]],
) {
    let low = _mm512_set1_epi8(15);
    let rows: [*const [i8; DEEP]; ROWS] = std::array::from_fn(|row| x[row].as_ptr());
    let mut total = [_mm512_setzero_si512(); ROWS];
    for (at, line) in lines.iter().enumerate() {
        // SAFETY: a line is 64 bytes.
        let line = unsafe { _mm512_load_si512(std::ptr::from_ref(line).cast()) };
        let first = _mm512_and_si512(line, low);
        let second = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low);
        for (row, total) in rows.iter().zip(&mut total) {
            // SAFETY: rows have all inputs.
            let (a, b) = unsafe {
                let x = row.add(at).cast::<i32>();
                (x.read_unaligned(), x.add(1).read_unaligned())
            };
            *total = _mm512_dpbusd_epi32(*total, first, _mm512_set1_epi32(a));
            *total = _mm512_dpbusd_epi32(*total, second, _mm512_set1_epi32(b));
        }
    }
    for (sums, total) in sums.iter_mut().zip(total) {
        // SAFETY: sixteen numbers.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), total) };
    }
}
