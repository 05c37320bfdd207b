//! The inner loop of products: a few rows of x with outputs that lie side by side. Every sum is one chain of fused
//! multiply-adds over the inputs in order, with every instruction set.

use super::isa::{Isa, Set};
use half::bf16;
use half::vec::HalfBitsVecExt;

/// Rows computed together, at most: with AVX-512 two registers each, so that ten loads feed sixteen multiply-adds, whose
/// latency they hide.
pub const TILE: usize = 8;

/// Floats to a register of AVX-512: outputs come in groups of so many.
pub const LANES: usize = 16;

/// How a panel's numbers lie in memory; in registers they are f32, which loses nothing.
#[allow(unsafe_code)]
pub trait Stored: Copy + Default + std::fmt::Debug + Send + Sync + 'static {
    /// The nearest one that can be stored.
    fn of(value: f32) -> Self;

    fn widened(self) -> f32;

    /// So many zeros, in memory that is not touched before they are used.
    fn zeros(count: usize) -> Vec<Self>;

    /// Sixteen that lie side by side.
    ///
    /// # Safety
    /// The processor has AVX-512F, and all sixteen may be read.
    #[cfg(target_arch = "x86_64")]
    unsafe fn sixteen(at: *const Self) -> std::arch::x86_64::__m512;

    /// Eight that lie side by side.
    ///
    /// # Safety
    /// The processor has AVX2, and all eight may be read.
    #[cfg(target_arch = "x86_64")]
    unsafe fn eight(at: *const Self) -> std::arch::x86_64::__m256;
}

#[allow(unsafe_code)]
impl Stored for f32 {
    fn of(value: f32) -> Self {
        value
    }

