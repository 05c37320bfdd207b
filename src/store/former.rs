//! Manifests of format 1, in which every variant is superposed and files are named for what they are. Such a store is opened
//! and served as it is; its first change writes the present format.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::manifest::{BankRecord, FORMAT, FileRecord, Manifest, Quality, StoredAs, VariantRecord};
use super::{BankId, Options, SamplerDefaults, Scales, Share, StoredProcess, TransformRecord};
use crate::superposition::Digest;

pub(super) const FORMER: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FormerManifest {
    #[serde(rename = "format")]
    _format: u32,
    generation: u64,
    base: Digest,
    tokenizer: Digest,
    transform: TransformRecord,
    options: FormerOptions,
    banks: BTreeMap<BankId, FormerBank>,
    variants: BTreeMap<String, FormerVariant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FormerOptions {
    bank_capacity: usize,
    head_capacity: usize,
    archive: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FormerBank {
    generation: u64,
    members: Vec<String>,
    file: FormerFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FormerFile {
    bytes: u64,
    sha256: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FormerVariant {
    banks: Vec<BankId>,
    seed: u64,
    scales: Scales,
    process: StoredProcess,
    defaults: SamplerDefaults,
    delta: Digest,
    source: String,
    added: u64,
    quality: Option<Quality>,
    private: FormerFile,
    archive: Option<FormerFile>,
}

impl FormerFile {
    fn called(self, name: impl Into<String>) -> FileRecord {
        FileRecord {
            name: name.into(),
            bytes: self.bytes,
            sha256: self.sha256,
        }
    }
}

/// Reads the fields of a manifest of format 1.
pub(super) fn decode(json: &[u8]) -> serde_json::Result<Manifest> {
    let former: FormerManifest = serde_json::from_slice(json)?;
    let transform = former.transform;
    let banks = former.banks.into_iter().map(|(id, bank)| {
        let record = BankRecord {
            generation: bank.generation,
            members: bank.members,
            file: bank.file.called(format!("{}.safetensors", bank.generation)),
        };
        (id, record)
    });
    let variants = former.variants.into_iter().map(|(name, variant)| {
        let record = VariantRecord {
            kept: StoredAs::Superposed {
                banks: variant.banks,
                private: variant.private.called("private.safetensors"),
                archive: variant.archive.map(|file| file.called("delta.safetensors")),
            },
            transform: transform.clone(),
            seed: variant.seed,
            scales: variant.scales,
            process: variant.process,
            defaults: variant.defaults,
            delta: variant.delta,
            source: variant.source,
            added: variant.added,
            quality: variant.quality,
            share: None::<Share>,
            manner: None,
            moved: None,
        };
        (name, record)
    });
    Ok(Manifest {
        format: FORMAT,
        generation: former.generation,
        base: former.base,
        tokenizer: former.tokenizer,
        options: Options {
            bank_capacity: former.options.bank_capacity,
            head_capacity: former.options.head_capacity,
            archive: former.options.archive,
            keep: super::Keep::Superposed,
            ..Options::default()
        },
        banks: banks.collect(),
        variants: variants.collect(),
    })
}
