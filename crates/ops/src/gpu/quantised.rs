//! A base's matrices in few bits (`kernels/quantised.cu`): products of few rows read them as they are; for more rows a piece of the
//! matrix at a time is widened to the device's type first.

use super::launch::{THREADS, launch_of};
use super::unpacked::Unpacked;
use super::{Address, Dtype, GpuDevice, Result, plain};
use crate::quantized::rows::{BLOCK, SUPER};
use crate::quantized::{Quantisation, bytes};
use candle_core::quantized::k_quants::{BlockQ4K, BlockQ8_0, GgmlType};
use half::f16;
use rayon::prelude::*;

/// Rows that are multiplied with the quants themselves, at most.
pub const MOST_ROWS: usize = 16;
/// Sizes of batches that there are kernels for.
const TIERS: [usize; 2] = [4, MOST_ROWS];

/// What a matrix is made of. Its numbers are candle's, and so the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FewBits {
    /// 8.5 bits: blocks of 32 along the input with one scale.
    Q8_0,
    /// 4.625 bits: super-blocks of 256 along the input.
    Q4K,
}

impl FewBits {
    /// What `form` is for a matrix with this inner size: `q4k` takes whole super-blocks, else it is `q8_0`; `None` where no block fits, and
    /// for wider forms.
    pub fn fitting(form: Quantisation, input: usize) -> Option<Self> {
        match form.fitting(input) {
            Quantisation::Q4K | Quantisation::Q2K => Some(FewBits::Q4K),
            Quantisation::Q8_0 | Quantisation::Q4_0 => Some(FewBits::Q8_0),
            Quantisation::F32 | Quantisation::Bf16 => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            FewBits::Q8_0 => "q8_0",
            FewBits::Q4K => "q4k",
        }
    }

    /// Of a quant.
    pub fn bits(self) -> u32 {
        match self {
            FewBits::Q8_0 => 8,
            FewBits::Q4K => 4,
        }
    }

    /// Bytes of the quants of a matrix; its levels follow.
    pub fn quant_bytes(self, out: usize, input: usize) -> usize {
        out * input * self.bits() as usize / 8
    }

    /// `data` [out, input] by rows, rounded as candle rounds it: quants, then levels, as `kernels/quantised.cuh` reads them.
    pub fn pack(self, data: &[f32], input: usize) -> Vec<u8> {
        let rows = data.par_chunks_exact(input.max(1));
        let packed: Vec<_> = match self {
            FewBits::Q8_0 => rows.map(q8_0).collect(),
            FewBits::Q4K => rows.map(q4k).collect(),
        };
        let quants = packed.iter().map(|(quants, _)| &quants[..]);
        let levels = packed.iter().map(|(_, levels)| &levels[..]);
        quants.chain(levels).collect::<Vec<_>>().concat()
    }
}

/// A row's quants and levels.
fn q8_0(row: &[f32]) -> (Vec<u8>, Vec<u8>) {
    let mut blocks = vec![BlockQ8_0::zeros(); row.len() / BLOCK];
    BlockQ8_0::from_float(row, &mut blocks);
    let (mut quants, mut levels) = (Vec::new(), Vec::new());
    for block in &blocks {
        let (scale, signed) = bytes(block).split_at(2);
        levels.extend_from_slice(scale);
        quants.extend(signed.iter().map(|quant| quant ^ 128)); // q + 128
    }
    (quants, levels)
}

fn q4k(row: &[f32]) -> (Vec<u8>, Vec<u8>) {
    let mut blocks = vec![BlockQ4K::zeros(); row.len() / SUPER];
    BlockQ4K::from_float(row, &mut blocks);
    let (mut quants, mut levels) = (Vec::new(), Vec::new());
    for block in blocks.iter().map(Unpacked::from) {
        let (pairs, _) = block.quants.as_chunks();
        quants.extend(pairs.iter().map(|[even, odd]| even | odd << 4));
        levels.extend(block.ends.map(f16::to_le_bytes).as_flattened());
        for of in 0..2 {
            levels.extend(block.levels.map(|level| level[of]));
        }
    }
    (quants, levels)
}

/// y [rows, pitch] f32 = x [rows, input] W^T, of at most [`MOST_ROWS`] rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FewRows {
    pub quants: Address,
    pub levels: Address,
    pub x: Address,
    pub y: Address,
    pub rows: u32,
    pub out: u32,
    pub input: u32,
    /// From one row of y to the next.
    pub pitch: u32,
}

impl FewRows {
    /// `dtype` is x's.
    pub fn launch(&self, gpu: &dyn GpuDevice, form: FewBits, dtype: Dtype) -> Result<()> {
        let tier = TIERS.into_iter().find(|&tier| tier >= self.rows as usize);
        let name = format!("few_rows_{}_{}", form.name(), tier.unwrap_or(MOST_ROWS));
        let grid = [self.out.div_ceil(8), u32::from(self.rows > 0), 1];
        launch_of(gpu, (&name, dtype), grid, (THREADS, 0), self)
    }
}

/// target [rows, input] = W's rows from `first` on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Widen {
    pub quants: Address,
    pub levels: Address,
    pub target: Address,
    pub first: u32,
    pub input: u32,
}

impl Widen {
    /// `dtype` is the target's.
    pub fn launch(
        &self,
        gpu: &dyn GpuDevice,
        (form, dtype): (FewBits, Dtype),
        rows: usize,
    ) -> Result<()> {
        let name = format!("widen_{}", form.name());
        let grid = [rows as u32, self.input.div_ceil(8 * THREADS), 1];
        launch_of(gpu, (&name, dtype), grid, (THREADS, 0), self)
    }
}

plain!(FewRows, Widen);
