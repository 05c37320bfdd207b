//! A row of a code is decoded once for all rows of x of a tile, four steps to a look into a table where a step has one bit, then
//! multiplied 32 weights at a time.
#![allow(unsafe_code)]

use super::*;
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// Chunks decoded together.
const CHUNKS: usize = 8;
/// Steps to a look.
const LOOK: usize = 4;
/// What a look finds: the weights of four steps from one table, by the bits of their windows where a step has one bit.
type Looks = Vec<[[u8; LOOK]; 1 << (WINDOW + LOOK - 1)]>;

/// By table.
fn looks(rate: Rate) -> &'static Looks {
    static LOOKS: [LazyLock<Looks>; 3] = [
        LazyLock::new(|| made(Rate::Quarter)),
        LazyLock::new(|| made(Rate::Half)),
        LazyLock::new(|| made(Rate::One)),
    ];
    &LOOKS[match rate {
        Rate::Quarter => 0,
        Rate::Half => 1,
        _ => 2,
    }]
}

fn made(rate: Rate) -> Looks {
    let found = |table: &[i8; 128]| {
        std::array::from_fn(|bits| {
            std::array::from_fn(|step| table[bits >> step & 127].cast_unsigned())
        })
    };
    rate.tables().iter().map(found).collect()
}

/// The weights of `chunks` of one row, in the order of x.
fn decode(panel: CodePanel, lane: usize, chunks: std::ops::Range<usize>, weights: &mut [u8]) {
    let (bits, tables) = (panel.rate.step_bits(), panel.rate.tables());
    let eights = weights.chunks_exact_mut(8 * tables.len());
    for (eight, weights) in (8 * chunks.start..8 * chunks.end).zip(eights) {
        let stream = panel.bits(lane, 8 * eight);
        if bits == 1 {
            let most = (1 << (WINDOW + LOOK - 1)) - 1;
            let [first, second] = [stream as usize & most, stream as usize >> LOOK & most];
            for (looks, weights) in looks(panel.rate).iter().zip(weights.as_chunks_mut::<8>().0) {
                weights[..LOOK].copy_from_slice(&looks[first]);
                weights[LOOK..].copy_from_slice(&looks[second]);
            }
            continue;
        }
        for (step, weight) in weights.iter_mut().enumerate() {
            *weight = tables[0][(stream >> (bits * step)) as usize & 127].cast_unsigned();
        }
    }
}

/// # Safety
/// Rows of x have the panel's chunks.
#[target_feature(enable = "avx2")]
pub unsafe fn run(panel: CodePanel, x: &RotatedRows, start: usize, sums: &mut [[i32; LANES]]) {
    let (width, chunks) = (CHUNK * panel.rate.step_weights(), panel.chunks());
    let mut weights = [0; CHUNKS * CHUNK * 4];
    sums.iter_mut().for_each(|sums| *sums = [0; LANES]);
    for lane in 0..LANES {
        for first in (0..chunks).step_by(CHUNKS) {
            let part = first..chunks.min(first + CHUNKS);
            let weights = &mut weights[..part.len() * width];
            decode(panel, lane, part, weights);
            for (row, sums) in (start..).zip(&mut *sums) {
                let x = &x.row(row)[first * width..][..weights.len()];
                // SAFETY: this function has the features.
                sums[lane] = sums[lane].wrapping_add(unsafe { dot(weights, x) });
            }
        }
    }
}

/// Products of bytes that both have a sign, as many as there are, a multiple of 64.
///
/// # Safety
/// The processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot(weights: &[u8], x: &[i8]) -> i32 {
    let mut total = _mm256_setzero_si256();
    for (weights, x) in weights
        .as_chunks::<32>()
        .0
        .iter()
        .zip(x.as_chunks::<32>().0)
    {
        // SAFETY: 32 bytes each.
        let (weights, x) = unsafe {
            (
                _mm256_loadu_si256(weights.as_ptr().cast()),
                _mm256_loadu_si256(x.as_ptr().cast()),
            )
        };
        // 2 · 128 · 127 is below 2^15.
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
        total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    sum(total)
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum(total: __m256i) -> i32 {
    let total = _mm_add_epi32(
        _mm256_castsi256_si128(total),
        _mm256_extracti128_si256::<1>(total),
    );
    let total = _mm_add_epi32(total, _mm_srli_si128::<8>(total));
    let total = _mm_add_epi32(total, _mm_srli_si128::<4>(total));
    _mm_cvtsi128_si32(total)
}

/// # Safety
/// There are as many sums as rows, and all of these have the lines' inputs.
#[target_feature(enable = "avx2")]
pub unsafe fn nibbles(lines: &[ThinLine], x: &[&[[i8; DEEP]]], sums: &mut [[i32; LANES]]) {
    let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    for (x, sums) in x.iter().zip(sums) {
        let mut total = [_mm256_setzero_si256(); 2];
        for (line, x) in lines.iter().zip(*x) {
            let x = i64::from_le_bytes(x.map(i8::cast_unsigned));
            let (a, b) = (
                _mm256_set1_epi32(x as i32),
                _mm256_set1_epi32((x >> 32) as i32),
            );
            for (half, total) in total.iter_mut().enumerate() {
                // SAFETY: a line is 64 bytes.
                let line = unsafe { _mm256_load_si256(line.0.as_ptr().add(32 * half).cast()) };
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low);
                let pairs = _mm256_add_epi16(
                    _mm256_maddubs_epi16(_mm256_and_si256(line, low), a),
                    _mm256_maddubs_epi16(high, b),
                );
                *total = _mm256_add_epi32(*total, _mm256_madd_epi16(pairs, ones));
            }
        }
        for (half, total) in total.into_iter().enumerate() {
            // SAFETY: eight numbers go to one half of sixteen.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().add(8 * half).cast(), total) };
        }
    }
}
