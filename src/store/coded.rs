//! A variant that lies in one file of its own.

use std::collections::BTreeSet;

use super::{
    BaseFacts, CodedRecord, Error, FileRecord, Keep, Quality, Share, Store, StoredAs,
    TransformRecord, files,
};
use crate::ops::coded::{self, LowRank, Rate};
use crate::superposition::{CodedDelta, DeltaError, EMBEDDING, HEAD};
use crate::transform;

/// The file of a coded or low-rank variant, read and found whole.
#[derive(Clone, Debug)]
pub struct CodedFile {
    bytes: Vec<u8>,
    delta: Box<CodedDelta>,
}

impl CodedFile {
    pub fn of(delta: CodedDelta) -> Self {
        let (bytes, delta) = (delta.to_bytes(), Box::new(delta));
        CodedFile { bytes, delta }
    }

    /// Takes a file as it is.
    ///
    /// # Errors
    /// What [`CodedDelta::from_bytes`] refuses.
    pub fn read(bytes: Vec<u8>) -> Result<Self, DeltaError> {
        let delta = Box::new(CodedDelta::from_bytes(&bytes)?);
        Ok(CodedFile { bytes, delta })
    }

    pub fn delta(&self) -> &CodedDelta {
        &self.delta
    }

    /// By a code, or as thin factors alone.
    pub fn keep(&self) -> Keep {
        let mut parts = parts(&self.delta).peekable();
        let thin = |(_, rate, _): (&str, Option<_>, _)| rate.is_none();
        match parts.peek().is_some() && parts.all(thin) {
            true => Keep::LowRank,
            false => Keep::Coded,
        }
    }

    /// Bits for each parameter of the base's matrices, everything counted.
    pub fn bits(&self, base: &BaseFacts) -> f32 {
        let matrices = base.shapes.values().filter(|shape| shape.len() == 2);
        let weights = matrices.map(|shape| shape.iter().product::<usize>()).sum();
        self.delta.bits(weights) as f32
    }

    pub(super) fn check(&self, base: &BaseFacts) -> Result<(), Error> {
        Ok(self.delta.check(base.digest, &base.shapes)?)
    }

    /// What the manifest says of it, and the file's bytes.
    pub(super) fn record(self, base: &BaseFacts) -> (CodedRecord, Vec<u8>) {
        let record = CodedRecord {
            file: FileRecord::by_digest("coded", &self.bytes),
            bits: self.bits(base),
            rates: rates(&self.delta),
        };
        (record, self.bytes)
    }

    pub(super) fn quality(&self) -> Quality {
        Quality {
            cosine: None,
            relative_error: self.delta.about.error as f32,
        }
    }

    pub(super) fn share(&self) -> Option<Share> {
        let measured = self.delta.about.measured.as_ref()?;
        Some(Share {
            share: measured.share as f32,
            method: measured.method.clone(),
            text: measured.text,
        })
    }
}

impl Keep {
    /// The record of one that lies in `record`'s file.
    pub(super) fn alone(self, record: CodedRecord) -> StoredAs {
        match self {
            Keep::LowRank => StoredAs::LowRank(record),
            Keep::Coded | Keep::Superposed => StoredAs::Coded(record),
        }
    }
}

/// The matrices that are not kept whole: the rates of their codes and the ranks of their factors.
fn parts(delta: &CodedDelta) -> impl Iterator<Item = (&str, Option<Rate>, Option<usize>)> {
    let rank = |part: &LowRank| match part {
        LowRank::Exact { rank, .. } => *rank,
        LowRank::Nibbles(nibbles) => nibbles.scales.len(),
    };
    delta.tensors.iter().filter_map(move |(name, tensor)| {
        let (rate, rank) = match &tensor.kept {
            coded::Kept::Coded { code, low_rank, .. } => {
                (Some(code.rate()), low_rank.as_ref().map(rank))
            }
            coded::Kept::LowRank(part) => (None, Some(rank(part))),
            coded::Kept::Whole(_) => return None,
        };
        Some((name.as_str(), rate, rank))
    })
}

/// The rates of the embedding, of the output head and of all other matrices, in words.
fn rates(delta: &CodedDelta) -> String {
    let of = |wanted: &dyn Fn(&str) -> bool| {
        let (mut rates, mut ranks) = (BTreeSet::new(), BTreeSet::new());
        for (_, rate, rank) in parts(delta).filter(|(name, ..)| wanted(name)) {
            rates.extend(rate);
            ranks.extend(rank);
        }
        let codes: Vec<_> = rates.iter().map(ToString::to_string).collect();
        let factors = match (ranks.first(), ranks.last()) {
            (Some(least), Some(most)) if least == most => format!("rank {least}"),
            (Some(least), Some(most)) => format!("ranks {least} to {most}"),
            _ => String::new(),
        };
        let parts = [codes.join(", "), factors];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(" + ")
    };
    let named = [
        ("body", of(&|name| name != HEAD && name != EMBEDDING)),
        ("embedding", of(&|name| name == EMBEDDING)),
        ("head", of(&|name| name == HEAD)),
    ];
    let said = named.into_iter().filter(|(_, rates)| !rates.is_empty());
    let said: Vec<_> = said
        .map(|(part, rates)| format!("{part} {rates}"))
        .collect();
    said.join("; ")
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

impl Store {
    /// Reads the file of a variant that is kept by itself; `None` of a superposed one.
    pub fn load_coded(&self, name: &str) -> Result<Option<CodedDelta>, Error> {
        let Some(record) = self.variant(name)?.coded() else {
            return Ok(None);
        };
        let path = files::of_variant(name, &record.file);
        let delta = files::load(&self.disk, &path, &record.file, CodedDelta::from_bytes)?;
        delta.check(self.base.digest, &self.base.shapes)?;
        Ok(Some(delta))
    }
}
