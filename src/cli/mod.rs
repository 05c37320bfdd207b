//! The command line: one binary for those who serve, those who ask, and those who measure.

pub mod bench;
pub mod capacity;
mod chat;
mod client;
mod doors;
pub mod eval;
mod exit;
pub mod fine_tune;
mod generate;
pub mod json;
mod materialise;
pub mod memory;
pub mod place;
mod sampling;
mod score;
pub mod scratch;
pub mod serve;
mod status;
mod store;
pub mod train;
mod variants;

pub use exit::end;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// One base diffusion language model and many full fine-tunes of it ("variants"), served together.
///
/// Start with `choir serve`, then, in another terminal, `choir generate "Once upon a time"` and
/// `choir generate --variant shakespeare "KING:"`.
#[derive(Parser, Debug)]
#[command(name = "choir", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(serve::ServeArgs),
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Score(score::ScoreArgs),
    Variants(variants::VariantsArgs),
    Status(status::StatusArgs),
    Store(store::StoreCommandArgs),
    Train(train::TrainArgs),
    Pack(train::pack::PackArgs),
    Bench(bench::BenchArgs),
    Eval(eval::EvalArgs),
}

/// Parses the arguments and runs the command. Wrong arguments end the process with status 2.
pub fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Score(args) => score::run(args),
        Command::Variants(args) => variants::run(args),
        Command::Status(args) => status::run(args),
        Command::Store(args) => store::run(args),
        Command::Train(args) => train::run(args),
        Command::Pack(args) => train::pack::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Eval(args) => eval::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn options_are_consistent_and_stand_under_their_own_headings() {
        Cli::command().debug_assert();
        let mut left = vec![Cli::command()];
        while let Some(command) = left.pop() {
            left.extend(command.get_subcommands().cloned());
            for option in ["server", "json", "out"] {
                let found = command.get_arguments().find(|arg| arg.get_id() == option);
                let heading = found.and_then(clap::Arg::get_help_heading);
                assert_eq!(heading, None, "{} --{option}", command.get_name());
            }
        }
    }

    #[test]
    fn memory_that_cannot_be_counted_is_refused() {
        let parse = |mib: &str| Cli::try_parse_from(["choir", "serve", "--kv-mib", mib]);
        assert!(parse("64").is_ok());
        for mib in ["17592186044416", "-1", "x"] {
            assert!(parse(mib).is_err(), "{mib}");
        }
    }
}
