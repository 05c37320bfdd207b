//! `choir bench`: figures to trust before trusting the service.

mod engine;
mod memory;

use crate::catalog::{Catalog, CatalogConfig};
use crate::cli::serve::StoreArgs;
use crate::engine::Generation;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

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

/// A store made for this run, unless the arguments name one; removed at the end.
struct Scratch(Option<PathBuf>);

impl Scratch {
    fn dir(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Opens the store that `args` name, or a new one that lasts as long as the returned guard.
fn open(args: &StoreArgs) -> Result<(Catalog, Generation, Scratch)> {
    let (config, scratch) = match args.data_dir() {
        Some(_) => (args.config()?, Scratch(None)),
        None => {
            let dir = std::env::temp_dir().join(format!("choir-bench-{}", std::process::id()));
            let config = CatalogConfig {
                data_dir: dir.clone(),
                ..args.config()?
            };
            (config, Scratch(Some(dir)))
        }
    };
    let (catalog, generation) = Catalog::open(config, |_| {}).context("opening the store")?;
    Ok((catalog, generation, scratch))
}
