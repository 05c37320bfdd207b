//! `choir bench serve`, and what measuring needs besides: the laboratory uses it, too.

mod serve;

use crate::catalog::Catalog;
use crate::cli::memory::loading;
use crate::cli::scratch::ScratchStore;
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
pub fn open(args: &StoreArgs) -> Result<(Catalog, Generation, Option<ScratchStore>)> {
    let scratch = args
        .data_dir()
        .is_none()
        .then(|| ScratchStore::new("bench"));
    let (catalog, generation) = open_in(args, scratch.as_ref().map(ScratchStore::path))?;
    Ok((catalog, generation, scratch))
}

/// Opens the store in `dir`, made where there is none, and as `args` say otherwise.
pub fn open_in(args: &StoreArgs, dir: Option<&Path>) -> Result<(Catalog, Generation)> {
    let mut config = args.config()?;
    config.data_dir = dir.map_or(config.data_dir, Path::to_owned);
    loading(true);
    let opened = Catalog::open(config, |_| {}).context("opening the store");
    loading(false);
    opened
}
