//! `choir-lab bench`: figures to trust before trusting the service.

mod decoder;
mod engine;
pub mod gpu;
mod memory;
mod papers;
mod parts;
mod products;
mod sampler;
mod step;
mod steps;
mod variants;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

/// Measure this build on this machine.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// A decoder base at its real size on the host: loading, memory, and a step against reading its weights once.
    Decoder(decoder::DecoderBenchArgs),
    /// Tokens per second of one engine: one materialised variant against rows of several variants and banks.
    Engine(engine::EngineBenchArgs),
    /// A device's bandwidth, every kernel against it, and steps of networks of random weights.
    Gpu(gpu::GpuBenchArgs),
    /// What each part of a server takes in memory, and whether the parts add up to what the process grew by.
    Memory(memory::MemoryArgs),
    /// One step of a Duo and of a block sampler on a network of random weights: time in the network, time outside it, and
    /// peak memory against the logits.
    Sampler(sampler::SamplerBenchArgs),
    /// Where a step's time goes when sequences of several variants share it.
    Step(step::StepArgs),
    /// Stores of 16, 64 and 256 made-up variants: tokens per second by variants and banks touched, memory, and what adding one
    /// takes.
    Variants(variants::VariantsBenchArgs),
}

pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Decoder(args) => decoder::run(args),
        What::Engine(args) => engine::run(args),
        What::Gpu(args) => gpu::run(args),
        What::Memory(args) => memory::run(args),
        What::Sampler(args) => sampler::run(args),
        What::Step(args) => step::run(args),
        What::Variants(args) => variants::run(args),
    }
}

/// The middle one; the mean of the two in the middle of an even number; NaN of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        count => values[count / 2],
    }
}

/// A figure of this process in /proc/self/status, in bytes.
fn process_bytes(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")
        .context("only Linux says what a process takes")?;
    let found = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = found
        .with_context(|| format!("no {field}"))?
        .trim()
        .trim_end_matches(" kB");
    Ok(kib.parse::<u64>().context("not a number of kB")? << 10)
}
