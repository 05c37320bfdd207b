//! Calls of the driver: what their results mean, and who gives back what they make.

use super::super::{Fault, Result};
use cudarc::cublas::sys as blas;
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

/// Calls a function of the driver.
macro_rules! driver {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: handles are alive as long as their owners; pointers into host memory are to what lives beyond the call, or
        // until the stream is past it; addresses on the device are the callers', as all of `GpuDevice`'s are.
        #[allow(unsafe_code)]
        let result = unsafe { cudarc::driver::sys::$function($($argument),*) };
        $crate::gpu::cuda::call::check(stringify!($function), result)
    }};
}
pub(super) use driver;

pub(super) fn check(call: &'static str, result: CUresult) -> Result<()> {
    use CUresult::*;
    let detail = || format!("{result:?}{}", explained(result));
    Err(match result {
        CUDA_SUCCESS => return Ok(()),
        CUDA_ERROR_OUT_OF_MEMORY => Fault::OutOfMemory { bytes: 0 },
        // After these the context is good for nothing.
        CUDA_ERROR_DEINITIALIZED
        | CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUDA_ERROR_CONTAINED
        | CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUDA_ERROR_ASSERT
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_MPS_CLIENT_TERMINATED
        | CUDA_ERROR_EXTERNAL_DEVICE
        | CUDA_ERROR_UNKNOWN => Fault::Lost {
            detail: format!("{call}: {}", detail()),
        },
        _ => Fault::Failed {
            call,
            detail: detail(),
        },
    })
}

/// The driver's words for a result, after a colon.
fn explained(result: CUresult) -> String {
    let mut words: *const c_char = ptr::null();
    // SAFETY: the driver writes a string of its own, or leaves null.
    #[allow(unsafe_code)]
    let words = unsafe {
        let known = sys::cuGetErrorString(result, &mut words) == CUresult::CUDA_SUCCESS;
        (known && !words.is_null()).then(|| CStr::from_ptr(words))
    };
    words.map_or_else(String::new, |words| {
        format!(": {}", words.to_string_lossy())
    })
}

/// A handle or pointer that is given back when it is dropped; its context must be current then.
macro_rules! owned {
    ($($name:ident: $handle:ty, $destroy:path;)*) => {
        $(
            #[derive(Debug)]
            pub(super) struct $name(pub(super) $handle);

            // SAFETY: the driver and cuBLAS take their handles on any thread.
            #[allow(unsafe_code)]
            unsafe impl Send for $name {}
            #[allow(unsafe_code)]
            // SAFETY: as above.
            unsafe impl Sync for $name {}

            impl $name {
                pub(super) fn create(make: impl FnOnce(*mut $handle) -> Result<()>) -> Result<Self> {
                    let mut handle = ptr::null_mut();
                    make(&mut handle)?;
                    Ok(Self(handle))
                }
            }

            impl Drop for $name {
                fn drop(&mut self) {
                    // SAFETY: made by `create`, and nobody has it any more. A result has nowhere to go.
                    #[allow(unsafe_code)]
                    let _ = unsafe { $destroy(self.0) };
                }
            }
        )*
    };
}

owned! {
    Stream: sys::CUstream, sys::cuStreamDestroy_v2;
    Event: sys::CUevent, sys::cuEventDestroy_v2;
    Module: sys::CUmodule, sys::cuModuleUnload;
    Pinned: *mut c_void, sys::cuMemFreeHost;
    Captured: sys::CUgraph, sys::cuGraphDestroy;
    Executable: sys::CUgraphExec, sys::cuGraphExecDestroy;
    Blas: blas::cublasHandle_t, blas::cublasDestroy_v2;
}

/// The primary context of a device.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: as for the handles above.
#[allow(unsafe_code)]
unsafe impl Send for Context {}
#[allow(unsafe_code)]
// SAFETY: as for the handles above.
unsafe impl Sync for Context {}

impl Context {
    /// Current on this thread afterwards.
    pub(super) fn new(device: sys::CUdevice) -> Result<Self> {
        let mut handle = ptr::null_mut();
        driver!(cuDevicePrimaryCtxRetain(&mut handle, device))?;
        let context = Self { device, handle };
        context.bind()?;
        Ok(context)
    }

    /// Makes it current on this thread.
    pub(super) fn bind(&self) -> Result<()> {
        driver!(cuCtxSetCurrent(self.handle))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A result has nowhere to go.
        let _ = driver!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}
