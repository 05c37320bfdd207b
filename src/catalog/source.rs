//! Where an operator's checkpoint comes from.

use super::Error;
use super::base::{Base, checkpoint};
use crate::model::Regime;
use crate::superposition::read_file;
use std::path::PathBuf;

/// A checkpoint: a fine-tune's weights in the published layout, a packed delta, or an archived one.
#[derive(Clone, Debug)]
pub enum Source {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

impl Source {
    /// Where it comes from, for people.
    pub(super) fn origin(&self) -> String {
        match self {
            Source::Path(path) => path.display().to_string(),
            Source::Bytes(_) => "uploaded".to_owned(),
        }
    }

    /// Its bytes, and what the configuration beside it says it was tuned for.
    pub(super) fn read(self, base: &Base) -> Result<(Vec<u8>, Option<Regime>), Error> {
        match self {
            Source::Bytes(bytes) => Ok((bytes, None)),
            Source::Path(path) => {
                let bytes = read_file(&path)
                    .map_err(|error| checkpoint(&path.display().to_string())(error.into()))?;
                Ok((bytes, base.check_neighbours(&path)?))
            }
        }
    }
}
