//! What every launch has in common.

use super::{Dtype, Fault, GpuDevice, Launch, Plain, Result, bytes_of};

/// Threads to a block of most kernels.
pub const THREADS: u32 = 256;
/// Blocks along y and z of a grid; only along x there may be more.
const MOST_BLOCKS: u32 = 65_535;

impl Dtype {
    /// What the names of kernels for it end with.
    pub fn suffix(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        }
    }
}

/// Launches a kernel with its one argument.
pub(super) fn launch<A: Plain>(
    gpu: &dyn GpuDevice,
    kernel: &str,
    grid: [u32; 3],
    (block, shared): (u32, u32),
    args: &A,
) -> Result<()> {
    if grid.contains(&0) {
        return Ok(());
    }
    if grid[1].max(grid[2]) > MOST_BLOCKS {
        return Err(Fault::Failed {
            call: "launch",
            detail: format!("{kernel}: a grid of {grid:?} blocks"),
        });
    }
    gpu.launch(Launch {
        kernel,
        grid,
        block,
        shared,
        args: bytes_of(std::slice::from_ref(args)),
    })
}

/// As [`launch`], for a kernel that exists for f32 and for bf16.
pub(super) fn launch_of<A: Plain>(
    gpu: &dyn GpuDevice,
    (kernel, dtype): (&str, Dtype),
    grid: [u32; 3],
    shape: (u32, u32),
    args: &A,
) -> Result<()> {
    launch(
        gpu,
        &format!("{kernel}_{}", dtype.suffix()),
        grid,
        shape,
        args,
    )
}
