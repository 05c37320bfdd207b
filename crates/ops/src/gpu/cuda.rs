//! A CUDA device through its driver and cuBLAS, both looked for when a device is opened.

mod call;
mod graph;
mod kernels;
mod product;
mod staging;

use super::{Address, Fault, Gemm, GpuDevice, Graph, Launch, Result};
use call::{Context, Event, Stream, driver};
use cudarc::cublas::sys as blas;
use cudarc::driver::sys::{
    self, CUdevice_attribute as Attribute, CUmemPool_attribute as PoolAttribute,
};
use kernels::Kernels;
use product::Products;
use staging::Staging;
use std::ffi::CStr;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, ThreadId};

/// The CUDA version (1000 major + 10 minor) that a driver must speak, and the major compute capability of a device.
const VERSION: i32 = 13_000;
const CAPABILITY: i32 = 8;
/// The major compute capability from which on a kernel can start while the one before runs.
const EARLY: i32 = 9;

/// One CUDA device with one stream. Calls may come from any thread; while one records, the others wait.
pub struct Cuda(Arc<State>);

/// Dropped from top to bottom.
#[derive(Debug)]
struct State {
    name: String,
    processors: u32,
    pool: Pool,
    kernels: Kernels,
    products: Products,
    staging: Mutex<Staging>,
    recording: Mutex<Option<Recording>>,
    /// Held by whoever records, and shared by all other calls: what they ask of the stream would become part of the graph.
    turns: RwLock<()>,
    stream: Stream,
    context: Context,
}

/// Launches are being recorded.
#[derive(Debug)]
struct Recording {
    thread: ThreadId,
    /// What was given back meanwhile.
    freed: Vec<u64>,
}

/// The device's own pool, which lives as long as the device.
#[derive(Debug)]
struct Pool(sys::CUmemoryPool);

// SAFETY: the driver takes it on any thread.
#[allow(unsafe_code)]
unsafe impl Send for Pool {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// Keeps memory that is given back, for what is allocated next.
    fn new(device: sys::CUdevice) -> Result<Self> {
        let mut pool = ptr::null_mut();
        driver!(cuDeviceGetDefaultMemPool(&mut pool, device))?;
        let mut keep = u64::MAX;
        let threshold = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        driver!(cuMemPoolSetAttribute(
            pool,
            threshold,
            ptr::from_mut(&mut keep).cast()
        ))?;
        Ok(Self(pool))
    }

    fn bytes(&self, of: PoolAttribute) -> Result<usize> {
        let mut bytes = 0u64;
        driver!(cuMemPoolGetAttribute(
            self.0,
            of,
            ptr::from_mut(&mut bytes).cast()
        ))?;
        Ok(bytes as usize)
    }
}

fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<i32> {
    let mut value = 0;
    driver!(cuDeviceGetAttribute(&mut value, attribute, device))?;
    Ok(value)
}

/// The version that the driver speaks, in words, and the device `ordinal`.
fn find(ordinal: usize) -> Result<(String, sys::CUdevice)> {
    let none = |detail: String| Fault::NoDevice { ordinal, detail };
    // cudarc panics where it does not find a library.
    // SAFETY: loads the libraries, whose initialisers are the system's.
    #[allow(unsafe_code)]
    let (driver, cublas) = unsafe { (sys::is_culib_present(), blas::is_culib_present()) };
    if !driver {
        return Err(none(
            "libcuda, a part of NVIDIA's driver, was not found".to_owned(),
        ));
    }
    let mut version = 0;
    driver!(cuDriverGetVersion(&mut version)).map_err(|fault| none(fault.to_string()))?;
    let words = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    if version < VERSION {
        return Err(Fault::DriverTooOld {
            found: words(version),
            needed: words(VERSION),
        });
    }
    if !cublas {
        return Err(none(
            "libcublas of CUDA 13 was not found; LD_LIBRARY_PATH names where else to look"
                .to_owned(),
        ));
    }
    let mut count = 0;
    driver!(cuInit(0))
        .and_then(|()| driver!(cuDeviceGetCount(&mut count)))
        .map_err(|fault| none(fault.to_string()))?;
    let wanted = i32::try_from(ordinal).ok().filter(|wanted| *wanted < count);
    let wanted = wanted.ok_or_else(|| none(format!("the driver counts {count}, from 0 on")))?;
    let mut device = 0;
    driver!(cuDeviceGet(&mut device, wanted)).map_err(|fault| none(fault.to_string()))?;
    Ok((words(version), device))
}

impl Cuda {
    /// The device that the driver counts as `ordinal`, with all kernels of this build.
    pub fn open(ordinal: usize) -> Result<Self> {
        let (version, device) = find(ordinal)?;
        let mut letters = [0u8; 256];
        let room = letters.len() as i32 - 1;
        driver!(cuDeviceGetName(letters.as_mut_ptr().cast(), room, device))?;
        let name = CStr::from_bytes_until_nul(&letters)
            .unwrap_or_default()
            .to_string_lossy();
        let major = attribute(
            device,
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        )?;
        let minor = attribute(
            device,
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )?;
        let name =
            format!("{name} (compute capability {major}.{minor}, driver for CUDA {version})");
        if major < CAPABILITY {
            let detail = format!("{name} is too old: compute capability {CAPABILITY}.0 is needed");
            return Err(Fault::NoDevice { ordinal, detail });
        }
        let processors = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared = attribute(
            device,
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?;

        // Dropped from the last on where something fails.
        let context = Context::new(device)?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let stream = Stream::create(|stream| driver!(cuStreamCreate(stream, flags)))?;
        let staging = Mutex::new(Staging::new()?);
        let products = Products::new(stream.0)?;
        Ok(Self(Arc::new(State {
            name,
            processors: processors.unsigned_abs(),
            pool: Pool::new(device)?,
            kernels: Kernels::load(shared.unsigned_abs(), major >= EARLY)?,
            products,
            staging,
            recording: Mutex::new(None),
            turns: RwLock::new(()),
            stream,
            context,
        })))
    }

    /// A turn for what cannot be recorded.
    fn turn_at_once(&self, call: &'static str) -> Result<Turn<'_>> {
        if self.0.records_here() {
            let detail = "not while launches are recorded".to_owned();
            return Err(Fault::Failed { call, detail });
        }
        self.0.turn()
    }
}

/// The stream, for one call: not to be held while another is asked for.
struct Turn<'a> {
    stream: sys::CUstream,
    _others: Option<RwLockReadGuard<'a, ()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn records_here(&self) -> bool {
        let here = thread::current().id();
        lock(&self.recording)
            .as_ref()
            .is_some_and(|recording| recording.thread == here)
    }

