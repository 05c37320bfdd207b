//! `choir-lab bench gpu`: a device's own bandwidth, every kernel that has to reach it, and whole steps of networks of random
//! weights on it.

mod bank_gemm;
mod meter;
mod network;
mod own;
mod report;
mod sampling;
mod sequences;
mod sizes;
mod step;
mod streams;

use super::median;
use crate::random_model::config;
use anyhow::{Result, bail};
use choir::model::Architecture;
use choir::ops::gpu::draw::key_words;
use choir::ops::gpu::superposition::Noise;
use choir::ops::gpu::{Buffer, Dtype, Fault, GpuDevice};
use choir::rng::Key;
use clap::{Args, ValueEnum};
use meter::Metered;
use report::Report;
pub use sizes::Sizes;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Args, Debug)]
pub struct GpuBenchArgs {
    /// The device, cuda:N.
    #[arg(long, default_value = "cuda:0", value_parser = ordinal)]
    device: usize,
    /// Parts to run [default: all].
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<KernelBench>,
    /// Decoder bodies that steps are measured of: sdar-1.7b, sdar-4b, sdar-8b, a2d-qwen3-0.6b, a2d-qwen2-0.5b. Asks for
    /// `step-decoder` where no part is named.
    #[arg(long, value_delimiter = ',', value_parser = shape)]
    shape: Vec<(String, Architecture)>,
    /// Seconds to a measurement, after warming up.
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
    /// Write all figures there as JSON, after every part.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelBench {
    /// Copies on the device: what bandwidths are compared with.
    Copy,
    /// cuBLAS in bfloat16.
    Gemm,
    /// Whole matrices of variants.
    Retrieve,
    /// Products of rows with banks.
    BankGemm,
    /// Products of rows with what variants keep by themselves.
    Own,
    /// Draws from logits.
    Sampling,
    /// Steps of the published small size.
    StepSmall,
    /// One sequence in blocks, step after step.
    Latency,
    /// Whole sequences of the uniform process.
    Duo,
    /// Steps of four billion parameters.
    #[value(name = "step-4b")]
    StepLarge,
    /// Steps of decoder bodies of published shapes: see --shape.
    StepDecoder,
}

/// A decoder body, as FAMILY-SIZE.
pub fn shape(name: &str) -> Result<(String, Architecture), String> {
    let (family, size) = name.rsplit_once('-').ok_or("a shape is FAMILY-SIZE")?;
    let config = config(family, size, None).map_err(|error| error.to_string())?;
    let read = Architecture::read(config.to_string().as_bytes());
    Ok((name.to_owned(), read.map_err(|error| error.to_string())?))
}

fn ordinal(device: &str) -> Result<usize, String> {
    let number = device.strip_prefix("cuda:").unwrap_or(device);
    number.parse().map_err(|_| "a device is cuda:N".to_owned())
}

pub fn run(args: GpuBenchArgs) -> Result<()> {
    if args.seconds.is_nan() || args.seconds <= 0.0 {
        bail!("--seconds must be above 0");
    }
    let mut sizes = Sizes::full();
    let parts = match (&args.only[..], args.shape.is_empty()) {
        ([], true) => KernelBench::value_variants(),
        ([], false) => &[KernelBench::StepDecoder],
        (only, _) => only,
    };
    if !args.shape.is_empty() {
        sizes.decoders = args.shape;
    }
    measure(open(args.device)?, sizes, args.seconds, parts, args.json)
}

#[cfg(feature = "cuda")]
fn open(ordinal: usize) -> Result<Arc<dyn GpuDevice>> {
    Ok(Arc::new(choir::ops::gpu::cuda::Cuda::open(ordinal)?))
}

#[cfg(not(feature = "cuda"))]
fn open(_: usize) -> Result<Arc<dyn GpuDevice>> {
    bail!("this build has no CUDA: it was made without the feature `cuda`")
}

