//! Rows of x made ready for a code: signs, Walsh-Hadamard, bytes, dealt out to tables; sixteen elements to a register. The operations
//! and their order are those of [`Rotation::apply`] and [`round`](crate::quantized::round), and so are the bits.
#![allow(unsafe_code)]

use crate::coded::rows::Facts;
use crate::transform::Rotation;
use std::arch::x86_64::*;

/// Elements that stay in registers.
const SPAN: usize = 256;
const LANES: usize = 16;

/// Whether this is for blocks of so many.
pub fn takes(block: usize) -> bool {
    block >= SPAN
}

/// R `x` in bytes for `per_step` weights to a step; `values` has room for as many elements as x, which are blocks that [`takes`] takes.
///
/// # Safety
/// The processor has AVX-512 with VBMI and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
pub unsafe fn rotate(
    x: &[f32],
    rotation: &Rotation,
    per_step: usize,
    values: &mut [f32],
    quants: &mut [i8],
) -> Facts {
    let (count, block, words) = (x.len(), rotation.block(), rotation.signs.words());
    assert!(count.is_multiple_of(SPAN) && takes(block) && words.len() * 32 == count);
    assert!(values.len() == count && quants.len() >= count);
    // SAFETY: all reads and writes lie inside of what was checked.
    unsafe {
        for first in (0..count).step_by(SPAN) {
            span(&x[first..], &words[first / 32..], &mut values[first..]);
        }
        let mut half = SPAN;
        while half < block {
            // Two stages at a time, where there are two.
            let both = 4 * half <= block;
            let width = if both { 4 * half } else { 2 * half };
            for part in values.chunks_exact_mut(width) {
                match both {
                    true => two_stages(part.as_mut_ptr(), half),
                    false => one_stage(part.as_mut_ptr(), half),
                }
            }
            half = width;
        }
        bytes(values, block, per_step, quants)
    }
}

/// The stages within 256 elements.
///
/// # Safety
/// Every slice has that many.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn span(x: &[f32], words: &[u32], values: &mut [f32]) {
    debug_assert!(x.len() >= SPAN && words.len() >= SPAN / 32 && values.len() >= SPAN);
    let minus = _mm512_set1_epi32(i32::MIN);
    let mut v = [_mm512_setzero_ps(); SPAN / LANES];
    for (at, v) in v.iter_mut().enumerate() {
        // SAFETY: the caller's.
        let x = unsafe { _mm512_loadu_si512(x.as_ptr().add(LANES * at).cast()) };
        let signs = (words[at / 2] >> (LANES * (at % 2))) as __mmask16;
        *v = _mm512_castsi512_ps(_mm512_mask_xor_epi32(x, signs, x, minus));
    }
    // What is multiplied by -1 is subtracted: one rounding, as by a subtraction.
    macro_rules! within {
        ($mask:literal, $swap:ident::<$control:literal>) => {
            let sign = _mm512_mask_blend_ps($mask, _mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
            for v in &mut v {
                *v = _mm512_fmadd_ps(*v, sign, $swap::<$control>(*v));
            }
        };
    }
    within!(0xaaaa, _mm512_permute_ps::<0b10_11_00_01>);
    within!(0xcccc, _mm512_permute_ps::<0b01_00_11_10>);
    within!(0xf0f0, quarters::<0b10_11_00_01>);
    within!(0xff00, quarters::<0b01_00_11_10>);
    let mut half = 1;
    while half < SPAN / LANES {
        for first in (0..SPAN / LANES).step_by(2 * half) {
            for at in first..first + half {
                let (a, b) = (v[at], v[at + half]);
                (v[at], v[at + half]) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
            }
        }
        half *= 2;
    }
    for (at, v) in v.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr().add(LANES * at), v) };
    }
}

/// Four elements by four, permuted.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters<const CONTROL: i32>(v: __m512) -> __m512 {
    _mm512_shuffle_f32x4::<CONTROL>(v, v)
}

