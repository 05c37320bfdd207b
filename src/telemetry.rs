//! What the process says of itself: log lines on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// The environment variable that filters the log, in tracing's syntax (`info`, `choir=debug`, ...).
pub const VARIABLE: &str = "CHOIR_LOG";

/// Sends log lines to standard error from now on: `info` and above unless the environment says otherwise. Once per
/// process; later calls change nothing.
pub fn init() {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let _ = lines.try_init(); // an earlier call stands
}
