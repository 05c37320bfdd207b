//! The command line: one binary for those who serve, those who ask, and those who measure.

pub mod bench;
mod client;
mod eval;
mod generate;
mod json;
mod materialise;
mod picture;
mod place;
mod sampling;
mod score;
mod scratch;
mod serve;
mod status;
pub mod train;
mod variants;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// One base diffusion language model and many full fine-tunes of it ("variants"), served together.
///
/// Start with `choir serve`, then, in another terminal, `choir generate "Once upon a time"` and
/// `choir generate --variant shakespeare "KING:"`.
#[derive(Parser, Debug)]
#[command(name = "choir", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(serve::ServeArgs),
    Generate(generate::GenerateArgs),
    Score(score::ScoreArgs),
    Variants(variants::VariantsArgs),
    Status(status::StatusArgs),
    Train(train::TrainArgs),
    Bench(bench::BenchArgs),
    Eval(eval::EvalArgs),
}

/// Parses the arguments and runs the command. Wrong arguments end the process with status 2.
pub fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::run(args),
        Command::Variants(args) => variants::run(args),
        Command::Status(args) => status::run(args),
        Command::Train(args) => train::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Eval(args) => eval::run(args),
    }
}
