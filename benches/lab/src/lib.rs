//! Choir's laboratory: what kernels and engines reach on a machine, what ways to keep variants cost, and pictures of both.
//! Nothing that serves depends on it.

#![deny(unsafe_code)]

pub mod bench;
mod eval;
mod picture;
mod random_model;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measure this build of Choir on this machine.
#[derive(Parser, Debug)]
#[command(name = "choir-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Bench(bench::BenchArgs),
    Eval(eval::EvalArgs),
    RandomModel(random_model::RandomModelArgs),
}

/// Parses the arguments and runs the command. Wrong arguments end the process with status 2.
pub fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Bench(args) => bench::run(args),
        Command::Eval(args) => eval::run(args),
        Command::RandomModel(args) => random_model::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn options_are_consistent() {
        Cli::command().debug_assert();
    }
}
