//! A [`GpuDevice`] without a card: kernels run as `host/host.h` tells, in the host's memory.
//!
//! New memory is full of NaN and has guards on both sides; a launch that writes into one fails.

#[path = "libraries.rs"]
mod libraries;

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use choir::ops::gpu::{Address, Dtype, Fault, Gemm, GpuDevice, Graph, Launch, Result, recorded};
use half::bf16;
use libraries::Libraries;
use rayon::prelude::*;

const GUARD: usize = 4096;
const POISON: u8 = 0xff;

/// One launch, as host.h reads it.
#[repr(C)]
struct Call {
    args: *const u8,
    bytes: u64,
    seed: u64,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    message: [u8; 300],
}

type Kernel = unsafe extern "C" fn(*mut Call) -> bool;

#[derive(Debug)]
pub struct Emulated {
    seed: u64,
    processors: u32,
    total: usize,
    used: AtomicUsize,
    /// Bytes of what is allocated, by address.
    allocations: Mutex<BTreeMap<u64, usize>>,
    /// While it records.
    recording: Mutex<Option<Vec<Recorded>>>,
    /// Recordings made so far.
    recordings: AtomicUsize,
    /// Whether something was asked for since somebody waited for all of it.
    pending: AtomicBool,
    own: Weak<Self>,
}

/// What a replay does again.
#[derive(Debug)]
enum Recorded {
    Launch {
        kernel: String,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: Vec<u8>,
    },
    Gemm(Gemm),
    Copy(Address, Address, usize),
    Clear(Address, usize),
}

struct Recording {
    machine: Arc<Emulated>,
    calls: Vec<Recorded>,
}

impl Graph for Recording {
    fn replay(&self) -> Result<()> {
        self.calls.iter().try_for_each(|call| match call {
            Recorded::Launch {
                kernel,
                grid,
                block,
                shared,
                args,
            } => self.machine.launch(Launch {
                kernel,
                grid: *grid,
                block: *block,
                shared: *shared,
                args,
            }),
            Recorded::Gemm(gemm) => self.machine.gemm(*gemm),
            Recorded::Copy(to, from, bytes) => self.machine.copy(*to, *from, *bytes),
            Recorded::Clear(at, bytes) => self.machine.clear(*at, *bytes),
        })
    }
}

impl Emulated {
    /// `None`, and a word on stderr, where there is no compiler. `seed` decides in which order threads run: 0 is the plain one.
    pub fn new(seed: u64) -> Option<Arc<Self>> {
        Self::sized(seed, 4, 16 << 30)
    }

    /// With that many multiprocessors and bytes of memory.
    pub fn sized(seed: u64, processors: u32, total: usize) -> Option<Arc<Self>> {
        Libraries::get().map(|_| {
            Arc::new_cyclic(|own| Self {
                seed,
                processors,
                total,
                used: AtomicUsize::new(0),
                allocations: Mutex::default(),
                recording: Mutex::default(),
                recordings: AtomicUsize::default(),
                pending: AtomicBool::default(),
                own: own.clone(),
            })
        })
    }

