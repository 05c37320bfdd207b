//! The command line's entry: parse, run, and say in one line what went wrong.

use std::process::ExitCode;

fn main() -> ExitCode {
    match choir::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("choir: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, but for those that the error before them has told already.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
