//! What the process says of itself: log lines on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// The environment variable that filters the log, in tracing's syntax (`info`, `choir=debug`, ...).
pub const VARIABLE: &str = "CHOIR_LOG";

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Sends log lines to standard error from now on: `info` and above unless the environment says otherwise. Once per
/// process; later calls change nothing.
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let _ = match format {
        Format::Text => lines.try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    }; // an earlier call stands
}
