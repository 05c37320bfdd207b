//! `choir bench`: figures to trust before trusting the service.

mod engine;
mod memory;

use crate::catalog::{Catalog, CatalogConfig};
use crate::cli::scratch::Scratch;
use crate::cli::serve::StoreArgs;
use crate::engine::Generation;
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
    /// Tokens per second of one engine: one materialised variant against rows of several variants and banks.
    Engine(engine::EngineBenchArgs),
    /// What each part of a server takes in memory, and whether the parts add up to what the process grew by.
    Memory(memory::MemoryArgs),
}

pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Engine(args) => engine::run(args),
        What::Memory(args) => memory::run(args),
    }
}

/// Opens the store that `args` name, or a new one that lasts as long as the returned guard.
fn open(args: &StoreArgs) -> Result<(Catalog, Generation, Option<Scratch>)> {
    let (config, scratch) = match args.data_dir() {
        Some(_) => (args.config()?, None),
        None => {
            let scratch = Scratch::new("bench");
            let config = CatalogConfig {
                data_dir: scratch.path().to_owned(),
                ..args.config()?
            };
            (config, Some(scratch))
        }
    };
    let (catalog, generation) = Catalog::open(config, |_| {}).context("opening the store")?;
    Ok((catalog, generation, scratch))
}
