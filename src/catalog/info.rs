//! What is being served, for those who ask.

use super::defaults;
use crate::engine::{Generation, MemoryPart, Sampling};
use crate::model::{NetworkFacts, Regime};
use crate::store::{Keep, Quality, Share, Store, StoredAs, VariantRecord};
use std::collections::BTreeMap;

/// A variant as operators see it.
#[derive(Clone, Debug, PartialEq)]
pub struct VariantInfo {
    pub name: String,
    pub seed: u64,
    pub scale: f32,
    pub keep: Keep,
    /// Those it is in; none where it is kept by itself.
    pub banks: Vec<String>,
    /// Bits for each parameter of a matrix, everything counted, and the rates in words, where it is kept by itself.
    pub bits: Option<f32>,
    pub rates: String,
    /// Of the files that are its own.
    pub bytes: u64,
    /// Of the retrieved with the true delta over all matrices; not known of one that is kept by itself, nor where the store
    /// has no delta to compare with.
    pub cosine: Option<f32>,
    pub relative_error: Option<f32>,
    pub share: Option<Share>,
    /// |delta| / |base| over all matrices, where it was added from a whole checkpoint.
    pub moved: Option<f32>,
    /// Others that have the same delta.
    pub same_as: Vec<String>,
    pub source: String,
    /// Hex SHA-256 of the delta.
    pub delta_digest: String,
    /// Whether the store keeps its delta.
    pub archived: bool,
    /// Seconds since 1970.
    pub added: u64,
    /// What it was tuned for.
    pub regime: Regime,
    pub defaults: Sampling,
}

impl VariantInfo {
    pub(super) fn of(name: &str, record: &VariantRecord, network: &NetworkFacts) -> Self {
        let coded = record.coded();
        let archived = |kept: &StoredAs| matches!(kept, StoredAs::Superposed { archive, .. } if archive.is_some());
        VariantInfo {
            name: name.to_owned(),
            seed: record.seed,
            scale: record.scales.default,
            keep: record.keep(),
            banks: record.banks().iter().map(ToString::to_string).collect(),
            bits: coded.map(|coded| coded.bits),
            rates: coded.map_or(String::new(), |coded| coded.rates.clone()),
            bytes: record.files().map(|file| file.bytes).sum(),
            cosine: record.quality.and_then(|quality: Quality| quality.cosine),
            relative_error: record.quality.map(|quality| quality.relative_error),
            share: record.share.clone(),
            moved: record.moved,
            same_as: Vec::new(),
            source: record.source.clone(),
            delta_digest: record.delta.to_string(),
            archived: archived(&record.kept),
            added: record.added,
            regime: defaults::regime(record, network),
            defaults: record.defaults.sampling(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreStatus {
    pub generation: u64,
    pub memory: Vec<MemoryPart>,
    /// Beside those: about what the tokenizer takes.
    pub tokenizer_bytes: u64,
    pub variants: usize,
    /// Of these, those kept by themselves: by a code, and as two thin factors alone.
    pub coded: usize,
    pub low_rank: usize,
    pub banks: usize,
}

/// What is being served.
#[derive(Default)]
pub(super) struct Snapshot {
    pub variants: Vec<VariantInfo>,
    pub status: StoreStatus,
}

impl Snapshot {
    pub fn of(store: &Store, generation: &Generation) -> Self {
        let manifest = store.manifest();
        let kept = |keep| {
            let variants = manifest.variants.values();
            variants.filter(|record| record.keep() == keep).count()
        };
        let network = generation.denoiser.facts();
        let mut by_delta: BTreeMap<_, Vec<&String>> = BTreeMap::new();
        for (name, record) in &manifest.variants {
            by_delta.entry(record.delta).or_default().push(name);
        }
        let variants = manifest.variants.iter().map(|(name, record)| {
            let same = by_delta[&record.delta].iter();
            let others = same.filter(|other| **other != name);
            VariantInfo {
                same_as: others.map(|other| (*other).clone()).collect(),
                ..VariantInfo::of(name, record, network)
            }
        });
        Snapshot {
            variants: variants.collect(),
            status: StoreStatus {
                generation: manifest.generation,
                memory: generation.memory.clone(),
                tokenizer_bytes: generation.tokenizer.bytes() as u64,
                variants: manifest.variants.len(),
                coded: kept(Keep::Coded),
                low_rank: kept(Keep::LowRank),
                banks: manifest.banks.len(),
            },
        }
    }

    pub fn find(&self, name: &str) -> Option<&VariantInfo> {
        self.variants.iter().find(|info| info.name == name)
    }

    /// Bytes of weights in memory.
    pub fn bytes(&self) -> u64 {
        self.status.memory.iter().map(|part| part.bytes).sum()
    }
}
