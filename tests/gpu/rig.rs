//! What tests of kernels have in common: a machine for each of several orders of threads, and numbers of both dtypes.

use std::sync::Arc;

use choir::ops::gpu::products::PartFacts;
use choir::ops::gpu::{Buffer, Dtype, GpuDevice, Launch, Plain, Result};
use choir::rng::{Key, Stream};
use choir::transform::{self, Side, Signs};
use half::bf16;

use crate::emulated::Emulated;

/// A machine: an emulated one, or a device.
pub struct Rig {
    pub gpu: Arc<dyn GpuDevice>,
}

/// The bytes of numbers one after the other, as a kernel's structure has them.
macro_rules! args {
    ($($number:expr),* $(,)?) => {{
        let mut bytes: Vec<u8> = Vec::new();
        $(bytes.extend_from_slice(choir::ops::gpu::bytes_of(&[$number]));)*
        bytes
    }};
}
pub(crate) use args;

impl Rig {
    /// An emulated one; `seed` decides in which order threads run. None without a compiler, or where a device is tested.
    pub fn new(seed: u64) -> Option<Self> {
        match on_device() {
            true => None,
            false => Some(Self {
                gpu: Emulated::new(seed)?,
            }),
        }
    }

    /// An emulated one for each of several orders.
    pub fn orders() -> impl Iterator<Item = Self> {
        (0..5).filter_map(Self::new)
    }

    /// As [`orders`](Self::orders); where `CHOIR_TEST_MACHINE` is `cuda`, the first device instead.
    pub fn all() -> impl Iterator<Item = Self> {
        let device = on_device().then(|| Self { gpu: cuda() });
        device.into_iter().chain(Self::orders())
    }

    /// The same, but one order is enough.
    pub fn one() -> Option<Self> {
        Self::all().next()
    }

    pub fn gpu(&self) -> &dyn GpuDevice {
        &*self.gpu
    }

    pub fn buffer<T: Plain>(&self, data: &[T]) -> Buffer {
        Buffer::from(&self.gpu, data).unwrap()
    }

    /// Full of NaN.
    pub fn empty(&self, bytes: usize) -> Buffer {
        self.buffer(&vec![0xffu8; bytes])
    }

    pub fn launch(
        &self,
        kernel: &str,
        grid: u32,
        (block, shared): (u32, u32),
        args: &[u8],
    ) -> Result<()> {
        self.gpu.launch(Launch {
            kernel,
            grid: [grid, 1, 1],
            block,
            shared,
            args,
        })
    }
}

fn on_device() -> bool {
    std::env::var_os("CHOIR_TEST_MACHINE").is_some_and(|gpu| gpu == "cuda")
}

#[cfg(feature = "cuda")]
fn cuda() -> Arc<dyn GpuDevice> {
    static DEVICE: std::sync::OnceLock<Arc<dyn GpuDevice>> = std::sync::OnceLock::new();
    let open = || -> Arc<dyn GpuDevice> { Arc::new(choir::ops::gpu::cuda::Cuda::open(0).unwrap()) };
    DEVICE.get_or_init(open).clone()
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Arc<dyn GpuDevice> {
    panic!("these tests were built without CUDA")
}

/// What activations and matrices are made of.
pub trait Number: Plain + PartialEq + std::fmt::Debug {
    const DTYPE: Dtype;
    /// Rounded.
    fn of(x: f32) -> Self;
    fn wide(self) -> f32;
}

impl Number for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn of(x: f32) -> Self {
        x
    }
    fn wide(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

pub fn stream(name: &str) -> Stream {
    Stream::new(Key::derive(&[name.as_bytes()]))
}

/// Standard normal numbers.
pub fn normals<T: Number>(random: &mut Stream, count: usize) -> Vec<T> {
    (0..count).map(|_| T::of(random.normal() as f32)).collect()
}

/// Variants of one matrix [out, input]: keys of the input side and c a l.
pub struct Variants {
    pub signs: Vec<Signs>,
    pub keys: Vec<u32>,
    pub outputs: Vec<bf16>,
}

impl Variants {
    pub fn new(random: &mut Stream, count: usize, [out, input]: [usize; 2]) -> Self {
        let seeds = 0..count as u64;
        let key = |seed| transform::key(seed, "matrix", Side::Input).0;
        Self {
            signs: seeds
                .clone()
                .map(|seed| Signs::new(seed, "matrix", Side::Input, input))
                .collect(),
            keys: seeds
                .flat_map(key)
                .collect::<Vec<u8>>()
                .chunks(4)
                .map(|x| u32::from_le_bytes(x.try_into().unwrap()))
                .collect(),
            outputs: normals(random, count * out),
        }
    }
}

/// `count` parts of different rows among `rows`, of any variants.
pub fn parts(
    random: &mut Stream,
    (count, rows): (usize, usize),
    variants: usize,
) -> Vec<PartFacts> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    for i in (1..rows).rev() {
        order.swap(i, random.below(i + 1));
    }
    let part = |row| PartFacts {
        row,
        variant: random.below(variants) as u32,
        weight: random.uniform() as f32,
        bank: 0,
    };
    order.into_iter().take(count).map(part).collect()
}
