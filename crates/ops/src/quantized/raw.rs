//! A matrix as it lies in memory: what a file keeps of it, so that it need not be rounded again.
#![allow(unsafe_code)]

use super::halved::Halved;
use super::levels::Levels;
use super::panels::QuantPanels;
use super::{Quantisation, QuantizedMatrix, Stored};
use crate::packed::Packed;

/// Of what [`QuantizedMatrix::raw`] gives. To be raised whenever a form lies in memory in another way.
pub const LAYOUT: u32 = 1;

/// Types without padding, of which any bytes are a value.
///
/// # Safety
/// They are that.
pub unsafe trait Plain: Copy {}

pub(crate) fn bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: as `Plain` says, there is no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// `count` values of `bytes`; `None` where those are not as many.
pub(crate) fn values<T: Plain>(bytes: &[u8], count: usize) -> Option<Vec<T>> {
    if count.checked_mul(size_of::<T>()) != Some(bytes.len()) {
        return None;
    }
    let mut values: Vec<T> = Vec::with_capacity(count);
    // SAFETY: there is room for as many bytes, which do not overlap, and as `Plain` says any are values.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), values.as_mut_ptr().cast(), bytes.len());
        values.set_len(count);
    }
    Some(values)
}

impl QuantizedMatrix {
    /// The matrix as it lies in memory, in this machine's byte order: quants, and what makes weights of them, where it takes that.
    pub fn raw(&self) -> [&[u8]; 2] {
        match &self.stored {
            Stored::F32(packed) => [packed.raw(), &[]],
            Stored::Bf16(halved) => [halved.raw(), &[]],
            Stored::Q8_0(panels) => panels.raw(),
            Stored::Q4_0(panels) => panels.raw(),
            Stored::Q4K(panels) => panels.raw(),
            Stored::Q2K(panels) => panels.raw(),
        }
    }

    /// What [`raw`](Self::raw) gave of a matrix [out, in] that was brought to `form`. `None` where it is another size's or form's.
    pub fn from_raw(
        raw: [&[u8]; 2],
        [out, input]: [usize; 2],
        form: Quantisation,
    ) -> Option<QuantizedMatrix> {
        fn panels<L: Levels>(raw: [&[u8]; 2], out: usize, input: usize) -> Option<QuantPanels<L>> {
            QuantPanels::from_raw(raw, out, input)
        }
        let stored = match form.fitting(input) {
            Quantisation::F32 | Quantisation::Bf16 if !raw[1].is_empty() => return None,
            Quantisation::F32 => Stored::F32(Packed::from_raw(raw[0], out, input)?),
            Quantisation::Bf16 => Stored::Bf16(Halved::from_raw(raw[0], out, input)?),
            Quantisation::Q8_0 => Stored::Q8_0(panels(raw, out, input)?),
            Quantisation::Q4_0 => Stored::Q4_0(panels(raw, out, input)?),
            Quantisation::Q4K => Stored::Q4K(panels(raw, out, input)?),
            Quantisation::Q2K => Stored::Q2K(panels(raw, out, input)?),
        };
        Some(QuantizedMatrix { out, input, stored })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn raw_matrices_come_back_as_they_were(out in 1usize..70, blocks in 1usize..20, seed in any::<u32>()) {
            let input = 32 * blocks;
            let value = |at: usize| ((at as u32).wrapping_mul(seed | 1) >> 8) as f32 / 1e7 - 0.8;
            let weights: Vec<f32> = (0..out * input).map(value).collect();
            let x = &weights[..input];
            for form in Quantisation::ALL {
                let matrix = QuantizedMatrix::new(&weights, out, input, form).unwrap();
                let raw = matrix.raw();
                let again = QuantizedMatrix::from_raw(raw, [out, input], form).unwrap();
                let products = |matrix: &QuantizedMatrix| {
                    let mut y = vec![0f32; out];
                    matrix.product(x, 1, &mut y).unwrap();
                    y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
                };
                prop_assert_eq!(products(&again), products(&matrix));
                prop_assert_eq!((again.form(), again.bytes()), (matrix.form(), matrix.bytes()));
                // Cut, or of another size.
                prop_assert!(QuantizedMatrix::from_raw([&raw[0][1..], raw[1]], [out, input], form).is_none());
                prop_assert!(QuantizedMatrix::from_raw(raw, [out + 64, input], form).is_none());
                prop_assert!(QuantizedMatrix::from_raw([raw[0], &[0; 7]], [out, input], form).is_none());
            }
        }
    }
}
