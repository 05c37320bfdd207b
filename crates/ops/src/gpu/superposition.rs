//! Whole matrices of variants (`kernels/retrieve.cu`), and noise to time kernels with.

use super::launch::{THREADS, launch, launch_of};
use super::{Address, Dtype, GpuDevice, Result, plain};

/// W_k = W_0 + weight · c a l ⊙ S ⊙ r, for several variants at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Retrieve {
    /// [out, input].
    pub base: Address,
    /// Tiles, or [out, input].
    pub bank: Address,
    /// [targets] addresses of [out, input]; the base's own is allowed where there is one target.
    pub targets: Address,
    /// [targets] u32.
    pub variants: Address,
    /// [targets] f32.
    pub weights: Address,
    /// [variants][8] u32.
    pub keys: Address,
    /// [variants][out] bf16.
    pub outputs: Address,
    pub out: u32,
    pub input: u32,
    /// Targets, at most [`MOST_TARGETS`].
    pub count: u32,
    pub unused: u32,
}

/// Variants of one launch.
pub const MOST_TARGETS: u32 = 8;

impl Retrieve {
    /// `tiles`: whether the bank is in tiles; `dtype`: what all else is made of.
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, tiles: bool) -> Result<()> {
        debug_assert!(self.count <= MOST_TARGETS);
        let (kernel, outputs) = match tiles {
            true => ("retrieve_tiles", 128),
            false => ("retrieve_dense", 64),
        };
        let grid = [self.input.div_ceil(512), self.out.div_ceil(outputs), 1];
        launch_of(gpu, (kernel, dtype), grid, (THREADS, 0), self)
    }
}

/// Numbers within `scale` of 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Noise {
    pub out: Address,
    pub key: [u32; 8],
    /// Elements, or tiles.
    pub count: u64,
    pub scale: f32,
    pub unused: u32,
}

impl Noise {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype) -> Result<()> {
        let grid = [self.count.div_ceil(4096) as u32, 1, 1];
        launch_of(gpu, ("noise", dtype), grid, (THREADS, 0), self)
    }

    pub fn launch_tiles(&self, gpu: &dyn GpuDevice) -> Result<()> {
        launch(
            gpu,
            "noise_tiles",
            [self.count as u32, 1, 1],
            (128, 0),
            self,
        )
    }
}

plain!(Retrieve, Noise);
