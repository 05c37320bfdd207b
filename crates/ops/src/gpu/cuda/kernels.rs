//! The kernels that `build.rs` compiled, by name.

use super::super::{Fault, Launch, Result};
use super::call::{Module, driver};
use super::lock;
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Mutex;

mod built {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Bytes of dynamic shared memory that every kernel may have unasked.
const UNASKED: u32 = 48 << 10;

#[derive(Debug)]
pub(super) struct Kernels {
    modules: Vec<Module>,
    /// Found so far.
    found: Mutex<HashMap<String, Kernel>>,
    /// Bytes of shared memory that a block may have when asked for.
    shared: u32,
    /// Whether kernels may start before the one before has ended: they wait by themselves (`kernels/device.cuh`).
    early: bool,
}

#[derive(Clone, Copy, Debug)]
struct Kernel {
    function: sys::CUfunction,
    /// Bytes of its argument.
    args: usize,
    /// Bytes of dynamic shared memory that it may have.
    dynamic: u32,
}

// SAFETY: the driver takes a function on any thread.
#[allow(unsafe_code)]
unsafe impl Send for Kernel {}

impl Kernels {
    pub(super) fn shared(&self) -> u32 {
        self.shared
    }

    pub(super) fn load(shared: u32, early: bool) -> Result<Self> {
        let load = |(_, image): &(&str, &[u8])| {
            Module::create(|module| driver!(cuModuleLoadData(module, image.as_ptr().cast())))
        };
        Ok(Self {
            modules: built::MODULES.iter().map(load).collect::<Result<_>>()?,
            found: Mutex::default(),
            shared,
            early,
        })
    }

    /// Looks a kernel up in all modules.
    fn find(&self, name: &str) -> Result<Kernel> {
        let missing = || Fault::NoKernel {
            name: name.to_owned(),
        };
        let letters = CString::new(name).map_err(|_| missing())?;
        let mut function = ptr::null_mut();
        for module in &self.modules {
            match driver!(cuModuleGetFunction(
                &mut function,
                module.0,
                letters.as_ptr()
            )) {
                Ok(()) => {
                    let (mut at, mut args) = (0, 0);
                    driver!(cuFuncGetParamInfo(function, 0, &mut at, &mut args))?;
                    return Ok(Kernel {
                        function,
                        args,
                        dynamic: UNASKED,
                    });
                }
                Err(Fault::Failed { detail, .. }) if detail.starts_with("CUDA_ERROR_NOT_FOUND") => {
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(missing())
    }

    /// A kernel that may have `dynamic` bytes of dynamic shared memory.
    fn get(&self, name: &str, dynamic: u32) -> Result<Kernel> {
        let mut found = lock(&self.found);
        let mut kernel = match found.get(name) {
            Some(kernel) if kernel.dynamic >= dynamic => return Ok(*kernel),
            Some(kernel) => *kernel,
            None => self.find(name)?,
        };
        if kernel.dynamic < dynamic {
            let mut fixed = 0;
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            driver!(cuFuncGetAttribute(&mut fixed, attribute, kernel.function))?;
            let most = self.shared.saturating_sub(fixed.unsigned_abs());
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            driver!(cuFuncSetAttribute(
                kernel.function,
                attribute,
                most.cast_signed()
            ))?;
            kernel.dynamic = most;
        }
        found.insert(name.to_owned(), kernel);
        Ok(kernel)
    }

    pub(super) fn launch(&self, stream: sys::CUstream, launch: Launch<'_>) -> Result<()> {
        let failed = |detail: String| Fault::Failed {
            call: "cuLaunchKernelEx",
            detail: format!("{}: {detail}", launch.kernel),
        };
        let kernel = self.get(launch.kernel, launch.shared)?;
        if kernel.args != launch.args.len() {
            let given = launch.args.len();
            return Err(failed(format!(
                "an argument of {given} bytes for {}",
                kernel.args
            )));
        }
        if kernel.dynamic < launch.shared {
            let most = kernel.dynamic;
            return Err(failed(format!(
                "{} bytes of shared memory of {most}",
                launch.shared
            )));
        }
        // A structure of numbers needs no more alignment than this.
        let mut args: Vec<u128> = launch.args.chunks(size_of::<u128>()).map(padded).collect();
        let mut pointers: [*mut c_void; 1] = [args.as_mut_ptr().cast()];
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: Default::default(),
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let [x, y, z] = launch.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: stream,
            attrs: &mut early,
            numAttrs: self.early.into(),
        };
        driver!(cuLaunchKernelEx(
            &config,
            kernel.function,
            pointers.as_mut_ptr(),
            ptr::null_mut(),
        ))
        .map_err(|fault| match fault {
            Fault::Failed { detail, .. } => failed(detail),
            fault => fault,
        })
    }
}

fn padded(bytes: &[u8]) -> u128 {
    let mut word = [0; size_of::<u128>()];
    word[..bytes.len()].copy_from_slice(bytes);
    u128::from_ne_bytes(word)
}
