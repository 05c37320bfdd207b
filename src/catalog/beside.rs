//! The small files that stand beside a checkpoint's weights, and what they say of the variant: the same whether the server reads them
//! itself or a client sends them with its upload.

use super::base::{ServedBase, checkpoint};
use super::{Error, tuning};
use crate::checkpoint::{read_small, shown};
use crate::model::architecture::{self, Architecture};
use crate::model::tokenizer::{GenerationConfig, Manner, Tokenizer, TokenizerError};
use crate::model::{Process, Regime};
use crate::superposition::{Digest, Unreadable};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

/// What is sent with an upload, and what of the tokenizer is told by the digest of its pieces instead.
const SMALL: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "adapter_config.json",
];
const PIECES: [&str; 4] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
];
/// Bytes of each at most.
const LONGEST_SMALL: u64 = 1 << 18;
const LONGEST_PIECES: u64 = 128 << 20;

/// What stands beside a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    files: BTreeMap<&'static str, Vec<u8>>,
    tokenizer: Option<Pieces>,
}

#[derive(Clone, Debug)]
enum Pieces {
    Read(Box<Tokenizer>),
    /// Of somebody else's tokenizer, see [`Tokenizer::pieces_digest`].
    Digest(Digest),
}

impl Beside {
    /// What stands beside a file, or in a folder.
    ///
    /// # Errors
    /// One that is there and cannot be read, by its path.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let folder = match path.is_dir() {
            true => path,
            false => path.parent().unwrap_or(path),
        };
        let read = |name: &'static str, longest: u64| {
            let file = folder.join(name);
            match read_small(&file, longest) {
                Ok(bytes) => Ok(Some((name, bytes))),
                Err(Unreadable::Io(error)) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => {
                    let origin = shown(&file.display().to_string());
                    Err(checkpoint(&origin)(error.into()))
                }
            }
        };
        let all = |names: &[&'static str], longest| {
            let files = names.iter().map(|name| read(name, longest));
            let files: Result<Vec<_>, Error> = files.collect();
            Ok::<BTreeMap<_, _>, Error>(files?.into_iter().flatten().collect())
        };
        let files = all(&SMALL, LONGEST_SMALL)?;
        let pieces = all(&PIECES, LONGEST_PIECES)?;
        let of = |name: &str| files.get(name).or_else(|| pieces.get(name)).cloned();
        let tokenizer = match Tokenizer::from_files(of) {
            Ok(tokenizer) => Some(Pieces::Read(Box::new(tokenizer))),
            Err(TokenizerError::Missing) => None,
            Err(source) => {
                let origin = shown(&path.display().to_string());
                return Err(Error::OtherTokenizer { origin, source });
            }
        };
        Ok(Beside { files, tokenizer })
    }

    /// What a client sends: files by name, and the digest of its tokenizer's pieces where there is one.
    ///
    /// # Errors
    /// The reason: a name that is none of those, or a file that is too long.
    pub fn sent(
        files: impl IntoIterator<Item = (String, Vec<u8>)>,
        pieces: Option<Digest>,
    ) -> Result<Self, String> {
        let file = |(name, bytes): (String, Vec<u8>)| {
            let known = SMALL.iter().find(|known| **known == name);
            match known {
                Some(name) if bytes.len() as u64 <= LONGEST_SMALL => Ok((*name, bytes)),
                _ => Err(format!("{name:?} is not expected there, or too long")),
            }
        };
        Ok(Beside {
            files: files.into_iter().map(file).collect::<Result<_, _>>()?,
            tokenizer: pieces.map(Pieces::Digest),
        })
    }

    /// What is sent: the files, and the digest.
    pub fn to_send(self) -> (Vec<(&'static str, Vec<u8>)>, Option<Digest>) {
        let digest = self.tokenizer.map(|tokenizer| match tokenizer {
            Pieces::Read(tokenizer) => tokenizer.pieces_digest().into(),
            Pieces::Digest(digest) => digest,
        });
        (self.files.into_iter().collect(), digest)
    }

    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// How the variant's texts begin and end and its conversations are written, where that is not as the base's.
    pub(super) fn manner(&self, base: &ServedBase, origin: &str) -> Result<Option<Manner>, Error> {
        let read = |name: &str| self.get(name).map(<[u8]>::to_vec);
        let manner = base.tokenizer.manner_of(read);
        manner.map_err(|source| Error::OtherTokenizer {
            origin: origin.to_owned(),
            source,
        })
    }

    /// What the checkpoint's own configuration says of sampling.
    pub(super) fn generation(&self, origin: &str) -> Result<Option<GenerationConfig>, Error> {
        let text = self.get("generation_config.json");
        let config = text.map(GenerationConfig::parse).transpose();
        config.map_err(|source| Error::OtherTokenizer {
            origin: origin.to_owned(),
            source,
        })
    }

    /// What the configuration says the variant was tuned for, where there is one.
    ///
    /// # Errors
    /// Another tokenizer than the base's, or a configuration that cannot be read or that no variant of this base can have.
    pub(super) fn regime(&self, base: &ServedBase, origin: &str) -> Result<Option<Regime>, Error> {
        let same = match &self.tokenizer {
            None => Ok(()),
            Some(Pieces::Read(theirs)) => base.tokenizer.same_pieces(theirs),
            Some(Pieces::Digest(theirs)) if *theirs == base.tokenizer.pieces_digest().into() => {
                Ok(())
            }
            Some(Pieces::Digest(_)) => Err(TokenizerError::OtherPieces),
        };
        same.map_err(|source| Error::OtherTokenizer {
            origin: origin.to_owned(),
            source,
        })?;
        let other = |field| Error::OtherConfig {
            origin: origin.to_owned(),
            field,
        };
        let Some(bytes) = self.get("config.json") else {
            return Ok(None);
        };
        let theirs = Architecture::read(bytes).map_err(|error| match error {
            architecture::ConfigError::Field { field, .. } => other(field),
            error => {
                let detail = format!("beside it: {error}");
                checkpoint(origin)(Unreadable::Malformed { detail }.into())
            }
        })?;
        let ours = base.weights.architecture();
        let absorbing = theirs.regime.process == Process::Absorbing;
        // A decoder's variants may each have blocks of their own.
        let mut alike = theirs.regime;
        if !base.weights.facts().slides {
            alike.block = ours.regime.block;
        }
        match ours.differs(&theirs) {
            _ if absorbing && alike != ours.regime => {
                Err(other(tuning::differing(alike, ours.regime)))
            }
            Some(field) => Err(other(field)),
            None => Ok(Some(theirs.regime)),
        }
    }
}
