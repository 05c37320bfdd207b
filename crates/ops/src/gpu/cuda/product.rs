//! Matrix products with cuBLAS.

use super::super::{Dtype, Fault, Gemm, Result};
use super::call::{Blas, driver};
use cudarc::cublas::sys::{self, cublasStatus_t};
use cudarc::driver::sys::CUstream;
use std::ffi::c_void;
use std::ptr;

/// Bytes; with memory of its own cuBLAS allocates nothing while launches are recorded.
const WORKSPACE: usize = 32 << 20;

macro_rules! cublas {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: as for the driver; numbers on the host are read before the call returns.
        #[allow(unsafe_code)]
        let status = unsafe { sys::$function($($argument),*) };
        check(stringify!($function), status)
    }};
}

fn check(call: &'static str, status: cublasStatus_t) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Err(Fault::OutOfMemory { bytes: 0 }),
        _ => Err(Fault::Failed {
            call,
            detail: format!("{status:?}"),
        }),
    }
}

#[derive(Debug)]
pub(super) struct Products {
    blas: Blas,
    workspace: u64,
}

impl Products {
    pub(super) fn new(stream: CUstream) -> Result<Self> {
        let blas = Blas::create(|handle| cublas!(cublasCreate_v2(handle)))?;
        let mut products = Self { blas, workspace: 0 };
        driver!(cuMemAlloc_v2(&mut products.workspace, WORKSPACE))?;
        let handle = products.blas.0;
        // In this order: a new stream takes the workspace away.
        cublas!(cublasSetStream_v2(handle, stream.cast()))?;
        cublas!(cublasSetWorkspace_v2(
            handle,
            address(products.workspace),
            WORKSPACE
        ))?;
        cublas!(cublasSetMathMode(
            handle,
            sys::cublasMath_t::CUBLAS_DEFAULT_MATH
        ))?;
        Ok(products)
    }

    /// No size is 0. By columns, as cuBLAS counts, y is [out, rows], W [input, out] and x [input, rows]: y = W^T x.
    pub(super) fn gemm(&self, gemm: Gemm) -> Result<()> {
        let [rows, out, input, pitch] =
            [gemm.rows, gemm.out, gemm.input, gemm.pitch].map(i32::try_from);
        let (Ok(rows), Ok(out), Ok(input), Ok(pitch)) = (rows, out, input, pitch) else {
            return Err(Fault::Failed {
                call: "cublasGemmEx",
                detail: format!("{gemm:?} is too large"),
            });
        };
        let [of, gives] = [gemm.dtype, gemm.gives].map(|dtype| match dtype {
            Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
            Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        });
        let (one, zero) = (1f32, 0f32);
        cublas!(cublasGemmEx(
            self.blas.0,
            sys::cublasOperation_t::CUBLAS_OP_T,
            sys::cublasOperation_t::CUBLAS_OP_N,
            out,
            rows,
            input,
            ptr::from_ref(&one).cast(),
            address(gemm.w.get()),
            of,
            input,
            address(gemm.x.get()),
            of,
            input,
            ptr::from_ref(&zero).cast(),
            address(gemm.y.get()),
            gives,
            pitch,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, // without TF32
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
        ))
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        if self.workspace != 0 {
            // This waits for the device. A result has nowhere to go.
            let _ = driver!(cuMemFree_v2(self.workspace));
        }
    }
}

/// The device's address as cuBLAS takes it.
fn address(on_device: u64) -> *mut c_void {
    ptr::without_provenance_mut(on_device as usize)
}