/// The stages of `half` and of twice that over four times as many elements.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn two_stages(values: *mut f32, half: usize) {
    for at in (0..half).step_by(LANES) {
        // SAFETY: the caller's.
        unsafe {
            let place = values.add(at);
            let (a, b) = (_mm512_loadu_ps(place), _mm512_loadu_ps(place.add(half)));
            let (c, d) = (
                _mm512_loadu_ps(place.add(2 * half)),
                _mm512_loadu_ps(place.add(3 * half)),
            );
            let (e, f) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
            let (g, h) = (_mm512_add_ps(c, d), _mm512_sub_ps(c, d));
            _mm512_storeu_ps(place, _mm512_add_ps(e, g));
            _mm512_storeu_ps(place.add(half), _mm512_add_ps(f, h));
            _mm512_storeu_ps(place.add(2 * half), _mm512_sub_ps(e, g));
            _mm512_storeu_ps(place.add(3 * half), _mm512_sub_ps(f, h));
        }
    }
}

/// The stage of `half` over twice as many elements.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn one_stage(values: *mut f32, half: usize) {
    for at in (0..half).step_by(LANES) {
        // SAFETY: the caller's.
        unsafe {
            let place = values.add(at);
            let (a, b) = (_mm512_loadu_ps(place), _mm512_loadu_ps(place.add(half)));
            _mm512_storeu_ps(place, _mm512_add_ps(a, b));
            _mm512_storeu_ps(place.add(half), _mm512_sub_ps(a, b));
        }
    }
}

/// Where each of 64 bytes comes from when they are dealt out.
const fn order(per_step: usize) -> [u8; 64] {
    let (mut order, mut at, wide) = ([0; 64], 0, 8 * per_step);
    while at < 64 {
        order[at] = (at / wide * wide + at % 8 * per_step + at % wide / 8) as u8;
        at += 1;
    }
    order
}

/// Scales `values` to be orthonormal, rounds them to bytes with one scale, and deals these out.
///
/// # Safety
/// There are as many `quants`; 64 are a divisor of both.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
unsafe fn bytes(values: &mut [f32], block: usize, per_step: usize, quants: &mut [i8]) -> Facts {
    let unit = _mm512_set1_ps((1.0 / (block as f64).sqrt()) as f32);
    // As integers, magnitudes are in order, with what is not finite above all others.
    let mut largest = _mm512_setzero_si512();
    for values in values.chunks_exact_mut(LANES) {
        // SAFETY: there are sixteen.
        let value = unsafe {
            let value = _mm512_mul_ps(_mm512_loadu_ps(values.as_ptr()), unit);
            _mm512_storeu_ps(values.as_mut_ptr(), value);
            value
        };
        let size = _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(i32::MAX));
        largest = _mm512_max_epu32(largest, size);
    }
    let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
    if !largest.is_finite() {
        quants.fill(0);
        return Facts {
            scale: f32::NAN,
            sum: 0,
        };
    }
    let scale = largest / 127.0;
    let inverse = _mm512_set1_ps(if scale > 0.0 { 1.0 / scale } else { 0.0 });
    let order = match per_step {
        1 => &const { order(1) },
        2 => &const { order(2) },
        _ => &const { order(4) },
    };
    // SAFETY: 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let (most, magic) = (_mm512_set1_ps(127.0), _mm512_set1_ps(12_582_912.0));
    let least = _mm512_set1_ps(-127.0);
    let mut sum = _mm512_setzero_si512();
    for (values, quants) in values.chunks_exact(64).zip(quants.chunks_exact_mut(64)) {
        let mut four = [_mm_setzero_si128(); 4];
        for (at, four) in four.iter_mut().enumerate() {
            // SAFETY: there are sixteen four times.
            let value = unsafe { _mm512_loadu_ps(values.as_ptr().add(LANES * at)) };
            let value = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(value, inverse), least), most);
            *four = _mm512_cvtepi32_epi8(_mm512_castps_si512(_mm512_add_ps(value, magic)));
        }
        let all = _mm512_castsi128_si512(four[0]);
        let all = _mm512_inserti32x4::<1>(all, four[1]);
        let all = _mm512_inserti32x4::<2>(all, four[2]);
        let all = _mm512_inserti32x4::<3>(all, four[3]);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), all);
        // SAFETY: 64 bytes.
        unsafe {
            _mm512_storeu_si512(
                quants.as_mut_ptr().cast(),
                _mm512_permutexvar_epi8(order, all),
            )
        };
    }
    Facts {
        scale,
        sum: _mm512_reduce_add_epi32(sum),
    }
}
