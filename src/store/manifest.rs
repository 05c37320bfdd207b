//! What one generation of a store consists of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BankId, BaseFacts, Error, Process, SamplerDefaults, name};
use crate::superposition::Digest;
use crate::transform;

/// The version of the directory's format.
pub(super) const FORMAT: u32 = 1;

/// One committed generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// Counts commits; an empty store is generation 0.
    pub generation: u64,
    pub base: Digest,
    pub tokenizer: Digest,
    pub transform: TransformRecord,
    pub options: Options,
    pub banks: BTreeMap<BankId, BankRecord>,
    pub variants: BTreeMap<String, VariantRecord>,
}

/// Which transform the banks were made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransformRecord {
    pub kind: String,
    pub version: u32,
}

/// Chosen when a store is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Variants a bank of every matrix but the output head.
    pub bank_capacity: usize,
    /// Variants a bank of the output head.
    pub head_capacity: usize,
    /// Keep every delta, so that a variant can be removed without it and quality measured.
    pub archive: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            bank_capacity: 4,
            head_capacity: 1,
            archive: true,
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<(), Error> {
        let reason = "must be from 1 to 1024";
        for (field, capacity) in [
            ("bank_capacity", self.bank_capacity),
            ("head_capacity", self.head_capacity),
        ] {
            if !(1..=1024).contains(&capacity) {
                return Err(Error::BadOption { field, reason });
            }
        }
        Ok(())
    }
}

/// The superposition of some variants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankRecord {
    /// The generation whose commit wrote its file.
    pub generation: u64,
    /// Names in order.
    pub members: Vec<String>,
    pub file: FileRecord,
}

/// A file as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub bytes: u64,
    pub sha256: Digest,
}

impl FileRecord {
    pub(super) fn of(bytes: &[u8]) -> Self {
        FileRecord {
            bytes: bytes.len() as u64,
            sha256: Digest::of(bytes),
        }
    }
}

/// c: what a retrieved delta is multiplied by. The tensors kept whole are not scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scales {
    pub default: f32,
    /// Tensors that have a scale of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: BTreeMap<String, f32>,
}

impl Default for Scales {
    fn default() -> Self {
        Scales::all(1.0)
    }
}

impl Scales {
    /// The same scale for every tensor.
    pub fn all(scale: f32) -> Self {
        Scales {
            default: scale,
            tensors: BTreeMap::new(),
        }
    }

    /// c of one tensor.
    pub fn of(&self, tensor: &str) -> f32 {
        self.tensors.get(tensor).copied().unwrap_or(self.default)
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self
            .tensors
            .values()
            .chain([&self.default])
            .find(|scale| !scale.is_finite())
        {
            Some(scale) => Err(Error::BadScale { scale: *scale }),
            None => Ok(()),
        }
    }
}

/// How well a delta is read back, over all its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Of the retrieved and the true delta.
    pub cosine: f32,
    /// ‖retrieved − true‖ / ‖true‖
    pub relative_error: f32,
}

/// One variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantRecord {
    /// The banks it is in, one of each kind.
    pub banks: Vec<BankId>,
    pub seed: u64,
    pub scales: Scales,
    pub process: Process,
    pub defaults: SamplerDefaults,
    /// Digest of the delta's content.
    pub delta: Digest,
    pub source: String,
    /// When it was added, in seconds since 1970 (UTC).
    pub added: u64,
    /// Measured at the last change of one of its banks; `None` where the delta was not at hand.
    pub quality: Option<Quality>,
    pub private: FileRecord,
    pub archive: Option<FileRecord>,
}

impl Manifest {
    pub(super) fn empty(base: &BaseFacts, options: Options) -> Self {
        Manifest {
            format: FORMAT,
            generation: 0,
            base: base.digest,
            tokenizer: base.tokenizer,
            transform: TransformRecord {
                kind: transform::KIND.to_owned(),
                version: transform::VERSION,
            },
            options,
            banks: BTreeMap::new(),
            variants: BTreeMap::new(),
        }
    }

    /// Refuses a manifest of another base, tokenizer or transform.
    pub(super) fn check(&self, base: &BaseFacts) -> Result<(), Error> {
        let TransformRecord { kind, version } = self.transform.clone();
        if (&kind[..], version) != (transform::KIND, transform::VERSION) {
            return Err(Error::OtherTransform { kind, version });
        }
        if self.base != base.digest {
            return Err(Error::OtherBase {
                expected: self.base,
                found: base.digest,
            });
        }
        if self.tokenizer != base.tokenizer {
            return Err(Error::OtherTokenizer {
                expected: self.tokenizer,
                found: base.tokenizer,
            });
        }
        self.options.check()
    }

    /// What does not hold together, if anything: a manifest is data that may have been written by anyone.
    pub(super) fn contradiction(&self) -> Option<String> {
        for (variant, record) in &self.variants {
            let member = |id| {
                self.banks
                    .get(id)
                    .is_some_and(|bank| bank.members.contains(variant))
            };
            if name::check_name(variant).is_err() || !record.banks.iter().all(member) {
                return Some(format!("the variant {} does not fit", name::shown(variant)));
            }
        }
        for (id, bank) in &self.banks {
            let known = |name: &String| {
                self.variants
                    .get(name)
                    .is_some_and(|record| record.banks.contains(id))
            };
            if !bank.members.iter().all(known) {
                return Some(format!("the bank {id} does not fit"));
            }
        }
        None
    }
}
