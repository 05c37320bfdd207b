//! What lies between a layer's products (`kernels/pointwise.cu`).

use super::launch::{THREADS, launch};
use super::{Address, Dtype, GpuDevice, Plain, Result, plain};
use crate::norm::Norm;

/// Widest row of a norm.
pub const MAX_WIDTH: usize = 8192;
/// No index.
pub const NONE: u32 = u32::MAX;

/// Launches a kernel that has a block to a row: there is one for rows of up to 1, 4 and 8 times 1024.
fn launch_rows<A: Plain>(
    gpu: &dyn GpuDevice,
    kernel: &str,
    rows: usize,
    width: u32,
    args: &A,
) -> Result<()> {
    let wide = match width {
        0..=1024 => 1,
        1025..=4096 => 4,
        _ => 8,
    };
    launch(
        gpu,
        &format!("{kernel}_{wide}"),
        [rows as u32, 1, 1],
        (THREADS, 0),
        args,
    )
}

/// The name of a kernel that makes `dtype` of a product in `y`.
pub(super) fn of_product(kernel: &str, dtype: Dtype, y: Dtype) -> String {
    let of = if y == Dtype::F32 { "" } else { "_of_bf16" };
    format!("{kernel}_{}{of}", dtype.suffix())
}

/// Slots of modulation tables and biases, and the slots that rows use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tables {
    /// Slots of modulation tables, f32.
    pub lines: Address,
    /// Slots of biases, f32.
    pub biases: Address,
    /// [rows] u32: the slot of a row's modulation tables.
    pub line: Address,
    /// [rows] u32: the slot of a row's biases.
    pub mix: Address,
    /// Floats to a slot.
    pub line_stride: u32,
    pub bias_stride: u32,
}

/// A norm as kernels read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NormFacts {
    /// Offset of the vector in a slot, as the next.
    pub gain: u32,
    /// [`NONE`] for none.
    pub shift: u32,
    pub eps: f32,
    /// Whether the mean is taken as 0.
    rms: u32,
}

impl NormFacts {
    pub fn new(norm: Norm, gain: u32, shift: u32) -> Self {
        let (eps, rms) = match norm {
            Norm::Layer { eps } => (eps, 0),
            Norm::Rms { eps } => (eps, 1),
        };
        Self {
            gain,
            shift,
            eps,
            rms,
        }
    }

    pub fn none() -> Self {
        Self::new(Norm::DIT, NONE, NONE)
    }
}

/// The next norm of a residual stream.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NormModulate {
    /// [.., width] f32.
    pub x: Address,
    /// [rows, width].
    pub out: Address,
    /// [rows] u32: rows of x; 0 for all in order.
    pub rows: Address,
    pub tables: Tables,
    pub norm: NormFacts,
    pub width: u32,
    pub unused: u32,
}

impl NormModulate {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, rows: usize) -> Result<()> {
        launch_rows(
            gpu,
            &format!("norm_modulate_{}", dtype.suffix()),
            rows,
            self.width,
            self,
        )
    }
}

/// x += gate * (y + bias), and the next norm of x.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GateResidual {
    /// [rows, width] f32.
    pub x: Address,
    /// [rows, width], f32 or bf16.
    pub y: Address,
    /// [rows, width], unless the norm's gain is [`NONE`].
    pub out: Address,
    pub tables: Tables,
    pub norm: NormFacts,
    /// Offset of the vector in a slot; [`NONE`] for 1.
    pub gate: u32,
    /// [`NONE`] for none.
    pub bias: u32,
    pub width: u32,
    pub unused: u32,
}

impl GateResidual {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, y: Dtype, rows: usize) -> Result<()> {
        launch_rows(
            gpu,
            &of_product("gate_residual", dtype, y),
            rows,
            self.width,
            self,
        )
    }
}

/// out = gelu(y + bias).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BiasGelu {
    /// [rows, width], f32 or bf16.
    pub y: Address,
    /// [rows, width].
    pub out: Address,
    pub tables: Tables,
    pub bias: u32,
    pub width: u32,
}

impl BiasGelu {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, y: Dtype, rows: usize) -> Result<()> {
        let grid = [rows as u32, self.width.div_ceil(1024), 1];
        launch(
            gpu,
            &of_product("bias_gelu", dtype, y),
            grid,
            (THREADS, 0),
            self,
        )
    }
}

/// out = silu(gate) * up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SwiGlu {
    /// [rows, gates | what they are for], f32 or bf16.
    pub y: Address,
    /// [rows, width].
    pub out: Address,
    pub width: u32,
    pub unused: u32,
}

impl SwiGlu {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, y: Dtype, rows: usize) -> Result<()> {
        let grid = [rows as u32, self.width.div_ceil(1024), 1];
        let kernel = of_product("swiglu", dtype, y);
        launch(gpu, &kernel, grid, (THREADS, 0), self)
    }
}

/// Cosines and sines of rows' positions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Angles {
    /// [rows, half] f32.
    pub cosines: Address,
    /// [rows, half] f32.
    pub sines: Address,
    /// [rows] u32.
    pub positions: Address,
    /// [half] f64.
    pub frequencies: Address,
    pub rows: u32,
    pub half: u32,
}

impl Angles {
    pub fn launch(&self, gpu: &dyn GpuDevice) -> Result<()> {
        let grid = [(self.rows * self.half).div_ceil(THREADS), 1, 1];
        launch(gpu, "angles", grid, (THREADS, 0), self)
    }
}

/// Rotates queries and keys, and writes keys and values where attention looks for them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RotaryLaunch {
    /// [rows, 3, heads, head_dim], f32 or bf16.
    pub qkv: Address,
    /// [rows, head_dim / 2] f32.
    pub cosines: Address,
    pub sines: Address,
    /// [rows, q_pitch], where `qkv` has them or elsewhere, as the next.
    pub q: Address,
    /// [rows, current_pitch].
    pub current: Address,
    /// [page][layer][2][page_tokens][hidden].
    pub cache: Address,
    /// [rows] u32: page * page_tokens + slot of a clean row, else [`NONE`].
    pub slots: Address,
    pub heads: u32,
    pub head_dim: u32,
    pub layer: u32,
    pub layers: u32,
    pub page_tokens: u32,
    /// What queries are multiplied with.
    pub scale: f32,
    /// Elements from one row to the next.
    pub q_pitch: u32,
    pub current_pitch: u32,
}

impl RotaryLaunch {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, y: Dtype, rows: usize) -> Result<()> {
        let pairs = self.heads * self.head_dim / 2;
        let grid = [rows as u32, pairs.div_ceil(512), 1];
        launch(gpu, &of_product("rotary", dtype, y), grid, (128, 0), self)
    }
}

plain!(
    Tables,
    NormFacts,
    NormModulate,
    GateResidual,
    BiasGelu,
    SwiGlu,
    Angles,
    RotaryLaunch
);
