//! What operations refuse.

use crate::coded::KeptError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation was not done. Shapes are [rows, columns].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{weights} weights are no matrix of {out} x {input}")]
    Weights {
        weights: usize,
        out: usize,
        input: usize,
    },
    #[error("{x} and {y} elements are not {rows} rows of {input} and {out}")]
    Activations {
        x: usize,
        y: usize,
        rows: usize,
        input: usize,
        out: usize,
    },
    #[error("matrices of {} x {} and of {found:?}", .expected.0, .expected.1)]
    Matrices {
        expected: (usize, usize),
        found: (usize, usize),
    },
    #[error("row {row} is not one of x and y for a matrix of {out} x {input}")]
    Row {
        row: usize,
        out: usize,
        input: usize,
    },
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error("token {token} is outside the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
    #[error("target {token} cannot occur")]
    Target { token: u32 },
    #[error("{tokens} tokens and {weights} weights are no mixtures of {choices}")]
    Mixtures {
        tokens: usize,
        weights: usize,
        choices: usize,
    },
    /// Of something that each row has one of.
    #[error("{found} {what} for {rows} rows")]
    PerRow {
        what: &'static str,
        found: usize,
        rows: usize,
    },
    #[error("{rows} rows are not whole sequences of {length}")]
    Sequences { rows: usize, length: usize },
    #[error("{tokens} tokens of logits {logits:?} and {other:?}")]
    Logits {
        tokens: usize,
        logits: (usize, usize),
        other: Vec<usize>,
    },
    #[error("a contiguous tensor of {wanted} on the CPU is needed, not {found}")]
    Layout { wanted: &'static str, found: String },
    #[error("{}", innermost(.0))]
    Tensor(#[from] candle_core::Error),
}

/// What an error of candle's says, without the backtrace that it puts under it where `RUST_BACKTRACE` is set.
fn innermost(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => innermost(inner),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_without_backtraces() {
        let backtrace = Box::new(std::backtrace::Backtrace::force_capture());
        let inner = Box::new(candle_core::Error::Msg("no tensor".into()));
        let error = candle_core::Error::WithBacktrace { inner, backtrace };
        assert!(
            error.to_string().lines().count() > 1,
            "else there is nothing to leave out"
        );
        assert_eq!(Error::from(error).to_string(), "no tensor");
    }
}
