//! `choir bench serve`, and what measuring needs besides: the laboratory uses it, too.

mod serve;

use crate::catalog::{Catalog, CatalogConfig};
use crate::cli::memory::Loading;
use crate::cli::scratch::Scratch;
use crate::cli::serve::StoreArgs;
use crate::engine::Generation;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::path::Path;

/// Measure a server on this machine.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// A server under many clients at once: throughput, latencies, refusals, fairness.
    Serve(Box<serve::ServeBenchArgs>),
}

pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Serve(args) => serve::run(*args),
    }
}

/// Opens the store that `args` name, or a new one that lasts as long as the returned guard.
pub fn open(args: &StoreArgs) -> Result<(Catalog, Generation, Option<Scratch>)> {
    let scratch = args.data_dir().is_none().then(|| Scratch::new("bench"));
    let (catalog, generation) = match &scratch {
        Some(scratch) => open_in(args, scratch.path())?,
        None => open_as(args.config()?)?,
    };
    Ok((catalog, generation, scratch))
}

/// Opens the store in `dir`, made where there is none, as `args` say otherwise.
pub fn open_in(args: &StoreArgs, dir: &Path) -> Result<(Catalog, Generation)> {
    let config = CatalogConfig {
        data_dir: dir.to_owned(),
        ..args.config()?
    };
    open_as(config)
}

fn open_as(config: CatalogConfig) -> Result<(Catalog, Generation)> {
    let _loading = Loading::begin();
    Catalog::open(config, |_| {}).context("opening the store")
}

/// A figure of this process in /proc/self/status, in bytes.
pub fn process_bytes(field: &str) -> Result<u64> {
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
