//! A device that networks are evaluated on, and matrices there.

use crate::model::error::Result;
use crate::ops::gpu::quantised::{FewBits, Widen};
use crate::ops::gpu::{Address, Buffer, Dtype, Fault, GpuDevice};
use crate::ops::quantized::Quantisation;
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
    /// Quants and their levels; else by rows in the device's type, or tiles of a bank.
    pub few_bits: Option<FewBits>,
    pub data: Buffer,
}

impl Matrix {
    /// The address of the levels of a matrix in few bits.
    pub fn levels(&self, form: FewBits) -> Address {
        self.data.address() + form.quant_bytes(self.out, self.input)
    }

    /// Rows of a matrix in few bits from `first` on, as many as are said, to an address, in the device's type.
    pub fn widen(
        &self,
        device: &GpuTarget,
        form: FewBits,
        (first, rows): (usize, usize),
        target: Address,
    ) -> std::result::Result<(), Fault> {
        Widen {
            quants: self.data.address(),
            levels: self.levels(form),
            target,
            first: first as u32,
            input: self.input as u32,
        }
        .launch(&*device.gpu, (form, device.dtype), rows)
    }
}

/// The device, and what products read there.
#[derive(Clone, Debug)]
pub struct GpuTarget {
    pub gpu: Arc<dyn GpuDevice>,
    pub dtype: Dtype,
    /// What a base's matrices are kept in where blocks of it fit: `q8_0`, `q4k`, or, for all others, the device's type.
    pub base: Quantisation,
}

impl GpuTarget {
    /// With bases in the device's type.
    pub fn new(gpu: Arc<dyn GpuDevice>, dtype: Dtype) -> Self {
        let base = Quantisation::F32;
        GpuTarget { gpu, dtype, base }
    }

    /// A matrix of a base.
    pub fn of_base(&self, data: &[f32], out: usize, input: usize) -> Result<Matrix> {
        let Some(form) = FewBits::fitting(self.base, input) else {
            return self.dense(data, out, input);
        };
        Ok(Matrix {
            out,
            input,
            few_bits: Some(form),
            data: Buffer::from(&self.gpu, &form.pack(data, input))?,
        })
    }

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
        Ok(Matrix {
            out,
            input,
            few_bits: None,
            data,
        })
    }
}
