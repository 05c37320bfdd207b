//! How a program ends: with one line of what went wrong, or without a word where nobody reads what it prints.

use anyhow::Result;
use std::process::ExitCode;

/// Runs `program`; an error becomes one line on standard error that begins with `name`.
pub fn end(name: &str, program: fn() -> Result<()>) -> ExitCode {
    end_with_the_reader();
    match program() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if unread(&error) => ExitCode::from(UNREAD),
        Err(error) => {
            eprintln!("{name}: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// What a shell says of a program that SIGPIPE ended.
const UNREAD: u8 = 141;

/// Whether standard output is a pipe that nobody reads any more.
fn unread(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Ends without a word there, too, where something is printed, as in `choir variants list | head -n 1`: `println!` would panic.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic
            .payload()
            .downcast_ref::<String>()
            .map_or("", String::as_str);
        if said.starts_with("failed printing to stdout") && said.contains("Broken pipe") {
            std::process::exit(UNREAD.into());
        }
        usual(panic);
    }));
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
