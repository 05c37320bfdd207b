//! The laboratory's entry.

use std::process::ExitCode;

fn main() -> ExitCode {
    choir::cli::end("choir-lab", choir_lab::run)
}
