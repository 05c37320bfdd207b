//! A device that networks are evaluated on, and matrices there.

use crate::model::error::Result;
use crate::ops::gpu::{Buffer, Dtype, GpuDevice};
use half::bf16;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows that a dense matrix really has: cuBLAS is at its best with multiples of this many.
pub fn padded(out: usize) -> usize {
    out.next_multiple_of(64)
}

/// A matrix [out, input] on the device.
#[derive(Debug)]
pub struct Matrix {
    pub out: usize,
    pub input: usize,
    pub data: Buffer,
}

/// The device, and what products read there.
#[derive(Clone, Debug)]
pub struct GpuTarget {
    pub gpu: Arc<dyn GpuDevice>,
    pub dtype: Dtype,
}

impl GpuTarget {
    /// `data` [out, input] by rows in the device's type.
    pub fn dense(&self, data: &[f32], out: usize, input: usize) -> Result<Matrix> {
        let matrix = self.matrix(out, input)?;
        match self.dtype {
            Dtype::F32 => matrix.data.write(0, data)?,
            Dtype::Bf16 => {
                let rounded: Vec<bf16> = data.par_iter().map(|&x| bf16::from_f32(x)).collect();
                matrix.data.write(0, &rounded)?;
            }
        }
        Ok(matrix)
    }

    /// Zeros [out, input], with rows of zeros after them up to [`padded`].
    pub fn matrix(&self, out: usize, input: usize) -> Result<Matrix> {
        let data = Buffer::zeros(&self.gpu, padded(out) * input * self.dtype.size())?;
        Ok(Matrix { out, input, data })
    }
}
