//! Where kernels run: a CUDA device, or, in tests, the same source compiled for the host.
//!
//! Everything above this trait (buffers, launches, the whole network) is compiled and tested without a card; only
//! [`cuda`] needs one, and the `cuda` feature.

use std::fmt;
use std::ops::Add;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

pub mod attention;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod draw;
pub mod heads;
mod launch;
pub mod own;
pub mod pointwise;
pub mod product;
pub mod products;
pub mod quantised;
pub mod superposition;
pub mod tiles;
pub mod train;
mod unpacked;

/// What can go wrong on a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("this build has no CUDA: build with --features cuda")]
    NotBuilt,
    #[error("no CUDA device {ordinal}: {detail}")]
    NoDevice { ordinal: usize, detail: String },
    #[error("this driver is too old: it speaks CUDA {found}, and {needed} is needed")]
    DriverTooOld { found: String, needed: String },
    #[error("the device has no {bytes} bytes left")]
    OutOfMemory { bytes: usize },
    #[error("no kernel {name} in this build")]
    NoKernel { name: String },
    /// Nothing that was on the device can be used any more.
    #[error("the device is lost: {detail}")]
    Lost { detail: String },
    #[error("{call}: {detail}")]
    Failed { call: &'static str, detail: String },
}

pub type Result<T> = std::result::Result<T, Fault>;

/// What a matrix or an activation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// An address on a device, or, by default, that of nothing. Safe code has it from who allocates ([`Buffer`]), and may go on from there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address(u64);

