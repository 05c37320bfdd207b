//! A layer's products of few rows, with what comes before and after them in the same launch (`kernels/product.cu`).

use super::launch::launch;
use super::pointwise::{NONE, Rotary, Tables};
use super::{Machine, Result, plain};

/// Sizes of batches that there are kernels for.
const TIERS: [usize; 3] = [16, 32, 64];
/// Inputs that eight warps keep the weights of, and that a norm can be of.
const NARROW: usize = 768;
/// Inputs that sixteen warps keep the weights of.
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
    /// W x are queries, keys and values: they go where [`Rotary`] puts them.
    Rotated,
}

/// W x with what comes before and after it; all that products read is bf16.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Product {
    /// [out, input].
    pub w: u64,
    /// [rows, input]; the residual stream in f32 where it is normed first.
    pub x: u64,
    /// [rows] u32: rows of a normed x; 0 for all in order.
    pub gathered: u64,
    /// [rows, pitch] f32: what banks give for rows that have parts of them.
    pub banked: u64,
    /// [rows] u32: 1 for those rows; 0 where there are none.
    pub parted: u64,
    pub y: u64,
    pub tables: Tables,
    pub rows: u32,
    pub out: u32,
    pub input: u32,
    /// From one row to the next of what banks give, and of f32 products.
    pub pitch: u32,
    /// Offset of the norm's gain in a slot, [`NONE`] where x is normed already.
    pub gain: u32,
    pub shift: u32,
    pub gate: u32,
    /// [`NONE`] for none.
    pub bias: u32,
    /// Its `qkv` is not read.
    pub rotary: Rotary,
}

impl After {
    /// Whether there is a kernel for so many rows and a matrix [out, input], normed or not.
    pub fn takes(self, rows: usize, out: usize, input: usize) -> bool {
        let most = if self == After::Residual { WIDE } else { NARROW };
        rows <= TIERS[2] && input <= most && out.is_multiple_of(8) && input.is_multiple_of(8)
    }
}

impl Product {
    /// For sizes that `after` takes; [`After::Residual`] takes no norm.
    pub fn launch(&self, machine: &dyn Machine, after: After) -> Result<()> {
        let tier = TIERS.into_iter().find(|&tier| tier >= self.rows as usize);
        let (tier, input) = (tier.unwrap_or(TIERS[2]), self.input as usize);
        let (name, warps, tiles) = match after {
            After::Keep => ("keep", 8, if tier > 32 { 2 } else { 3 }),
            After::Gelu => ("gelu", 8, if tier > 32 { 2 } else { 3 }),
            After::Residual if input > NARROW => ("residual_wide", 16, 1),
            After::Residual => ("residual", 8, 1),
            After::Rotated => ("rotated", 8, 2),
        };
        let outs = 8 * tiles;
        let sums = 4 * warps * tier * if tiles % 2 == 0 { outs + 8 } else { outs };
        let (normed, before) = match self.gain {
            NONE => ("", 0),
            _ => ("_normed", tier * (input.next_multiple_of(64) + 32) * 2 + 2 * input * 4),
        };
        let grid = [self.out.div_ceil(outs as u32), 1, 1];
        let name = format!("product_{name}{normed}_{tier}");
        launch(machine, &name, grid, (32 * warps as u32, sums.max(before) as u32), self)
    }
}

plain!(Product);
