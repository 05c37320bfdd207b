//! A decoder's queries, keys and values, made ready for attention (`kernels/heads.cu`).

use super::launch::{THREADS, launch};
use super::pointwise::{NormFacts, RotaryLaunch, Tables, of_product};
use super::{Dtype, GpuDevice, Result, plain};

/// As [`RotaryLaunch`], for fewer heads of keys than of queries, with biases and norms of heads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Heads {
    /// Its `qkv` is [rows, heads + 2 kv_heads, head_dim], and its `heads` are those of queries.
    pub rotary: RotaryLaunch,
    pub tables: Tables,
    /// Of each head's query; its gain, [head_dim], lies among the biases, and it has no shift. No norm where the gain is
    /// [`NONE`](super::pointwise::NONE).
    pub query: NormFacts,
    pub key: NormFacts,
    /// A divisor of the heads.
    pub kv_heads: u32,
    /// [(heads + 2 kv_heads) head_dim]; [`NONE`](super::pointwise::NONE) for none.
    pub bias: u32,
}

impl Heads {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, y: Dtype, rows: usize) -> Result<()> {
        let heads = self.rotary.heads + 2 * self.kv_heads;
        let grid = [rows as u32, heads.div_ceil(8), 1];
        let kernel = of_product("heads", dtype, y);
        launch(gpu, &kernel, grid, (THREADS, 0), self)
    }
}

plain!(Heads);