/// Runs `parts` one after the other, `seconds` to a measurement. A part that fails says so; the others are run, and then
/// this fails.
pub fn measure(
    gpu: Arc<dyn GpuDevice>,
    sizes: Sizes,
    seconds: f64,
    parts: &[KernelBench],
    json: Option<PathBuf>,
) -> Result<()> {
    let (free, total) = gpu.memory()?;
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    println!(
        "{}, {} processors, {:.1} of {:.1} GiB free",
        gpu.name(),
        gpu.processors(),
        gib(free),
        gib(total)
    );
    let meter = Arc::new(Metered::new(gpu));
    let mut bench = Bench {
        report: Report::new(json),
        gpu: meter.clone(),
        meter,
        sizes,
        seconds,
        made: AtomicU64::new(0),
        copied: None,
    };
    let mut failed = Vec::new();
    for &part in parts {
        if let Err(error) = bench.part(part) {
            println!("{part:?} failed: {error:#}");
            failed.push(format!("{part:?}"));
        }
        bench.report.save()?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}

/// To a measurement of copying.
const COPIES: usize = 4;

/// A machine and what is measured on it.
struct Bench {
    gpu: Arc<dyn GpuDevice>,
    /// The same.
    meter: Arc<Metered>,
    sizes: Sizes,
    /// To a measurement.
    seconds: f64,
    report: Report,
    /// Pieces of noise so far.
    made: AtomicU64,
    /// Bytes per millisecond of a copy, read and written.
    copied: Option<f64>,
}

impl Bench {
    fn part(&mut self, part: KernelBench) -> Result<()> {
        match part {
            KernelBench::Copy => streams::copy(self),
            KernelBench::Gemm => streams::gemm(self),
            KernelBench::Retrieve => streams::retrieve(self),
            KernelBench::BankGemm => bank_gemm::measure(self),
            KernelBench::Own => own::measure(self),
            KernelBench::Sampling => sampling::measure(self),
            KernelBench::StepSmall => {
                let small = self.sizes.small.architecture()?;
                step::measure(self, "step-small", &small)
            }
            KernelBench::Latency => sequences::latency(self),
            KernelBench::Duo => sequences::duo(self),
            KernelBench::StepLarge => {
                let large = self.sizes.large.architecture()?;
                step::measure(self, "step-4b", &large)
            }
            KernelBench::StepDecoder => {
                for (shape, decoder) in self.sizes.decoders.clone() {
                    let parameters = decoder.facts().parameters as f64;
                    let figures = [("parameters", parameters)];
                    self.report.line("step-decoder", &shape, &figures);
                    step::measure(self, &shape, &decoder)?;
                }
                Ok(())
            }
        }
    }

    fn key(&self) -> [u32; 8] {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        key_words(&Key::derive(&[b"choir/bench/gpu", &number.to_le_bytes()]))
    }

    /// `count` numbers within `scale` of 0.
    fn noise(&self, dtype: Dtype, count: usize, scale: f32) -> Result<Buffer, Fault> {
        let out = Buffer::new(&self.gpu, count * dtype.size())?;
        let noise = Noise {
            out: out.address(),
            key: self.key(),
            count: count as u64,
            scale,
            unused: 0,
        };
        noise.launch(&*self.gpu, dtype)?;
        Ok(out)
    }

    /// A matrix [out, input] in tiles, of weights of about `scale`.
    fn tiles(&self, out: usize, input: usize, scale: f32) -> Result<Buffer, Fault> {
        let bytes = choir::ops::gpu::tiles::tile_bytes(out, input);
        let buffer = Buffer::new(&self.gpu, bytes)?;
        let noise = Noise {
            out: buffer.address(),
            key: self.key(),
            count: (bytes / size_of::<choir::ops::gpu::tiles::Tile>()) as u64,
            scale,
            unused: 0,
        };
        noise.launch_tiles(&*self.gpu)?;
        Ok(buffer)
    }

    /// How many pieces of `bytes` no cache of the device holds.
    fn copies(&self, bytes: usize) -> usize {
        self.sizes.cold.div_ceil(bytes.max(1)).max(1)
    }

    /// How many measurements fit, of which the first took `first` milliseconds.
    fn repeats(&self, first: f64) -> usize {
        ((1e3 * self.seconds / first.max(1e-3)) as usize).clamp(1, 100)
    }

    /// Milliseconds of one launch: the median over replays of enough of them to go through all `copies`, numbered.
    fn each(
        &self,
        copies: usize,
        mut launch: impl FnMut(usize) -> Result<(), Fault>,
    ) -> Result<f64, Fault> {
        let count = if copies == 1 { 1 } else { copies.max(20) };
        let mut all = || (0..count).try_for_each(|number| launch(number % copies));
        all()?; // libraries load what they need
        let graph = self.gpu.record(&mut all)?;
        let mut once = || match &graph {
            Some(graph) => graph.replay(),
            None => all(),
        };
        let first = self.gpu.time(&mut once)?;
        let times: Result<Vec<f64>, Fault> = (0..self.repeats(first.into()))
            .map(|_| self.gpu.time(&mut once).map(f64::from))
            .collect();
        Ok(median(times?) / count as f64)
    }

    /// Bytes per millisecond that a copy reads and writes.
    fn copied(&mut self) -> Result<f64> {
        if let Some(copied) = self.copied {
            return Ok(copied);
        }
        let bytes = self.sizes.copy;
        let from = self.noise(Dtype::Bf16, bytes / 2, 1.0)?;
        let to = Buffer::new(&self.gpu, bytes)?;
        // Not recorded: a copy within a recording is slower.
        let mut copy =
            || (0..COPIES).try_for_each(|_| self.gpu.copy(to.address(), from.address(), bytes));
        let took: Result<Vec<f64>, Fault> = (0..4)
            .map(|_| self.gpu.time(&mut copy).map(f64::from))
            .collect();
        let copied = 2.0 * (COPIES * bytes) as f64 / median(took?.split_off(1));
        self.copied = Some(copied);
        Ok(copied)
    }

    /// GB/s of so many bytes in so many milliseconds, and their share of a copy's.
    fn bandwidth(&mut self, bytes: usize, took: f64) -> Result<[(&'static str, f64); 3]> {
        let rate = bytes as f64 / took;
        Ok([
            ("µs", 1e3 * took),
            ("GB/s", rate * 1e-6),
            ("of a copy", rate / self.copied()?),
        ])
    }
}
