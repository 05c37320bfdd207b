//! The command line's entry: parse, run, and say in one line what went wrong.

use std::process::ExitCode;

fn main() -> ExitCode {
    match choir::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("choir: {error:#}");
            ExitCode::FAILURE
        }
    }
}