    /// The stream for one call, with the context current on this thread; waits while another thread records.
    fn turn(&self) -> Result<Turn<'_>> {
        self.context.bind()?;
        let shared = || self.turns.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Turn {
            stream: self.stream.0,
            _others: (!self.records_here()).then(shared),
        })
    }

    fn start_recording(&self) {
        *lock(&self.recording) = Some(Recording {
            thread: thread::current().id(),
            freed: Vec::new(),
        });
    }

    fn end_recording(&self) {
        let ended = lock(&self.recording).take();
        let freed = ended.into_iter().flat_map(|recording| recording.freed);
        freed.for_each(|address| self.free(address));
    }

    /// A fault of the device shows in the next call.
    fn free(&self, address: u64) {
        let _ = driver!(cuMemFreeAsync(address, self.stream.0));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // For the fields, which follow; a fault has nowhere to go.
        let _ = self
            .context
            .bind()
            .and_then(|()| driver!(cuStreamSynchronize(self.stream.0)));
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cuda").field(&self.0.name).finish()
    }
}

impl GpuDevice for Cuda {
    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn processors(&self) -> u32 {
        self.0.processors
    }

    fn shared(&self) -> u32 {
        self.0.kernels.shared()
    }

    /// What the pool keeps for later is free as well.
    fn memory(&self) -> Result<(usize, usize)> {
        self.0.context.bind()?;
        let (mut free, mut total) = (0, 0);
        driver!(cuMemGetInfo_v2(&mut free, &mut total))?;
        let reserved = self
            .0
            .pool
            .bytes(PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = self
            .0
            .pool
            .bytes(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok((free + reserved.saturating_sub(used), total))
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        let turn = self.turn_at_once("allocate")?;
        let mut address = 0;
        driver!(cuMemAllocAsync(&mut address, bytes, turn.stream)).map_err(
            |fault| match fault {
                Fault::OutOfMemory { .. } => Fault::OutOfMemory { bytes },
                fault => fault,
            },
        )?;
        // SAFETY: the driver has just allocated it.
        #[allow(unsafe_code)]
        Ok(unsafe { Address::new(address) })
    }

    fn free(&self, address: Address, _: usize) {
        let mut recording = lock(&self.0.recording); // kept, so that none begins meanwhile
        match &mut *recording {
            Some(recording) => recording.freed.push(address.get()),
            None if self.0.context.bind().is_ok() => self.0.free(address.get()),
            None => {}
        }
    }

    fn upload(&self, to: Address, data: &[u8]) -> Result<()> {
        let turn = self.turn_at_once("upload")?;
        lock(&self.0.staging).upload(turn.stream, to.get(), data)
    }

    fn download(&self, from: Address, data: &mut [u8]) -> Result<()> {
        let turn = self.turn_at_once("download")?;
        lock(&self.0.staging).download(turn.stream, from.get(), data)
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let turn = self.0.turn()?;
        driver!(cuMemcpyDtoDAsync_v2(
            to.get(),
            from.get(),
            bytes,
            turn.stream
        ))
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let turn = self.0.turn()?;
        driver!(cuMemsetD8Async(at.get(), 0, bytes, turn.stream))
    }

    fn launch(&self, launch: Launch<'_>) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let turn = self.0.turn()?;
        self.0.kernels.launch(turn.stream, launch)
    }

    fn gemm(&self, gemm: Gemm) -> Result<()> {
        if gemm.rows == 0 || gemm.out == 0 {
            return Ok(());
        }
        if gemm.input == 0 {
            return self.clear(gemm.y, gemm.rows * gemm.pitch * gemm.gives.size());
        }
        let _turn = self.0.turn()?;
        self.0.products.gemm(gemm)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        graph::record(&self.0, work).map(Some)
    }

    fn synchronise(&self) -> Result<()> {
        let turn = self.turn_at_once("synchronise")?;
        driver!(cuStreamSynchronize(turn.stream))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        let stream = self.turn_at_once("time")?.stream; // `work` takes turns of its own
        let event = || {
            Event::create(|event| {
                driver!(cuEventCreate(
                    event,
                    sys::CUevent_flags::CU_EVENT_DEFAULT as u32
                ))
            })
        };
        let (before, after) = (event()?, event()?);
        driver!(cuEventRecord(before.0, stream))?;
        work()?;
        driver!(cuEventRecord(after.0, stream))?;
        driver!(cuEventSynchronize(after.0))?;
        let mut milliseconds = 0.0;
        driver!(cuEventElapsedTime_v2(&mut milliseconds, before.0, after.0))?;
        Ok(milliseconds)
    }
}

#[cfg(test)]
mod tests;
