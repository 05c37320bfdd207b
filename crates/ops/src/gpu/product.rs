//! A layer's products of few rows, with what comes after them in the same launch (`kernels/product.cu`).

use super::launch::launch;
use super::pointwise::{RotaryLaunch, Tables};
use super::{Address, GpuDevice, Result, plain};

/// Sizes of batches that there are kernels for.
const TIERS: [usize; 3] = [16, 32, 64];
/// Inputs that eight warps keep the weights of, and sixteen.
const NARROW: usize = 768;
const WIDE: usize = 3072;

/// What comes after the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// y = W x, [rows, pitch] f32.
    Keep,
    /// y = gelu(W x + bias), [rows, out] bf16.
    Gelu,
    /// y += gate * (W x + bias), [rows, out] f32.
    Residual,
    /// W x are queries, keys and values: they go where [`RotaryLaunch`] puts them.
    Rope,
}

/// W x and what comes after it, with W and x in bf16.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Product {
    /// [out, input].
    pub w: Address,
    /// [rows, input].
    pub x: Address,
    /// [rows, pitch] f32: what banks give for rows that have parts of them.
    pub banked: Address,
    /// [rows] u32: 1 for those rows; 0 where there are none.
    pub parted: Address,
    pub y: Address,
    pub tables: Tables,
    pub rows: u32,
    pub out: u32,
    pub input: u32,
    /// From one row to the next of what banks give, and of f32 products.
    pub pitch: u32,
    pub gate: u32,
    /// `NONE` for none.
    pub bias: u32,
    /// Its `qkv` is not read.
    pub rotary: RotaryLaunch,
}

impl After {
    /// Whether there is a kernel for so many rows and a matrix [out, input], and it is worth it: with nothing to come after
    /// them, many rows of a large matrix are not.
    pub fn takes(self, rows: usize, out: usize, input: usize) -> bool {
        let (most_rows, most) = match self {
            After::Keep => (TIERS[1], NARROW),
            After::Gelu | After::Rope => (TIERS[2], NARROW),
            After::Residual => (TIERS[2], WIDE),
        };
        rows <= most_rows && input <= most && out.is_multiple_of(8) && input.is_multiple_of(8)
    }
}

impl Product {
    /// For sizes that `after` takes.
    pub fn launch(&self, gpu: &dyn GpuDevice, after: After) -> Result<()> {
        let tier = TIERS.into_iter().find(|&tier| tier >= self.rows as usize);
        let tier = tier.unwrap_or(TIERS[2]);
        let (name, warps, tiles) = match after {
            After::Keep => ("keep", 8, 3),
            After::Gelu => ("gelu", 8, 6),
            After::Residual if self.input as usize > NARROW => ("residual_wide", 16, 2),
            After::Residual => ("residual", 8, 2),
            After::Rope => ("rotated", 8, 4),
        };
        let outs = 8 * tiles;
        let sums = 4 * warps * tier * if tiles % 2 == 0 { outs + 8 } else { outs };
        let grid = [self.out.div_ceil(outs as u32), 1, 1];
        let shape = (32 * warps as u32, sums as u32);
        launch(gpu, &format!("product_{name}_{tier}"), grid, shape, self)
    }
}

plain!(Product);
