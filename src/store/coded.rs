//! A variant that lies in one file of its own.

use super::{
    BaseFacts, CodedRecord, Error, FileRecord, Keep, Kept, Quality, Share, TransformRecord,
};
use crate::superposition::Digest;
use crate::transform;

/// The file of a coded or low-rank variant, read and found whole.
#[derive(Clone, Debug)]
pub struct CodedFile {
    bytes: Vec<u8>,
    base: Digest,
    facts: Facts,
}

/// What a manifest records of such a file.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub keep: Keep,
    pub seed: u64,
    pub bits: f32,
    pub rates: String,
    pub delta: Digest,
    pub quality: Option<Quality>,
    pub share: Option<Share>,
}

impl CodedFile {
    pub(super) fn check(&self, base: &BaseFacts) -> Result<(), Error> {
        if self.base != base.digest {
            let (expected, found) = (base.digest, self.base);
            return Err(crate::superposition::Mismatch::OtherBase { expected, found }.into());
        }
        Ok(())
    }

    pub(super) fn into_parts(self) -> (Vec<u8>, Facts) {
        (self.bytes, self.facts)
    }
}

impl Facts {
    pub fn kept(&self, file: FileRecord) -> Kept {
        let record = CodedRecord {
            file,
            bits: self.bits,
            rates: self.rates.clone(),
        };
        match self.keep {
            Keep::LowRank => Kept::LowRank(record),
            Keep::Coded | Keep::Superposed => Kept::Coded(record),
        }
    }
}

impl TransformRecord {
    /// The one that variants are kept with here.
    pub(super) fn of(keep: Keep) -> Self {
        let (kind, version) = match keep {
            Keep::Superposed => (transform::KIND, transform::VERSION),
            Keep::Coded | Keep::LowRank => ("signs-then-hadamard", 1),
        };
        TransformRecord {
            kind: kind.to_owned(),
            version,
        }
    }
}