    fn widened(self) -> f32 {
        self
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sixteen(at: *const Self) -> std::arch::x86_64::__m512 {
        // SAFETY: the caller's.
        unsafe { std::arch::x86_64::_mm512_loadu_ps(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eight(at: *const Self) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller's.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(at) }
    }
}

#[allow(unsafe_code)]
impl Stored for bf16 {
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn widened(self) -> f32 {
        self.to_f32()
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sixteen(at: *const Self) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's; a bf16 is sixteen bits.
        let halves = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(at.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eight(at: *const Self) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's; a bf16 is sixteen bits.
        let halves = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(at.cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }
}

/// Some inputs of `N` groups of outputs: that of input k and output o of group n lies at `k * step + o` of `groups[n]`.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a, const N: usize, T = f32> {
    pub groups: [&'a [T]; N],
    pub step: usize,
    pub inputs: usize,
    /// Where what is wanted next begins, in the same steps: it is asked for while this is computed. Any address will do.
    pub next: [*const T; N],
}

impl<const N: usize, T> Panel<'_, N, T> {
    /// Rows that keep as many sums in registers as there are, with all inputs of all groups read once.
    pub const ROWS: usize = if N > 2 { TILE / 2 } else { TILE };

    /// Of nothing.
    pub const EMPTY: Self = Panel {
        groups: [&[]; N],
        step: 0,
        inputs: 0,
        next: [std::ptr::null(); N],
    };
}

/// Rows of x, the first elements of `stride` each.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl StridedRows<'_> {
    /// Without the first rows, and the first elements of each.
    pub fn from(self, row: usize, element: usize) -> Self {
        StridedRows {
            data: &self.data[row * self.stride + element..],
            ..self
        }
    }
}

/// One row's sums with the outputs of a panel.
pub type Sums<const N: usize> = [[f32; LANES]; N];

/// `sums[r] += x[r] W^T` for as many rows as there are sums, at most [`Panel::ROWS`], W being the panels one after the other
/// along the inputs.
#[allow(unsafe_code)]
pub fn accumulate<const N: usize, T: Stored>(
    isa: Isa,
    panels: &[Panel<N, T>],
    x: StridedRows,
    sums: &mut [Sums<N>],
) {
    let (rows, mut inputs) = (sums.len(), 0);
    for panel in panels.iter().filter(|panel| panel.inputs > 0) {
        let least = (panel.inputs - 1) * panel.step + LANES;
        assert!(
            panel.groups.iter().all(|group| least <= group.len()),
            "panel too short"
        );
        inputs += panel.inputs;
    }
    if rows == 0 || inputs == 0 {
        return;
    }
    assert!(rows <= Panel::<N, T>::ROWS, "{rows} rows");
    assert!(
        (rows - 1) * x.stride + inputs <= x.data.len(),
        "x too short"
    );
    match isa.set() {
        Set::Portable => portable(panels, x, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: whoever has this value has asked the processor for its instructions; lengths were checked above.
        Set::Avx2 => unsafe { x86::avx2(panels, x, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Set::Avx512 => unsafe { x86::avx512(panels, x, sums) },
    }
}

fn portable<const N: usize, T: Stored>(
    panels: &[Panel<N, T>],
    x: StridedRows,
    sums: &mut [Sums<N>],
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        let mut x = &x.data[row * x.stride..];
        for panel in panels {
            let (here, rest) = x.split_at(panel.inputs);
            for (group, sums) in panel.groups.iter().zip(&mut *sums) {
                for (weights, x) in group.chunks(panel.step.max(1)).zip(here) {
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum = x.mul_add(weight.widened(), *sum);
                    }
                }
            }
            x = rest;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::{LANES, Panel, Stored, StridedRows, Sums};
    use std::arch::x86_64::*;

    /// # Safety
    /// As [`super::accumulate`] asserts.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512<const N: usize, T: Stored>(
        panels: &[Panel<N, T>],
        x: StridedRows,
        sums: &mut [Sums<N>],
    ) {
        // SAFETY: the caller's.
        unsafe {
            match sums.len() {
                1 => avx512_rows::<1, N, T>(panels, x, sums),
                2 => avx512_rows::<2, N, T>(panels, x, sums),
                3 => avx512_rows::<3, N, T>(panels, x, sums),
                4 => avx512_rows::<4, N, T>(panels, x, sums),
                5 => avx512_rows::<5, N, T>(panels, x, sums),
                6 => avx512_rows::<6, N, T>(panels, x, sums),
                7 => avx512_rows::<7, N, T>(panels, x, sums),
                _ => avx512_rows::<8, N, T>(panels, x, sums),
            }
        }
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` sums.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_rows<const ROWS: usize, const N: usize, T: Stored>(
        panels: &[Panel<N, T>],
        x: StridedRows,
        sums: &mut [Sums<N>],
    ) {
        let mut values = x.data.as_ptr();
        let mut total = [[_mm512_setzero_ps(); N]; ROWS];
        // SAFETY: every read and write lies inside what the caller promises; what is only asked for may lie anywhere.
        unsafe {
            for (total, sums) in total.iter_mut().zip(sums.iter()) {
                for (total, sums) in total.iter_mut().zip(sums) {
                    *total = _mm512_loadu_ps(sums.as_ptr());
                }
            }
            for panel in panels {
                let groups = panel.groups.map(<[T]>::as_ptr);
                for k in 0..panel.inputs {
                    let at = k * panel.step;
                    for next in panel.next {
                        _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(at).cast());
                    }
                    let loaded = groups.map(|group| T::sixteen(group.add(at)));
                    for (row, total) in total.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*values.add(row * x.stride + k));
                        for (total, loaded) in total.iter_mut().zip(loaded) {
                            *total = _mm512_fmadd_ps(x, loaded, *total);
                        }
                    }
                }
                values = values.add(panel.inputs);
            }
            for (total, sums) in total.iter().zip(sums) {
                for (total, sums) in total.iter().zip(sums) {
                    _mm512_storeu_ps(sums.as_mut_ptr(), *total);
                }
            }
        }
    }

    /// # Safety
    /// As [`avx512`].
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2<const N: usize, T: Stored>(
        panels: &[Panel<N, T>],
        x: StridedRows,
        sums: &mut [Sums<N>],
    ) {
        // One group and four rows of two registers: eight sums, and room for the rest of what sixteen registers must hold.
        for (tile, sums) in sums.chunks_mut(4).enumerate() {
            let x = x.from(4 * tile, 0);
            for group in 0..N {
                // SAFETY: the caller's; these are some of its rows.
                unsafe {
                    match sums.len() {
                        1 => avx2_rows::<1, N, T>(panels, x, group, sums),
                        2 => avx2_rows::<2, N, T>(panels, x, group, sums),
                        3 => avx2_rows::<3, N, T>(panels, x, group, sums),
                        _ => avx2_rows::<4, N, T>(panels, x, group, sums),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` sums, of each of which one group's are added to.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_rows<const ROWS: usize, const N: usize, T: Stored>(
        panels: &[Panel<N, T>],
        x: StridedRows,
        group: usize,
        sums: &mut [Sums<N>],
    ) {
        let mut values = x.data.as_ptr();
        let mut total = [[_mm256_setzero_ps(); 2]; ROWS];
        // SAFETY: every read and write lies inside what the caller promises.
        unsafe {
            for (total, sums) in total.iter_mut().zip(sums.iter()) {
                *total = [0, LANES / 2].map(|part| _mm256_loadu_ps(sums[group].as_ptr().add(part)));
            }
            for panel in panels {
                let weights = panel.groups[group].as_ptr();
                for k in 0..panel.inputs {
                    let at = weights.add(k * panel.step);
                    let loaded = [0, LANES / 2].map(|part| T::eight(at.add(part)));
                    for (row, total) in total.iter_mut().enumerate() {
                        let x = _mm256_set1_ps(*values.add(row * x.stride + k));
                        for (total, loaded) in total.iter_mut().zip(loaded) {
                            *total = _mm256_fmadd_ps(x, loaded, *total);
                        }
                    }
                }
                values = values.add(panel.inputs);
            }
            for (sums, total) in sums.iter_mut().zip(total) {
                for (part, total) in total.into_iter().enumerate() {
                    _mm256_storeu_ps(sums[group].as_mut_ptr().add(part * LANES / 2), total);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agrees<const N: usize, T: Stored>(
        rows: usize,
        inputs: [usize; 2],
        step: usize,
        stride: usize,
        noise: &[f32],
    ) {
        let x = StridedRows {
            data: noise,
            stride,
        };
        let next = [std::ptr::null(); N];
        let stored: Vec<T> = noise.iter().map(|&value| T::of(value)).collect();
        let panels = [0, 1].map(|panel| Panel {
            groups: std::array::from_fn(|group| {
                &stored[100 + 300 * panel + 17 * group..][..19 * step + LANES]
            }),
            step,
            inputs: inputs[panel],
            next,
        });
        for isa in Isa::all() {
            let mut sums = vec![[[0.5f32; LANES]; N]; rows];
            accumulate(isa, &panels, x, &mut sums);
            for (row, sums) in sums.iter().enumerate() {
                for (output, sum) in sums.as_flattened().iter().enumerate() {
                    let (group, lane) = (output / LANES, output % LANES);
                    let all = panels
                        .iter()
                        .flat_map(|panel| (0..panel.inputs).map(move |k| (panel, k)));
                    let chain = all.enumerate().fold(0.5f32, |sum, (at, (panel, k))| {
                        let weight = panel.groups[group][k * step + lane].widened();
                        noise[row * stride + at].mul_add(weight, sum)
                    });
                    assert_eq!(*sum, chain, "{isa:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_sum_is_one_chain(
            rows in 1..=TILE, first in 0usize..20, second in 0usize..20, wider in 0usize..9, apart in 0usize..9, salt: u8,
        ) {
            let mut stream = crate::rng::Stream::new(crate::rng::Key([salt; 32]));
            let noise: Vec<f32> = (0..1200).map(|_| stream.normal() as f32).collect();
            let (step, stride) = (LANES + wider, first + second + apart);
            agrees::<1, f32>(rows, [first, second], step, stride, &noise);
            agrees::<2, f32>(rows, [first, second], step, stride, &noise);
            agrees::<4, f32>(rows.min(Panel::<4>::ROWS), [first, second], step, stride, &noise);
            agrees::<1, bf16>(rows, [first, second], step, stride, &noise);
            agrees::<2, bf16>(rows, [first, second], step, stride, &noise);
            agrees::<4, bf16>(rows.min(Panel::<4>::ROWS), [first, second], step, stride, &noise);
        }
    }
}
