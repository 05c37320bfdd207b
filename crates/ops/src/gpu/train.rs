//! What training launches besides what serving does (`kernels/train.cu`, `kernels/train_attention.cu`). Everything is f32.

use super::launch::{THREADS, launch};
use super::pointwise::Tables;
use super::{Address, GpuDevice, Result, plain};

/// [rows, columns] the other way round.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Transpose {
    pub x: Address,
    /// [columns, rows].
    pub out: Address,
    pub rows: u32,
    pub columns: u32,
}

impl Transpose {
    pub fn launch(&self, gpu: &dyn GpuDevice) -> Result<()> {
        let grid = [self.columns.div_ceil(32), self.rows.div_ceil(32), 1];
        launch(gpu, "transpose", grid, (THREADS, 0), self)
    }
}

/// Some rows of x, or some rows of `out` from all of x.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PickRows {
    pub x: Address,
    pub out: Address,
    /// [picked] u32.
    pub rows: Address,
    pub width: u32,
    /// 0: row i of `out` is row `rows[i]` of x; 1: row `rows[i]` of `out` is row i of x.
    pub back: u32,
}

impl PickRows {
    pub fn launch(&self, gpu: &dyn GpuDevice, picked: usize) -> Result<()> {
        launch(gpu, "pick_rows", [picked as u32, 1, 1], (THREADS, 0), self)
    }
}

/// The gradient of a norm.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NormBackward {
    /// [rows, width], as all below.
    pub x: Address,
    pub dy: Address,
    /// Added to.
    pub dx: Address,
    /// What sums up to the gain's gradient.
    pub along: Address,
    pub tables: Tables,
    /// Offset of the vector in a slot, as below.
    pub gain: u32,
    pub width: u32,
}

impl NormBackward {
    pub fn launch(&self, gpu: &dyn GpuDevice, rows: usize) -> Result<()> {
        launch(
            gpu,
            "norm_backward",
            [rows as u32, 1, 1],
            (THREADS, 0),
            self,
        )
    }
}

/// The gradient of x + gate * (y + bias).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GateBackward {
    /// [rows, width], as all below.
    pub dx: Address,
    pub y: Address,
    pub dy: Address,
    /// What sums up to the gate's gradient.
    pub along: Address,
    pub tables: Tables,
    pub gate: u32,
    /// [`NONE`](super::pointwise::NONE) for none.
    pub bias: u32,
    pub width: u32,
    pub unused: u32,
}

impl GateBackward {
    pub fn launch(&self, gpu: &dyn GpuDevice, rows: usize) -> Result<()> {
        launch(
            gpu,
            "gate_backward",
            [rows as u32, 1, 1],
            (THREADS, 0),
            self,
        )
    }
}

/// The gradient of gelu(y + bias), where it lies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GeluBackward {
    /// [rows, width].
    pub y: Address,
    /// [rows, width].
    pub dy: Address,
    pub tables: Tables,
    pub bias: u32,
    pub width: u32,
}

impl GeluBackward {
    pub fn launch(&self, gpu: &dyn GpuDevice, rows: usize) -> Result<()> {
        launch(
            gpu,
            "gelu_backward",
            [rows as u32, 1, 1],
            (THREADS, 0),
            self,
        )
    }
}

/// Sums of groups of rows, each in its order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SumRows {
    /// [rows, width].
    pub x: Address,
    /// [groups, width].
    pub out: Address,
    /// The groups' rows, u32; 0 for all in order.
    pub order: Address,
    /// [groups + 1] u32: where each group begins.
    pub starts: Address,
    pub width: u32,
    pub unused: u32,
}

impl SumRows {
    pub fn launch(&self, gpu: &dyn GpuDevice, groups: usize) -> Result<()> {
        let grid = [self.width.div_ceil(256), groups as u32, 1];
        launch(gpu, "sum_rows", grid, (THREADS, 0), self)
    }
}

