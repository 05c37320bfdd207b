//! `choir bench`: figures to trust before trusting the service.

mod engine;
pub mod gpu;
mod memory;
mod papers;
mod parts;
mod products;
mod sampler;
mod serve;
mod step;
mod steps;
mod variants;

use crate::catalog::{Catalog, CatalogConfig};
use crate::cli::scratch::Scratch;
use crate::cli::serve::StoreArgs;
use crate::engine::Generation;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::path::Path;

/// Measure this build on this machine.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Tokens per second of one engine: one materialised variant against rows of several variants and banks.
    Engine(engine::EngineBenchArgs),
    /// A device's bandwidth, every kernel against it, and steps of networks of random weights.
    Gpu(gpu::GpuBenchArgs),
    /// What each part of a server takes in memory, and whether the parts add up to what the process grew by.
    Memory(memory::MemoryArgs),
    /// A server under many clients at once: throughput, latencies, refusals, fairness.
    Serve(Box<serve::ServeBenchArgs>),
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
        What::Engine(args) => engine::run(args),
        What::Gpu(args) => gpu::run(args),
        What::Memory(args) => memory::run(args),
        What::Serve(args) => serve::run(*args),
        What::Sampler(args) => sampler::run(args),
        What::Step(args) => step::run(args),
        What::Variants(args) => variants::run(args),
    }
}

/// Opens the store that `args` name, or a new one that lasts as long as the returned guard.
fn open(args: &StoreArgs) -> Result<(Catalog, Generation, Option<Scratch>)> {
    let scratch = args.data_dir().is_none().then(|| Scratch::new("bench"));
    let (catalog, generation) = match &scratch {
        Some(scratch) => open_in(args, scratch.path())?,
        None => Catalog::open(args.config()?, |_| {}).context("opening the store")?,
    };
    Ok((catalog, generation, scratch))
}

/// Opens the store in `dir`, made where there is none, as `args` say otherwise.
fn open_in(args: &StoreArgs, dir: &Path) -> Result<(Catalog, Generation)> {
    let config = CatalogConfig {
        data_dir: dir.to_owned(),
        ..args.config()?
    };
    Catalog::open(config, |_| {}).context("opening the store")
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

/// The middle one; the mean of the two in the middle of an even number; NaN of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        count => values[count / 2],
    }
}
