//! Tensors as f32 slices, and tables of which every row of an activation picks one line.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, Device, Storage, StorageRef, Tensor};
use half::slice::HalfFloatSliceExt;
use std::ops::Deref;

/// A borrowed contiguous f32 CPU tensor.
pub struct F32<'a> {
    storage: StorageRef<'a>,
    start: usize,
    len: usize,
}

impl Deref for F32<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.start + self.len],
            // `f32` let nothing else in.
            _ => &[],
        }
    }
}

/// The elements of a contiguous f32 tensor on the CPU; an error for any other.
pub fn f32(tensor: &Tensor) -> Result<F32<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => Ok(F32 {
            storage,
            start,
            len: end - start,
        }),
        _ => Err(refused("f32", tensor)),
    }
}

/// A borrowed contiguous CPU tensor in f32 or bf16.
pub struct Floats<'a> {
    storage: StorageRef<'a>,
    start: usize,
}

impl Floats<'_> {
    /// The elements from `first` on, widened; both ends lie inside.
    pub fn read(&self, first: usize, target: &mut [f32]) {
        let range = self.start + first..self.start + first + target.len();
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => target.copy_from_slice(&data[range]),
            Storage::Cpu(CpuStorage::BF16(data)) => data[range].convert_to_f32_slice(target),
            _ => {} // `floats` let nothing else in
        }
    }
}

/// The elements of a contiguous f32 or bf16 tensor on the CPU; an error for any other.
pub fn floats(tensor: &Tensor) -> Result<Floats<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_) | CpuStorage::BF16(_)), Some((start, _))) => {
            Ok(Floats { storage, start })
        }
        _ => Err(refused("f32 or bf16", tensor)),
    }
}

fn refused(wanted: &'static str, tensor: &Tensor) -> Error {
    Error::Layout {
        wanted,
        found: format!("{:?} on {:?}", tensor.layout(), tensor.device()),
    }
}

/// A tensor on the CPU from rows of f32.
pub fn tensor(data: Vec<f32>, rows: usize, width: usize) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, (rows, width), &Device::Cpu)?)
}

/// A table [lines, width] and the line that each row of an activation uses; without an index all
/// rows use line 0.
#[derive(Clone, Copy)]
pub struct PerRow<'a> {
    pub table: &'a Tensor,
    pub index: Option<&'a [u32]>,
}

impl<'a> PerRow<'a> {
    pub fn new(table: &'a Tensor, index: Option<&'a [u32]>) -> Self {
        Self { table, index }
    }

    /// The line of `row`.
    pub fn line(&self, row: usize) -> usize {
        self.index.map_or(0, |index| index[row] as usize)
    }

    /// The table spread to one line per row, for the slow twins: [rows, width] or [1, width].
    pub fn spread(&self) -> Result<Tensor> {
        match self.index {
            None => Ok(self.table.narrow(0, 0, 1)?),
            Some(index) => Ok(self
                .table
                .index_select(&Tensor::new(index, self.table.device())?, 0)?),
        }
    }
}
