//! A machine that times what another one does for a network.

use choir::ops::gpu::{Address, Gemm, GpuDevice, Graph, Launch, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: work is passed on.
    #[default]
    Off,
    /// Every replay of what was recorded.
    Replays,
    /// Every launch; nothing is recorded.
    Launches,
}

#[derive(Debug, Default)]
struct Times {
    mode: Mode,
    /// Milliseconds and how many.
    replays: (f64, usize),
    launches: BTreeMap<String, (f64, usize)>,
}

pub struct Metered {
    inner: Arc<dyn GpuDevice>,
    times: Arc<Mutex<Times>>,
}

fn lock(times: &Mutex<Times>) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metered {
    pub fn new(inner: Arc<dyn GpuDevice>) -> Self {
        Self {
            inner,
            times: Arc::default(),
        }
    }

    /// Forgets what was measured, and measures that from now on.
    pub fn start(&self, mode: Mode) {
        *lock(&self.times) = Times {
            mode,
            ..Times::default()
        };
    }

    /// Milliseconds of replays since the start; `None` if there was none.
    pub fn replays(&self) -> Option<f64> {
        let (took, count) = lock(&self.times).replays;
        (count > 0).then_some(took)
    }

    /// Milliseconds and numbers of launches since the start, by kernel, longest first.
    pub fn launches(&self) -> Vec<(String, f64, usize)> {
        let launches = std::mem::take(&mut lock(&self.times).launches);
        let mut all: Vec<_> = launches
            .into_iter()
            .map(|(name, (took, n))| (name, took, n))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }

    fn timed(
        &self,
        name: impl FnOnce() -> String,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        if lock(&self.times).mode != Mode::Launches {
            return work();
        }
        let took = self.inner.time(work)?;
        let mut times = lock(&self.times);
        let (sum, count) = times.launches.entry(name()).or_default();
        *sum += f64::from(took);
        *count += 1;
        Ok(())
    }
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metered").field(&self.inner).finish()
    }
}

struct Recorded {
    graph: Box<dyn Graph>,
    gpu: Arc<dyn GpuDevice>,
    times: Arc<Mutex<Times>>,
}

impl Graph for Recorded {
    fn replay(&self) -> Result<()> {
        if lock(&self.times).mode != Mode::Replays {
            return self.graph.replay();
        }
        let took = self.gpu.time(&mut || self.graph.replay())?;
        let mut times = lock(&self.times);
        times.replays.0 += f64::from(took);
        times.replays.1 += 1;
        Ok(())
    }
}

impl GpuDevice for Metered {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn processors(&self) -> u32 {
        self.inner.processors()
    }

    fn shared(&self) -> u32 {
        self.inner.shared()
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.inner.memory()
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.inner.allocate(bytes)
    }

    fn free(&self, address: Address, bytes: usize) {
        self.inner.free(address, bytes);
    }

    fn upload(&self, to: Address, data: &[u8]) -> Result<()> {
        self.inner.upload(to, data)
    }

    fn download(&self, from: Address, data: &mut [u8]) -> Result<()> {
        self.inner.download(from, data)
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.inner.copy(to, from, bytes)
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        self.inner.clear(at, bytes)
    }

    fn launch(&self, launch: Launch<'_>) -> Result<()> {
        self.timed(|| launch.kernel.to_owned(), &mut || {
            self.inner.launch(launch)
        })
    }

    fn gemm(&self, gemm: Gemm) -> Result<()> {
        let name = || format!("gemm {} x {}", gemm.out, gemm.input);
        self.timed(name, &mut || self.inner.gemm(gemm))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        if lock(&self.times).mode == Mode::Launches {
            work()?;
            return Ok(None);
        }
        let recorded = |graph| -> Box<dyn Graph> {
            Box::new(Recorded {
                graph,
                gpu: self.inner.clone(),
                times: self.times.clone(),
            })
        };
        Ok(self.inner.record(work)?.map(recorded))
    }

    fn synchronise(&self) -> Result<()> {
        self.inner.synchronise()
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        self.inner.time(work)
    }
}