/// The rotary embedding of queries and keys, or its transpose.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TurnHeads {
    /// [rows, 3, heads, head_dim].
    pub qkv: Address,
    /// [positions, head_dim / 2].
    pub cosines: Address,
    pub sines: Address,
    /// Rows of a sequence.
    pub positions: u32,
    pub heads: u32,
    pub head_dim: u32,
    /// 1: the transpose.
    pub back: u32,
    /// What queries are multiplied with.
    pub scale: f32,
    pub unused: u32,
}

impl TurnHeads {
    pub fn launch(&self, gpu: &dyn GpuDevice, rows: usize) -> Result<()> {
        launch(gpu, "turn_heads", [rows as u32, 1, 1], (THREADS, 0), self)
    }
}

/// Queries or keys to a block, and to a tile in its shared memory.
pub const CHUNK: usize = 8;
const TILE: u32 = 32;

/// Up to [`CHUNK`] queries that see the same keys, which are two ranges; all are rows of a sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryChunk {
    pub first: u32,
    pub count: u32,
    pub begin: [u32; 2],
    pub end: [u32; 2],
    pub unused: [u32; 2],
}

/// Up to [`CHUNK`] keys that the same queries see, which are a range of a list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyChunk {
    pub first: u32,
    pub count: u32,
    pub begin: u32,
    pub end: u32,
}

/// What attention has of a batch.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBatch {
    pub sequences: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl AttentionBatch {
    fn launch<A: super::Plain>(
        self,
        gpu: &dyn GpuDevice,
        kernel: &str,
        chunks: usize,
        (staged, own): (u32, u32),
        args: &A,
    ) -> Result<()> {
        let grid = [chunks as u32, self.heads as u32, self.sequences as u32];
        let dim = self.head_dim as u32;
        let shared =
            size_of::<f32>() as u32 * (staged * TILE * (dim + 1) + own * CHUNK as u32 * dim);
        launch(gpu, kernel, grid, (32 * CHUNK as u32, shared), args)
    }
}

/// Attention of whole sequences.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TrainAttend {
    /// [sequences * rows, 3, heads, head_dim], turned and scaled.
    pub qkv: Address,
    /// [sequences * queries, heads, head_dim].
    pub out: Address,
    /// [sequences * queries, heads]: what the gradient needs of the weights.
    pub peaks: Address,
    pub shares: Address,
    /// [`QueryChunk`]s.
    pub chunks: Address,
    pub rows: u32,
    pub queries: u32,
    pub heads: u32,
    pub head_dim: u32,
}

impl TrainAttend {
    pub fn launch(&self, gpu: &dyn GpuDevice, of: AttentionBatch, chunks: usize) -> Result<()> {
        of.launch(gpu, "train_attend", chunks, (2, 1), self)
    }
}

/// The gradient of attention.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TrainAttendBackward {
    /// As [`TrainAttend`] has them.
    pub qkv: Address,
    pub out: Address,
    /// [sequences * queries, heads, head_dim].
    pub dout: Address,
    pub peaks: Address,
    pub shares: Address,
    /// [sequences * queries, heads], to work in.
    pub along: Address,
    /// [sequences * rows, 3, heads, head_dim], still turned and scaled; queries and keys of which there are no chunks stay as they are.
    pub dqkv: Address,
    pub chunks: Address,
    /// [`KeyChunk`]s and their list.
    pub key_chunks: Address,
    pub seeing: Address,
    pub rows: u32,
    pub queries: u32,
    pub heads: u32,
    pub head_dim: u32,
}

impl TrainAttendBackward {
    pub fn launch(
        &self,
        gpu: &dyn GpuDevice,
        of: AttentionBatch,
        chunks: usize,
        key_chunks: usize,
    ) -> Result<()> {
        of.launch(gpu, "train_attend_queries", chunks, (2, 2), self)?;
        of.launch(gpu, "train_attend_keys", key_chunks, (2, 2), self)
    }
}

plain!(
    Transpose,
    PickRows,
    NormBackward,
    GateBackward,
    GeluBackward,
    SumRows,
    TurnHeads,
    QueryChunk,
    KeyChunk,
    TrainAttend,
    TrainAttendBackward,
);
