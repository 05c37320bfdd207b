//! How far an evaluation has come, on stderr in a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// `steps` measurements are to come.
    pub fn new(steps: usize) -> Self {
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| ProgressBar::new(steps as u64));
        if let (Some(bar), Ok(style)) = (
            &bar,
            ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} (left: {eta}) {msg}"),
        ) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// The next measurement begins.
    pub fn step(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
            bar.set_message(what.to_owned());
        }
    }

    pub fn close(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
