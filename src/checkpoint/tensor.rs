//! One tensor of a checkpoint, as it lies in its file.

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::Unreadable;
use super::file::Bytes;

/// Values that are read at once, by one thread.
const PIECE: usize = 1 << 20;

/// A tensor: its shape, and where its values lie in row order, little-endian, in the file's own type.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub(super) shard: &'a Bytes<'a>,
    pub(super) begin: usize,
}

impl TensorView<'_> {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// All its bytes, as they lie in the file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>, Unreadable> {
        let mut bytes = vec![0; self.elements() * self.dtype.bitsize() / 8];
        self.shard.read(self.begin, &mut bytes)?;
        Ok(bytes)
    }

    /// All its values.
    ///
    /// # Errors
    /// A type other than F32, F16 and BF16, and a file that cannot be read.
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
            Dtype::F32 => self.decode(first, out, f32::from_le_bytes),
            Dtype::F16 => self.decode(first, out, |two| f16::from_le_bytes(two).to_f32()),
            Dtype::BF16 => self.decode(first, out, |two| bf16::from_le_bytes(two).to_f32()),
            _ => Err(Unreadable::Dtype {
                tensor: self.name.to_owned(),
                dtype: self.dtype.to_string(),
            }),
        }
    }

    fn decode<const N: usize>(
        &self,
        first: usize,
        out: &mut [f32],
        value: impl Fn([u8; N]) -> f32 + Sync,
    ) -> Result<(), Unreadable> {
        let pieces = out.par_chunks_mut(PIECE).enumerate();
        pieces.try_for_each_init(Vec::new, |bytes, (number, out)| {
            bytes.resize(N * out.len(), 0);
            let at = self.begin + N * (first + number * PIECE);
            self.shard.read(at, bytes)?;
            for (to, from) in out.iter_mut().zip(bytes.as_chunks().0) {
                *to = value(*from);
            }
            Ok(())
        })
    }
}
