//! One tensor of a checkpoint, as it lies in its file.

use half::{bf16, f16};
use safetensors::Dtype;

use super::Unreadable;

/// A tensor: its shape, and its values in row order, little-endian, in the file's own type.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl View<'_> {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// All its values.
    ///
    /// # Errors
    /// A type other than F32, F16 and BF16.
    pub fn to_f32(&self) -> Result<Vec<f32>, Unreadable> {
        let mut values = vec![0.0; self.elements()];
        self.read(0, &mut values)?;
        Ok(values)
    }

    /// Fills `out` with the values from element `first` on, which must be there.
    ///
    /// # Errors
    /// As [`to_f32`](Self::to_f32).
    pub fn read(&self, first: usize, out: &mut [f32]) -> Result<(), Unreadable> {
        match self.dtype {
            Dtype::F32 => decode(self.bytes, first, out, f32::from_le_bytes),
            Dtype::F16 => decode(self.bytes, first, out, |two| {
                f16::from_le_bytes(two).to_f32()
            }),
            Dtype::BF16 => decode(self.bytes, first, out, |two| {
                bf16::from_le_bytes(two).to_f32()
            }),
            _ => {
                return Err(Unreadable::Dtype {
                    tensor: self.name.to_owned(),
                    dtype: self.dtype.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn decode<const N: usize>(
    bytes: &[u8],
    first: usize,
    out: &mut [f32],
    value: impl Fn([u8; N]) -> f32,
) {
    let values = &bytes.as_chunks().0[first..][..out.len()];
    for (to, from) in out.iter_mut().zip(values) {
        *to = value(*from);
    }
}
