//! Making models: a tokenizer, a base from text, variants of it from a text or a skill.
//!
//! The objectives are those of MDLM, BD3-LM and Duo ([`objective`]); a run is a loop over steps, each a pure
//! function of (seed, step), so that it can stop anywhere and resume from its checkpoint.

pub mod calibrate;
pub mod checkpoint;
pub mod course;
pub mod curriculum;
pub mod data;
pub mod distill;
pub mod folder;
pub mod muon;
pub mod noisy;
pub mod objective;
pub mod operator;
pub mod optimizer;
pub mod packing;
pub mod run;
pub mod scaled_rows;
pub mod settings;
pub mod skills;
pub mod tokenizer;
pub mod validation;

use std::path::{Path, PathBuf};

/// What can go wrong in a training run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: not UTF-8 text (first bad byte at {offset})", path.display())]
    NotText { path: PathBuf, offset: usize },
    #[error("no text file in {}", path.display())]
    NoText { path: PathBuf },
    #[error("{what} holds {tokens} tokens, {needed} are needed")]
    TooShort {
        what: &'static str,
        tokens: usize,
        needed: usize,
    },
    #[error("{}: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("{}: a checkpoint of another run:\n  {found}\nnot\n  {wanted}", path.display())]
    OtherRun {
        path: PathBuf,
        found: String,
        wanted: String,
    },
    #[error("tokenizer: {reason}")]
    Tokenizer { reason: String },
    #[error("{field}: {reason}")]
    Setting { field: &'static str, reason: String },
    #[error("the loss is not finite at step {step}")]
    Diverged { step: u64 },
    #[error("a training thread could not start or failed")]
    Worker,
    /// A loss that is only measured along with its gradient, or an objective without a mask.
    #[error("{0}")]
    Objective(&'static str),
    #[error(transparent)]
    Model(#[from] crate::model::Error),
}

impl From<crate::ops::Error> for Error {
    fn from(error: crate::ops::Error) -> Self {
        Error::Model(error.into())
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Error::Model(error.into())
    }
}

impl Error {
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::File {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn format(path: &Path, reason: impl std::fmt::Display) -> Error {
        Error::Format {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }
}