impl Address {
    /// The number that a driver knows it by.
    ///
    /// # Safety
    /// It is one that a device has allocated, or lies within it: kernels read and write there.
    #[allow(unsafe_code)]
    pub const unsafe fn new(number: u64) -> Self {
        Address(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// So many bytes on, within what was allocated there.
impl Add<usize> for Address {
    type Output = Address;

    fn add(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// y [rows, pitch] = x [rows, input] W[out, input]^T, all by rows; x and W of `dtype`, y of `gives`, what lies between `out` and
/// `pitch` being anything. Addresses on the device.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub x: Address,
    pub w: Address,
    pub y: Address,
    pub rows: usize,
    pub out: usize,
    pub input: usize,
    /// From one row of y to the next, at least `out`.
    pub pitch: usize,
    pub dtype: Dtype,
    /// f32, or as `dtype`.
    pub gives: Dtype,
}

/// One launch. `args` is the kernel's one argument, a `repr(C)` structure, as bytes.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    /// Threads to a block, a multiple of 32.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub args: &'a [u8],
}

/// A recorded sequence of launches.
pub trait Graph: Send + Sync {
    fn replay(&self) -> Result<()>;
}

/// Runs `work` and then `end`, which ends what records it: also where `work` fails or panics, so that nothing stays recording.
pub fn recorded<T>(
    work: &mut dyn FnMut() -> Result<()>,
    end: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let worked = catch_unwind(AssertUnwindSafe(work));
    let ended = end();
    match worked {
        Ok(worked) => worked.and(ended),
        Err(panic) => resume_unwind(panic),
    }
}

/// A device with one stream: every call takes effect after those before it.
pub trait GpuDevice: Send + Sync + fmt::Debug {
    /// The device, in words.
    fn name(&self) -> String;
    /// Multiprocessors: how many blocks run side by side for certain.
    fn processors(&self) -> u32;
    /// Bytes of shared memory that a block may have.
    fn shared(&self) -> u32;
    /// Free and total bytes of its memory.
    fn memory(&self) -> Result<(usize, usize)>;
    /// The address of `bytes` new bytes, at a multiple of 256, with anything in them. `bytes` is not 0.
    fn allocate(&self, bytes: usize) -> Result<Address>;
    /// Gives back what `allocate` gave.
    fn free(&self, address: Address, bytes: usize);
    /// Copies to the device; `data` may change as soon as this returns.
    fn upload(&self, to: Address, data: &[u8]) -> Result<()>;
    /// Copies from the device, waiting for all that was asked for before.
    fn download(&self, from: Address, data: &mut [u8]) -> Result<()>;
    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()>;
    /// Sets bytes to 0.
    fn clear(&self, at: Address, bytes: usize) -> Result<()>;
    fn launch(&self, launch: Launch<'_>) -> Result<()>;
    fn gemm(&self, gemm: Gemm) -> Result<()>;
    /// Records what `work` launches (it must neither allocate nor copy from or to the host). `None` where the machine does not
    /// record: `work` has run then.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>>;
    /// Waits for all that was asked for.
    fn synchronise(&self) -> Result<()>;
    /// Milliseconds that the device took for what `work` asks of it.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f32>;
}

/// Memory on a machine, given back when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    gpu: Arc<dyn GpuDevice>,
    address: Address,
    bytes: usize,
}

impl Buffer {
    /// `bytes` bytes with anything in them; none at all is no error.
    pub fn new(gpu: &Arc<dyn GpuDevice>, bytes: usize) -> Result<Self> {
        let address = match bytes {
            0 => Address::default(),
            _ => gpu.allocate(bytes)?,
        };
        Ok(Self {
            gpu: gpu.clone(),
            address,
            bytes,
        })
    }

    pub fn zeros(gpu: &Arc<dyn GpuDevice>, bytes: usize) -> Result<Self> {
        let buffer = Self::new(gpu, bytes)?;
        if bytes > 0 {
            gpu.clear(buffer.address, bytes)?;
        }
        Ok(buffer)
    }

    /// A copy of host data.
    pub fn from<T: Plain>(gpu: &Arc<dyn GpuDevice>, data: &[T]) -> Result<Self> {
        let buffer = Self::new(gpu, size_of_val(data))?;
        buffer.write(0, data)?;
        Ok(buffer)
    }

    pub fn address(&self) -> Address {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies `data` to `at` bytes from the start.
    pub fn write<T: Plain>(&self, at: usize, data: &[T]) -> Result<()> {
        let bytes = bytes_of(data);
        self.check(at, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.upload(self.address + at, bytes)
    }

    /// `count` elements from `at` bytes on, waiting for what was asked for before.
    pub fn read<T: Plain>(&self, at: usize, count: usize) -> Result<Vec<T>> {
        let mut data = vec![T::default(); count];
        self.check(at, size_of_val(&data[..]))?;
        if count > 0 {
            self.gpu
                .download(self.address + at, bytes_of_mut(&mut data))?;
        }
        Ok(data)
    }

    fn check(&self, at: usize, bytes: usize) -> Result<()> {
        if at + bytes <= self.bytes {
            return Ok(());
        }
        Err(Fault::Failed {
            call: "copy",
            detail: format!("{bytes} bytes at {at} of a buffer of {}", self.bytes),
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.gpu.free(self.address, self.bytes);
        }
    }
}

/// Numbers, and structures of numbers without padding, that a device reads as they lie in memory.
///
/// # Safety
/// Every byte of the type is initialised, and any bytes make a value of it.
#[allow(unsafe_code)]
pub unsafe trait Plain: Copy + Default {}

/// Marks types as [`Plain`].
macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            #[allow(unsafe_code)]
            // SAFETY: numbers, or `repr(C)` structures of them whose fields fill them.
            unsafe impl $crate::gpu::Plain for $type {}
        )*
    };
}
pub(crate) use plain;

plain!(
    u8,
    i8,
    u16,
    i16,
    u32,
    i32,
    u64,
    Address,
    f32,
    f64,
    half::bf16,
    half::f16
);

/// The bytes of plain data.
#[allow(unsafe_code)]
pub fn bytes_of<T: Plain>(data: &[T]) -> &[u8] {
    // SAFETY: plain data has no uninitialised byte.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

/// The same, to be written.
#[allow(unsafe_code)]
pub fn bytes_of_mut<T: Plain>(data: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes make a value.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) }
}
