//! The inner loop of products: a few rows of x with outputs that lie side by side. Every sum is one chain of fused
//! multiply-adds over the inputs in order, with every instruction set.

use super::isa::Isa;

/// Rows computed together: with AVX-512 two registers each, so that ten loads feed sixteen multiply-adds, whose latency
/// they hide.
pub const TILE: usize = 8;

/// Floats to a register of AVX-512: outputs come in ones or twos of these.
pub const LANES: usize = 16;

/// Outputs side by side: that of input k and output o lies at `k * step + o`.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    pub data: &'a [f32],
    pub step: usize,
    /// Where what is wanted next begins, in the same steps: it is asked for while this is computed. Any address will do.
    pub next: *const f32,
}

/// Rows of x, the first elements of `stride` each.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub inputs: usize,
}

/// `sums[r] += x[r] W^T` for as many rows as there are sums, at most [`TILE`]; `OUTPUTS` is once or twice [`LANES`].
#[allow(unsafe_code)]
pub fn accumulate<const OUTPUTS: usize>(isa: Isa, panel: Panel, x: Rows, sums: &mut [[f32; OUTPUTS]]) {
    let rows = sums.len();
    if rows == 0 || x.inputs == 0 {
        return;
    }
    assert!(
        rows <= TILE && (OUTPUTS == LANES || OUTPUTS == 2 * LANES),
        "{rows} rows of {OUTPUTS}"
    );
    assert!(
        (x.inputs - 1) * panel.step + OUTPUTS <= panel.data.len(),
        "panel too short"
    );
    assert!((rows - 1) * x.stride + x.inputs <= x.data.len(), "x too short");
    match isa {
        Isa::Portable => portable(panel, x, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: whoever has this value has asked the processor for its instructions; lengths were checked above.
        Isa::Avx2 => unsafe { x86::avx2(panel, x, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { x86::avx512(panel, x, sums) },
    }
}

fn portable<const OUTPUTS: usize>(panel: Panel, x: Rows, sums: &mut [[f32; OUTPUTS]]) {
    for (row, sums) in sums.iter_mut().enumerate() {
        let x = &x.data[row * x.stride..][..x.inputs];
        for (weights, x) in panel.data.chunks(panel.step).zip(x) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = x.mul_add(*weight, *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::{LANES, Panel, Rows};
    use std::arch::x86_64::*;

    /// # Safety
    /// As [`super::accumulate`] asserts.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512<const OUTPUTS: usize>(panel: Panel, x: Rows, sums: &mut [[f32; OUTPUTS]]) {
        // SAFETY: the caller's.
        unsafe {
            match sums.len() {
                1 => avx512_rows::<1, OUTPUTS>(panel, x, sums),
                2 => avx512_rows::<2, OUTPUTS>(panel, x, sums),
                3 => avx512_rows::<3, OUTPUTS>(panel, x, sums),
                4 => avx512_rows::<4, OUTPUTS>(panel, x, sums),
                5 => avx512_rows::<5, OUTPUTS>(panel, x, sums),
                6 => avx512_rows::<6, OUTPUTS>(panel, x, sums),
                7 => avx512_rows::<7, OUTPUTS>(panel, x, sums),
                _ => avx512_rows::<8, OUTPUTS>(panel, x, sums),
            }
        }
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` sums.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_rows<const ROWS: usize, const OUTPUTS: usize>(panel: Panel, x: Rows, sums: &mut [[f32; OUTPUTS]]) {
        let (weights, step) = (panel.data.as_ptr(), panel.step);
        let (values, stride) = (x.data.as_ptr(), x.stride);
        let registers = OUTPUTS / LANES;
        let mut total = [[_mm512_setzero_ps(); 2]; ROWS];
        // SAFETY: every read and write lies inside what the caller promises; what is only asked for may lie anywhere.
        unsafe {
            for (total, sums) in total.iter_mut().zip(sums.iter()) {
                for (part, total) in total.iter_mut().take(registers).enumerate() {
                    *total = _mm512_loadu_ps(sums.as_ptr().add(part * LANES));
                }
            }
            for k in 0..x.inputs {
                let at = weights.add(k * step);
                for part in 0..registers {
                    _mm_prefetch::<_MM_HINT_T0>(panel.next.wrapping_add(k * step + part * LANES).cast());
                }
                let mut loaded = [_mm512_setzero_ps(); 2];
                for (part, loaded) in loaded.iter_mut().take(registers).enumerate() {
                    *loaded = _mm512_loadu_ps(at.add(part * LANES));
                }
                for (row, total) in total.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*values.add(row * stride + k));
                    for (total, loaded) in total.iter_mut().zip(loaded).take(registers) {
                        *total = _mm512_fmadd_ps(x, loaded, *total);
                    }
                }
            }
            for (total, sums) in total.iter().zip(sums) {
                for (part, total) in total.iter().take(registers).enumerate() {
                    _mm512_storeu_ps(sums.as_mut_ptr().add(part * LANES), *total);
                }
            }
        }
    }

    /// # Safety
    /// As [`avx512`].
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2<const OUTPUTS: usize>(panel: Panel, x: Rows, sums: &mut [[f32; OUTPUTS]]) {
        // Sixteen outputs and four rows of two registers: eight sums, and room for the rest of what sixteen registers must hold.
        for (tile, sums) in sums.chunks_mut(4).enumerate() {
            let x = Rows {
                data: &x.data[4 * tile * x.stride..],
                ..x
            };
            for first in (0..OUTPUTS).step_by(LANES) {
                // SAFETY: the caller's; these are some of its rows.
                unsafe {
                    match sums.len() {
                        1 => avx2_rows::<1, OUTPUTS>(panel, x, first, sums),
                        2 => avx2_rows::<2, OUTPUTS>(panel, x, first, sums),
                        3 => avx2_rows::<3, OUTPUTS>(panel, x, first, sums),
                        _ => avx2_rows::<4, OUTPUTS>(panel, x, first, sums),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` sums; of each the sixteen from `first` on, a multiple of sixteen, are added to.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_rows<const ROWS: usize, const OUTPUTS: usize>(
        panel: Panel,
        x: Rows,
        first: usize,
        sums: &mut [[f32; OUTPUTS]],
    ) {
        let (weights, values) = (panel.data.as_ptr(), x.data.as_ptr());
        let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
        // SAFETY: every read and write lies inside what the caller promises.
        unsafe {
            for (total, sums) in total.iter_mut().zip(sums.iter()) {
                *total = [0, 8].map(|part| _mm256_loadu_ps(sums.as_ptr().add(first + part)));
            }
            for k in 0..x.inputs {
                let at = weights.add(k * panel.step + first);
                let loaded = [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
                for (row, total) in total.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*values.add(row * x.stride + k));
                    *total = [
                        _mm256_fmadd_ps(x, loaded[0], total[0]),
                        _mm256_fmadd_ps(x, loaded[1], total[1]),
                    ];
                }
            }
            for (sums, total) in sums.iter_mut().zip(total) {
                _mm256_storeu_ps(sums.as_mut_ptr().add(first), total[0]);
                _mm256_storeu_ps(sums.as_mut_ptr().add(first + 8), total[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agrees<const OUTPUTS: usize>(rows: usize, inputs: usize, step: usize, stride: usize, noise: &[f32]) {
        let x = Rows {
            data: &noise[..(rows - 1) * stride + inputs],
            stride,
            inputs,
        };
        let data = &noise[100..][..(inputs - 1) * step + OUTPUTS];
        for isa in Isa::all() {
            let mut sums = vec![[0.5f32; OUTPUTS]; rows];
            let next = std::ptr::null();
            accumulate(isa, Panel { data, step, next }, x, &mut sums);
            for (row, sums) in sums.iter().enumerate() {
                for (output, sum) in sums.iter().enumerate() {
                    let chain = (0..inputs).fold(0.5f32, |sum, k| {
                        x.data[row * stride + k].mul_add(data[k * step + output], sum)
                    });
                    assert_eq!(*sum, chain, "{isa:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_sum_is_one_chain(rows in 1..=TILE, inputs in 1usize..20, wider in 0usize..9, apart in 0usize..9, salt: u8) {
            let mut stream = crate::rng::Stream::new(crate::rng::Key([salt; 32]));
            let noise: Vec<f32> = (0..1200).map(|_| stream.normal() as f32).collect();
            agrees::<LANES>(rows, inputs, LANES + wider, inputs + apart, &noise);
            agrees::<{ 2 * LANES }>(rows, inputs, 2 * LANES + wider, inputs + apart, &noise);
        }
    }
}
