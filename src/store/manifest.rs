//! What one generation of a store consists of.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{BankId, BaseFacts, Error, SamplerDefaults, StoredProcess, name};
use crate::superposition::{Digest, Plan};

/// The version of the directory's format that is written.
pub(super) const FORMAT: u32 = 2;

/// One committed generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// Counts commits; an empty store is generation 0.
    pub generation: u64,
    pub base: Digest,
    pub tokenizer: Digest,
    pub options: Options,
    pub banks: BTreeMap<BankId, BankRecord>,
    pub variants: BTreeMap<String, VariantRecord>,
}

/// Which transform a variant is kept with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformRecord {
    pub kind: String,
    pub version: u32,
}

/// How a variant is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// By a code of its own: nobody else's coming or going changes it.
    Coded,
    /// As a member of banks: memory does not grow with their members.
    Superposed,
    /// As two thin factors a matrix.
    LowRank,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Keep::Coded => "coded",
            Keep::Superposed => "superposed",
            Keep::LowRank => "low-rank",
        })
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Keep::Coded, Keep::Superposed, Keep::LowRank];
        let found = all.into_iter().find(|keep| keep.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is none of coded, superposed and low-rank"))
    }
}

/// Chosen when a store is made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Variants a bank of every matrix but the output head.
    pub bank_capacity: usize,
    /// Variants a bank of the output head.
    pub head_capacity: usize,
    /// Keep the delta of every superposed variant, so that it can be removed without it and quality measured.
    pub archive: bool,
    /// How a variant is kept where its addition does not say.
    pub keep: Keep,
    /// Bits for each parameter of a matrix, everything counted, where an addition does not say.
    pub bits: f32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            bank_capacity: 4,
            head_capacity: 1,
            archive: true,
            keep: Keep::Coded,
            bits: Plan::BITS as f32,
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
        if !(self.bits > 0.0 && self.bits <= 32.0) {
            let reason = "must be above 0 and at most 32";
            return Err(Error::BadOption {
                field: "bits",
                reason,
            });
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
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// In the folder of its bank or variant.
    pub name: String,
    pub bytes: u64,
    pub sha256: Digest,
}

impl FileRecord {
    /// Of a file called `name`.
    pub(super) fn of(name: String, bytes: &[u8]) -> Self {
        FileRecord {
            name,
            bytes: bytes.len() as u64,
            sha256: Digest::of(bytes),
        }
    }

    /// Of a file whose name is `what` and its digest.
    pub(super) fn by_digest(what: &str, bytes: &[u8]) -> Self {
        let mut record = FileRecord::of(String::new(), bytes);
        record.name = format!("{what}-{}.safetensors", record.sha256);
        record
    }

    /// Whether the name is a plain one, which stays in its folder.
    fn is_plain(&self) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !self.name.starts_with('.') && !self.name.is_empty() && self.name.bytes().all(allowed)
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
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// Of the retrieved and the true delta; not known of a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f32>,
    /// ‖retrieved − true‖ / ‖true‖
    pub relative_error: f32,
}

/// What a variant keeps of its fine-tune's gain, as it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// 1 where nothing is lost.
    pub share: f32,
    /// How, in words.
    pub method: String,
    /// SHA-256 of the text it was measured on.
    pub text: Digest,
}

/// The form in which a variant is kept, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum StoredAs {
    Superposed {
        /// The banks it is in, one of each kind.
        banks: Vec<BankId>,
        /// Gains, and the deltas of vectors.
        private: FileRecord,
        /// The delta, unless the store keeps none.
        archive: Option<FileRecord>,
    },
    Coded(CodedRecord),
    LowRank(CodedRecord),
}

/// One file that holds all of a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodedRecord {
    pub file: FileRecord,
    /// Bits for each parameter of a matrix, everything counted.
    pub bits: f32,
    /// What the rates are, in words.
    pub rates: String,
}

/// One variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantRecord {
    pub kept: StoredAs,
    pub transform: TransformRecord,
    pub seed: u64,
    pub scales: Scales,
    pub process: StoredProcess,
    pub defaults: SamplerDefaults,
    /// Digest of the delta's content.
    pub delta: Digest,
    pub source: String,
    /// When it was added, in seconds since 1970 (UTC).
    pub added: u64,
    /// Measured at the last change of one of its banks, or when it was coded; `None` where the delta was not at hand.
    pub quality: Option<Quality>,
    /// `None` where nobody has measured it.
    pub share: Option<Share>,
    /// How its texts begin and end and its conversations are written, where that is not as the base's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manner: Option<serde_json::Value>,
    /// |delta| / |base| over all matrices, where it was added from a whole checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<f32>,
}

impl VariantRecord {
    pub fn keep(&self) -> Keep {
        match self.kept {
            StoredAs::Superposed { .. } => Keep::Superposed,
            StoredAs::Coded(_) => Keep::Coded,
            StoredAs::LowRank(_) => Keep::LowRank,
        }
    }

    /// The banks it is in.
    pub fn banks(&self) -> &[BankId] {
        match &self.kept {
            StoredAs::Superposed { banks, .. } => banks,
            StoredAs::Coded(_) | StoredAs::LowRank(_) => &[],
        }
    }

    /// The file that holds all of it, of one that is in no bank.
    pub fn coded(&self) -> Option<&CodedRecord> {
        match &self.kept {
            StoredAs::Superposed { .. } => None,
            StoredAs::Coded(record) | StoredAs::LowRank(record) => Some(record),
        }
    }

    /// The files that are its own.
    pub fn files(&self) -> impl Iterator<Item = &FileRecord> {
        let (first, second) = match &self.kept {
            StoredAs::Superposed {
                private, archive, ..
            } => (private, archive.as_ref()),
            StoredAs::Coded(record) | StoredAs::LowRank(record) => (&record.file, None),
        };
        [first].into_iter().chain(second)
    }
}

impl Manifest {
    pub(super) fn empty(base: &BaseFacts, options: Options) -> Self {
        Manifest {
            format: FORMAT,
            generation: 0,
            base: base.digest,
            tokenizer: base.tokenizer,
            options,
            banks: BTreeMap::new(),
            variants: BTreeMap::new(),
        }
    }

    /// Refuses a manifest of another base or tokenizer, or with a transform that is not known here.
    pub(super) fn check(&self, base: &BaseFacts) -> Result<(), Error> {
        for record in self.variants.values() {
            if record.transform != TransformRecord::of(record.keep()) {
                let TransformRecord { kind, version } = record.transform.clone();
                return Err(Error::OtherTransform { kind, version });
            }
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
            if name::check_name(variant).is_err()
                || !record.banks().iter().all(member)
                || !record.files().all(FileRecord::is_plain)
            {
                return Some(format!("the variant {} does not fit", name::shown(variant)));
            }
        }
        for (id, bank) in &self.banks {
            let known = |name: &String| {
                self.variants
                    .get(name)
                    .is_some_and(|record| record.banks().contains(id))
            };
            if !bank.members.iter().all(known) || !bank.file.is_plain() {
                return Some(format!("the bank {id} does not fit"));
            }
        }
        None
    }
}
