//! Attention of a batch's segments over cached pages and their own rows (`kernels/attention.cu`, `kernels/block_attention.cu`,
//! `kernels/block_attention_many.cu`).

use super::launch::{THREADS, launch, launch_of};
use super::pointwise::NONE;
use super::{Address, Dtype, GpuDevice, Result, plain};

/// Heads that share a key, at most, on the tensor cores.
const MOST_GROUP: usize = 16;
/// Widest head of the kernel.
pub const MAX_HEAD: usize = 256;

/// One segment of a batch: see `model::Segment`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SegmentFacts {
    pub first_row: u32,
    pub tokens: u32,
    pub first_position: u32,
    /// Tokens to a block; all of them where there are no blocks.
    pub block: u32,
    /// Index of its first page in the batch's list.
    pub pages: u32,
    /// Position of that page's first slot.
    pub pages_start: u32,
    /// First position that may be seen.
    pub oldest: u32,
    /// Tokens of the first token's block that are not the segment's: the text begins within that block.
    pub begun: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Attend {
    /// [rows, q_pitch], rotated and scaled.
    pub q: Address,
    /// [rows, current_pitch]: keys and values of the batch itself.
    pub current: Address,
    /// [page][layer][2][page_tokens][kv_heads * head_dim].
    pub cache: Address,
    /// [rows, heads * head_dim].
    pub out: Address,
    /// [rows] u32: the row's segment, NONE for what pads the batch.
    pub segment: Address,
    /// [`SegmentFacts`].
    pub segments: Address,
    /// [..] u32.
    pub pages: Address,
    pub heads: u32,
    pub head_dim: u32,
    pub layer: u32,
    pub layers: u32,
    pub page_tokens: u32,
    /// Tokens that a query may see.
    pub window: u32,
    /// Elements from one row to the next.
    pub q_pitch: u32,
    pub current_pitch: u32,
    /// A divisor of `heads`: so many of these share a key.
    pub kv_heads: u32,
    pub unused: u32,
}

/// Queries of one segment that go through attention together.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QueryTile {
    /// NONE for a tile that pads the launch.
    pub segment: u32,
    /// First token.
    pub first: u32,
}

impl Default for QueryTile {
    fn default() -> Self {
        QueryTile {
            segment: NONE,
            first: 0,
        }
    }
}

/// How segments are cut into tiles: into those of few queries each, or of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    Few,
    Many,
}

impl Cut {
    /// What suits segments of which the longest has so many tokens, where `group` heads share a key.
    pub fn of(longest: usize, group: usize) -> Self {
        if longest * group > 32 {
            Cut::Many
        } else {
            Cut::Few
        }
    }

    /// Tokens to a tile, which has the queries of all heads that share a key.
    pub fn tokens(self, group: usize) -> usize {
        let queries = match self {
            Cut::Few => MOST_GROUP,
            Cut::Many => 128,
        };
        (queries / group).max(1)
    }
}

/// [`Attend`] on the tensor cores.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct BlockAttend {
    attend: Attend,
    /// [`QueryTile`]s.
    tiles: Address,
}

impl Attend {
    /// On the tensor cores where they have a kernel for it: bf16, heads of 32, 64 or 128, no more than 16 to a key.
    pub fn launch_tiles(
        &self,
        gpu: &dyn GpuDevice,
        dtype: Dtype,
        rows: usize,
        (tiles, count, cut): (Address, usize, Cut),
    ) -> Result<()> {
        let group = (self.heads / self.kv_heads) as usize;
        if dtype != Dtype::Bf16 || ![32, 64, 128].contains(&self.head_dim) || group > MOST_GROUP {
            return self.launch(gpu, dtype, rows);
        }
        let blocks = count * self.kv_heads as usize;
        // Keys and values of several chunks.
        let shared = |chunk: u32, chunks: u32| chunks * 2 * chunk * (self.head_dim + 8) * 2;
        let wide = self.head_dim == 128;
        let few = (256, shared(128, if wide { 2 } else { 4 }));
        let fits = few.1 + 4096 <= gpu.shared();
        let (name, shape) = match cut {
            Cut::Few if blocks < gpu.processors() as usize && fits => ("few", few),
            Cut::Few => ("some", (128, shared(64, if wide { 2 } else { 4 }))),
            Cut::Many => ("many", (if wide { 256 } else { 128 }, shared(64, 2))),
        };
        let args = BlockAttend {
            attend: *self,
            tiles,
        };
        let kernel = format!("block_attend_{name}_{}", self.head_dim);
        launch(gpu, &kernel, [count as u32, self.kv_heads, 1], shape, &args)
    }

    /// One warp to a query and head.
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, rows: usize) -> Result<()> {
        let grid = [rows as u32, self.heads.div_ceil(8), 1];
        launch_of(gpu, ("attend", dtype), grid, (THREADS, 0), self)
    }
}

plain!(SegmentFacts, QueryTile, Attend, BlockAttend);
