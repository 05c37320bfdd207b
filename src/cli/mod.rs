//! The command line.

pub mod eval;
pub mod train;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// One base diffusion language model and many full fine-tunes of it, served together.
#[derive(Parser, Debug)]
#[command(name = "choir", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Train(train::TrainArgs),
    Eval(eval::EvalArgs),
}

/// Parses the arguments and runs the command.
pub fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
    }
}