    /// Bytes that are allocated now.
    pub fn allocated(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    pub fn recordings(&self) -> usize {
        self.recordings.load(Ordering::SeqCst)
    }

    /// Whether what was asked for may still run: on a card nobody knows yet whether it fails.
    pub fn pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + 2 * GUARD, GUARD).unwrap()
    }

    /// Whether the call waits for a replay.
    fn recorded(&self, call: impl FnOnce() -> Recorded) -> bool {
        let mut recording = self.recording.lock().unwrap();
        recording.as_mut().map(|calls| calls.push(call())).is_some()
    }

    /// Fails while it records.
    fn at_once(&self, call: &'static str) -> Result<()> {
        match *self.recording.lock().unwrap() {
            Some(_) => Err(Fault::Failed {
                call,
                detail: "not while launches are recorded".into(),
            }),
            None => Ok(()),
        }
    }

    /// Fails unless all of `[at, at + bytes)` lies in one allocation.
    fn check(&self, call: &'static str, at: Address, bytes: usize) -> Result<()> {
        let at = at.get();
        let allocations = self.allocations.lock().unwrap();
        match allocations.range(..=at).next_back() {
            Some((&start, &size)) if at + bytes as u64 <= start + size as u64 => Ok(()),
            _ => Err(Fault::Failed {
                call,
                detail: format!("{bytes} bytes at {at:#x} are not within an allocation"),
            }),
        }
    }

    /// Fails if a guard was written, and makes it whole.
    fn check_guards(&self, kernel: &str) -> Result<()> {
        for (&address, &bytes) in &*self.allocations.lock().unwrap() {
            for (start, side) in [
                (address - GUARD as u64, "before"),
                (address + bytes as u64, "after"),
            ] {
                // SAFETY: both guards belong to the allocation, and nothing else refers to them.
                let guard = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, GUARD) };
                if let Some(at) = guard.iter().position(|&byte| byte != POISON) {
                    guard.fill(POISON);
                    let place = start as i64 + at as i64 - address as i64;
                    return Err(Fault::Failed {
                        call: "launch",
                        detail: format!(
                            "{kernel} wrote {side} a buffer of {bytes} bytes, at byte {place} of it"
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    fn row(at: Address, index: usize, width: usize, dtype: Dtype) -> Vec<f32> {
        let at = (at + index * width * dtype.size()).get();
        // SAFETY: the caller has checked that the matrix lies within an allocation, whose every byte is initialised.
        unsafe {
            match dtype {
                Dtype::F32 => std::slice::from_raw_parts(at as *const f32, width).to_vec(),
                Dtype::Bf16 => {
                    let row = std::slice::from_raw_parts(at as *const half::bf16, width);
                    row.iter().map(|x| x.to_f32()).collect()
                }
            }
        }
    }
}

impl GpuDevice for Emulated {
    fn name(&self) -> String {
        "emulated".into()
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn shared(&self) -> u32 {
        164 << 10
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((self.total - self.allocated(), self.total))
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        assert!(bytes > 0);
        self.at_once("allocate")?;
        let mut allocations = self.allocations.lock().unwrap();
        if self.allocated() + bytes > self.total {
            return Err(Fault::OutOfMemory { bytes });
        }
        let layout = Self::layout(bytes);
        // SAFETY: the layout is not empty; all of it is initialised at once.
        let address = unsafe {
            let start = std::alloc::alloc(layout);
            assert!(!start.is_null());
            start.write_bytes(POISON, layout.size());
            start as u64 + GUARD as u64
        };
        self.used.fetch_add(bytes, Ordering::SeqCst);
        allocations.insert(address, bytes);
        // SAFETY: it has just been allocated.
        Ok(unsafe { Address::new(address) })
    }

    fn free(&self, address: Address, bytes: usize) {
        let address = address.get();
        let known = self.allocations.lock().unwrap().remove(&address);
        assert_eq!(
            known,
            Some(bytes),
            "what is freed is not what was allocated"
        );
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        // SAFETY: from `allocate`, with the same layout, and forgotten now.
        unsafe { std::alloc::dealloc((address - GUARD as u64) as *mut u8, Self::layout(bytes)) }
    }

    fn upload(&self, to: Address, data: &[u8]) -> Result<()> {
        self.at_once("upload")?;
        self.check("upload", to, data.len())?;
        // SAFETY: checked above.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.get() as *mut u8, data.len()) };
        Ok(())
    }

    fn download(&self, from: Address, data: &mut [u8]) -> Result<()> {
        self.at_once("download")?;
        self.check("download", from, data.len())?;
        // SAFETY: checked above.
        unsafe {
            std::ptr::copy_nonoverlapping(from.get() as *const u8, data.as_mut_ptr(), data.len())
        };
        self.pending.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        if self.recorded(|| Recorded::Copy(to, from, bytes)) {
            return Ok(());
        }
        self.check("copy", to, bytes)?;
        self.check("copy", from, bytes)?;
        // SAFETY: checked above.
        unsafe { std::ptr::copy(from.get() as *const u8, to.get() as *mut u8, bytes) };
        Ok(())
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        if self.recorded(|| Recorded::Clear(at, bytes)) {
            return Ok(());
        }
        self.check("clear", at, bytes)?;
        // SAFETY: checked above.
        unsafe { std::ptr::write_bytes(at.get() as *mut u8, 0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: Launch<'_>) -> Result<()> {
        if self.recorded(|| Recorded::Launch {
            kernel: launch.kernel.into(),
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            args: launch.args.to_vec(),
        }) {
            return Ok(());
        }
        self.pending.store(true, Ordering::SeqCst);
        let kernel = Libraries::get()
            .unwrap()
            .find(launch.kernel)
            .ok_or_else(|| Fault::NoKernel {
                name: launch.kernel.into(),
            })?;
        // Arguments at a multiple of 16, as structures of them may ask for.
        let mut args = vec![0u128; launch.args.len().div_ceil(16)];
        // SAFETY: as many bytes as the vector has at least.
        unsafe {
            std::ptr::copy_nonoverlapping(
                launch.args.as_ptr(),
                args.as_mut_ptr().cast(),
                launch.args.len(),
            )
        };
        let mut call = Call {
            args: args.as_ptr().cast(),
            bytes: launch.args.len() as u64,
            seed: self.seed,
            grid: launch.grid,
            threads: launch.block,
            shared: launch.shared,
            message: [0; 300],
        };
        // SAFETY: `call` is what the kernel expects; where it writes astray the guards tell.
        if !unsafe { kernel(&mut call) } {
            let message = call
                .message
                .split(|&byte| byte == 0)
                .next()
                .unwrap_or_default();
            return Err(Fault::Failed {
                call: "launch",
                detail: String::from_utf8_lossy(message).into_owned(),
            });
        }
        self.check_guards(launch.kernel)
    }

    fn gemm(&self, gemm: Gemm) -> Result<()> {
        if self.recorded(|| Recorded::Gemm(gemm)) {
            return Ok(());
        }
        let Gemm {
            rows,
            out,
            input,
            pitch,
            dtype,
            gives,
            ..
        } = gemm;
        self.check("gemm", gemm.x, rows * input * dtype.size())?;
        self.check("gemm", gemm.w, out * input * dtype.size())?;
        let last = rows.saturating_sub(1) * pitch + out;
        self.check("gemm", gemm.y, last * gives.size())?;
        let w: Vec<_> = (0..out)
            .map(|i| Self::row(gemm.w, i, input, dtype))
            .collect();
        (0..rows).into_par_iter().for_each(|i| {
            let x = Self::row(gemm.x, i, input, dtype);
            let y = (gemm.y + i * pitch * gives.size()).get();
            for (at, w) in w.iter().enumerate() {
                let product = choir::ops::math::dot(&x, w);
                // SAFETY: checked above; nothing else refers to y meanwhile.
                unsafe {
                    match gives {
                        Dtype::F32 => *(y as *mut f32).add(at) = product,
                        Dtype::Bf16 => *(y as *mut bf16).add(at) = bf16::from_f32(product),
                    }
                }
            }
        });
        Ok(())
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        *self.recording.lock().unwrap() = Some(Vec::new());
        let end = || Ok(self.recording.lock().unwrap().take().unwrap_or_default());
        let calls = recorded(work, end)?;
        self.recordings.fetch_add(1, Ordering::SeqCst);
        let machine = self.own.upgrade().unwrap();
        Ok(Some(Box::new(Recording { machine, calls })))
    }

    fn synchronise(&self) -> Result<()> {
        self.at_once("synchronise")?;
        self.pending.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f32() * 1e3)
    }
}
