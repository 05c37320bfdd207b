//! The command line's entry.

use std::process::ExitCode;

fn main() -> ExitCode {
    choir::cli::end("choir", choir::cli::run)
}
