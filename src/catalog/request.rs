//! What is asked of a catalog, and how far it has come.

use super::{BaseSource, Beside, CheckpointSource, Tuning};
use crate::engine::SamplingParams;
use crate::model::Place;
use crate::ops::quantized::Quantisation;
use crate::store::{self, Keep};
use crate::superposition::Digest;
use std::path::PathBuf;

/// Settings of a catalog.
#[derive(Clone, Debug)]
pub struct CatalogConfig {
    /// Holds the store; made on the first start.
    pub data_dir: PathBuf,
    pub base: BaseSource,
    /// Variants to a bank, 4 where absent; fixed when the store is made, and another number is refused later.
    pub bank_capacity: Option<usize>,
    /// The same for the output head's banks, 1 where absent.
    pub head_capacity: Option<usize>,
    /// Where the network runs.
    pub place: Place,
    /// The form that banks are served in.
    pub bank_form: Quantisation,
    /// The form of the output head's banks; see [`Forms::new`](super::Forms::new) where absent.
    pub head_form: Option<Quantisation>,
    /// Keep the delta of every superposed variant in the store, so that it can be removed without giving it again. Decided
    /// when the store is made.
    pub archive: bool,
    /// How variants are kept whose addition does not say. Decided when the store is made.
    pub keep: Option<Keep>,
    /// Bits for each parameter of theirs, likewise.
    pub bits: Option<f32>,
    /// Read the base's published files whole, also where the store has a copy of what is served of them.
    pub check_base: bool,
}

impl CatalogConfig {
    /// On the host in f32, with banks in two bits and all else as usual.
    pub fn new(data_dir: impl Into<PathBuf>, base: BaseSource) -> Self {
        CatalogConfig {
            data_dir: data_dir.into(),
            base,
            bank_capacity: None,
            head_capacity: None,
            place: Place::Host(Quantisation::F32),
            bank_form: Quantisation::Q2K,
            head_form: None,
            archive: true,
            keep: None,
            bits: None,
            check_base: false,
        }
    }
}

/// A variant to add.
#[derive(Clone, Debug)]
pub struct AddRequest {
    pub name: String,
    /// The first 8 bytes of the SHA-256 of the delta where absent, or the one that a coded file says.
    pub seed: Option<u64>,
    pub source: CheckpointSource,
    /// What stands beside it, where that is not read from its folder.
    pub beside: Beside,
    /// The scale c of the retrieved delta; 1 where absent.
    pub scale: Option<f32>,
    /// What it was tuned for, where the operator says so.
    pub tuning: Tuning,
    /// Sampling defaults; what is not chosen is what the file says, else usual for its process.
    pub defaults: SamplingParams,
    /// How it is kept; as the store's options say where absent, or as a coded file is.
    pub keep: Option<Keep>,
    /// Bits for each parameter of a matrix, everything counted, likewise.
    pub bits: Option<f32>,
    /// Take the place of the variant of this name, whose delta has this digest.
    pub replaces: Option<Digest>,
    /// Refuse a variant that keeps less than this share of its fine-tune's gain.
    pub min_share: Option<f32>,
    /// A text to measure the share on where the file does not say it.
    pub check_text: Option<String>,
    /// Take a checkpoint that looks like another revision of the base, too.
    pub force: bool,
    /// Change nothing; say what would have come of it.
    pub dry_run: bool,
    /// Refuse unless the store is at this generation.
    pub expected_generation: Option<u64>,
}

impl AddRequest {
    /// An addition that asks for nothing else.
    pub fn new(name: impl Into<String>, source: CheckpointSource) -> Self {
        AddRequest {
            name: name.into(),
            seed: None,
            source,
            beside: Beside::default(),
            scale: None,
            tuning: Tuning::default(),
            defaults: SamplingParams::default(),
            keep: None,
            bits: None,
            replaces: None,
            min_share: None,
            check_text: None,
            force: false,
            dry_run: false,
            expected_generation: None,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct RemoveRequest {
    /// The checkpoint again, where the store archives no delta.
    pub delta: Option<CheckpointSource>,
    pub expected_generation: Option<u64>,
}

/// How far an operation has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdditionProgress {
    pub stage: AdditionStage,
    /// Of the whole operation, 0 to 1.
    pub fraction: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdditionStage {
    Reading,
    Comparing,
    Accumulating,
    Measuring,
    Writing,
    Publishing,
}

impl AdditionProgress {
    /// A stage at its beginning.
    pub(super) fn at(stage: AdditionStage) -> Self {
        let fraction = match stage {
            AdditionStage::Reading => 0.0,
            AdditionStage::Comparing => 0.1,
            AdditionStage::Accumulating => 0.3,
            AdditionStage::Measuring => 0.5,
            AdditionStage::Writing => 0.7,
            AdditionStage::Publishing => 0.8,
        };
        AdditionProgress { stage, fraction }
    }
}

impl From<store::CommitStage> for AdditionStage {
    fn from(stage: store::CommitStage) -> Self {
        match stage {
            store::CommitStage::Accumulating => AdditionStage::Accumulating,
            store::CommitStage::Measuring => AdditionStage::Measuring,
            store::CommitStage::Writing => AdditionStage::Writing,
            store::CommitStage::Committing => AdditionStage::Publishing,
        }
    }
}
