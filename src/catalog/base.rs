//! Where the base comes from, and the model that is compiled in.

use super::{Error, defaults, tuning};
use crate::checkpoint::{self, Checkpoint, read_small};
use crate::engine::Sampling;
use crate::model;
use crate::model::architecture::published::Published;
use crate::model::architecture::shapes;
use crate::model::tokenizer::{GenerationConfig, Tokenizer};
use crate::model::{Architecture, BaseWeights, NetworkFacts, Place, Process, Regime, place};
use crate::ops::quantized::{LAYOUT, Quantisation};
use crate::store::{BaseCopy, BaseFacts, Origin};
use crate::superposition::{
    self, DeltaError, Digest, Mismatch, NamedTensors, Relation, TensorDigest, TensorSource,
};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a file beside the weights at most.
const LONGEST_FILE: u64 = 128 << 20;

/// The files of `models/`, as they were when the binary was built.
mod embedded {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// Where the base comes from.
#[derive(Clone, Debug)]
pub enum BaseSource {
    /// The model compiled into the binary, with its variants for the first start.
    Embedded,
    /// A folder in the published layout: config.json, model.safetensors, tokenizer.json.
    Folder(PathBuf),
}

/// What a variant of `models/` is, from `models/variants.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseVariant {
    /// What it was fine-tuned on.
    pub about: String,
    /// Its held-out text in `models/held-out`, for a style.
    pub held_out: Option<String>,
    /// The skill's name, for one with right answers.
    pub skill: Option<String>,
}

/// A variant compiled in.
#[derive(Clone, Debug)]
pub struct Shipped {
    pub name: &'static str,
    pub about: BaseVariant,
    /// Its packed delta.
    pub packed: &'static [u8],
}

impl Shipped {
    /// What it was tuned for.
    ///
    /// # Errors
    /// A packed delta that says something that no variant of `network` can be.
    pub fn regime(&self, network: &NetworkFacts) -> Result<Regime, Error> {
        Ok(tuning::of_file(self.name, self.packed, network)?.0)
    }
}

/// The variants compiled in, by name.
///
/// # Errors
/// `Base` where `models/` was left inconsistent when the binary was built.
pub fn shipped() -> Result<Vec<Shipped>, Error> {
    let reason = |error: &dyn std::fmt::Display| Error::Base {
        origin: "compiled in".into(),
        reason: format!("variants.json: {error}"),
    };
    let mut about: BTreeMap<String, BaseVariant> =
        serde_json::from_slice(embedded::VARIANTS_JSON).map_err(|error| reason(&error))?;
    embedded::VARIANTS
        .iter()
        .map(|(name, packed)| {
            let about = about
                .remove(*name)
                .ok_or_else(|| reason(&format!("no {name:?}")))?;
            Ok(Shipped {
                name,
                about,
                packed,
            })
        })
        .collect()
}

/// A held-out text compiled in, by its file's name.
pub fn held_out(file: &str) -> Option<&'static str> {
    let found = embedded::HELD_OUT.iter().find(|(name, _)| *name == file)?;
    std::str::from_utf8(found.1).ok()
}

impl BaseSource {
    fn read(&self, file: &str) -> Result<Cow<'static, [u8]>, Error> {
        match self {
            BaseSource::Embedded => Ok(Cow::Borrowed(match file {
                "config.json" => embedded::CONFIG,
                "tokenizer.json" => embedded::TOKENIZER,
                _ => embedded::WEIGHTS,
            })),
            BaseSource::Folder(folder) => {
                let path = folder.join(file);
                let bytes = std::fs::read(&path)
                    .map_err(|error| self.refuse(format!("{}: {error}", path.display())));
                bytes.map(Cow::Owned)
            }
        }
    }

    /// A file that there may be; one that cannot be read is told as missing.
    fn find(&self, file: &str) -> Option<Vec<u8>> {
        match self {
            BaseSource::Embedded => {
                (file == "tokenizer.json").then(|| embedded::TOKENIZER.to_vec())
            }
            BaseSource::Folder(folder) => read_small(&folder.join(file), LONGEST_FILE).ok(),
        }
    }

    fn refuse(&self, reason: impl ToString) -> Error {
        Error::Base {
            origin: self.to_string(),
            reason: reason.to_string(),
        }
    }

    /// The network that the configuration describes.
    pub fn architecture(&self) -> Result<Architecture, Error> {
        Architecture::read(&self.config_json()?).map_err(|error| self.refuse(error))
    }

    /// The configuration's file.
    pub fn config_json(&self) -> Result<Cow<'static, [u8]>, Error> {
        self.read("config.json")
    }

    /// The tokenizer and its file.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_files(|file| self.find(file)).map_err(|error| self.refuse(error))
    }

    /// What the checkpoint's own configuration says of sampling, where it has one.
    fn generation_config(&self) -> Result<Option<GenerationConfig>, Error> {
        let text = self.find("generation_config.json");
        let config = text.map(|text| GenerationConfig::parse(&text)).transpose();
        config.map_err(|error| self.refuse(error))
    }

    /// The tokenizer's file as text.
    pub fn tokenizer_json(&self) -> Result<String, Error> {
        String::from_utf8(self.read("tokenizer.json")?.into_owned())
            .map_err(|error| self.refuse(error))
    }

    /// The weights by internal name, in f32 and in memory.
    ///
    /// # Errors
    /// Those of [`published`](Self::published).
    pub fn tensors(&self) -> Result<NamedTensors, Error> {
        let all = self.published()?.all();
        all.map_err(|error| self.refuse(format!("model.safetensors: {error}")))
    }

    /// The weights where they lie: of the network's tensors all, and no others.
    ///
    /// # Errors
    /// The tensor that is missing, of another shape, or none of the network's.
    pub fn published(&self) -> Result<Published<'static>, Error> {
        let refuse =
            |error: &dyn std::fmt::Display| self.refuse(format!("model.safetensors: {error}"));
        let checkpoint = match self {
            BaseSource::Embedded => Checkpoint::from_bytes(embedded::WEIGHTS),
            BaseSource::Folder(folder) => Checkpoint::open(folder),
        };
        let checkpoint = checkpoint.map_err(|error| refuse(&error))?;
        Published::new(&self.architecture()?, checkpoint).map_err(|error| refuse(&error))
    }

    /// What the store is to know of the weights, without keeping them.
    pub(super) fn facts(&self) -> Result<BaseFacts, Error> {
        let weights = self.published()?;
        let digest = superposition::digest(&weights);
        Ok(BaseFacts {
            digest: digest.map_err(|error| self.refuse(format!("model.safetensors: {error}")))?,
            tokenizer: self.tokenizer()?.digest().into(),
            shapes: weights.shapes(),
        })
    }

    /// What a copy of the weights as they are served follows from: of those in a folder that are rounded.
    fn origin(&self, place: &Place) -> Option<Origin> {
        match (self, place) {
            (BaseSource::Folder(folder), Place::Host(form)) if *form != Quantisation::F32 => {
                Origin::of(folder, form.to_string(), LAYOUT).ok()
            }
            _ => None,
        }
    }

    /// The weights from the copy in `directory`, where it has one of just these files.
    fn restored(
        directory: &Path,
        origin: &Origin,
        form: Quantisation,
        architecture: &Architecture,
        tokenizer: Digest,
    ) -> Option<(BaseFacts, place::ResidentBase)> {
        let copy = BaseCopy::open(directory, origin)?;
        checkpoint::room(architecture.bytes(form) as u64).ok()?;
        let facts = BaseFacts {
            digest: copy.base,
            tokenizer,
            shapes: shapes(architecture).collect(),
        };
        let weights = BaseWeights::restore(architecture.clone(), form, |name| copy.part(name))?;
        Some((facts, place::ResidentBase::Host(Arc::new(weights))))
    }

    /// What the store is to know of the weights, and the weights where they are served.
    fn weights(
        &self,
        place: &Place,
        architecture: Architecture,
        tokenizer: Digest,
    ) -> Result<(BaseFacts, place::ResidentBase), Error> {
        let refused = |error: model::Error| self.refuse(error);
        let published = self.published()?;
        if let Place::Host(form) = place {
            let needed = architecture.bytes(*form) + architecture.loading_bytes();
            checkpoint::room(needed as u64).map_err(|error| self.refuse(error))?;
        }
        let shapes = shapes(&architecture).collect();
        let mut digest = TensorDigest::default();
        let weights = place::ResidentBase::load(place, architecture, |spec| {
            let data =
                (published.read(spec)).map_err(|error| model::Error::Unread(error.into()))?;
            digest.add(&spec.name, &spec.shape, &data);
            Ok(Cow::Owned(data))
        });
        let weights = weights.map_err(refused)?;
        let facts = BaseFacts {
            digest: digest.finish(),
            tokenizer,
            shapes,
        };
        Ok((facts, weights))
    }

    /// Everything about the base that is needed for as long as it is served; its weights from the copy that the store in
    /// `copies` may have of them.
    pub(super) fn load(&self, place: &Place, copies: Option<&Path>) -> Result<ServedBase, Error> {
        let mut architecture = self.architecture()?;
        let mut tokenizer = self.tokenizer()?;
        if architecture.conditioning.is_some() {
            tokenizer.begin_as_ended(); // as the texts that these networks are trained on
        }
        let (pieces, rows) = (tokenizer.pieces(), architecture.vocabulary.rows);
        if pieces > rows {
            return Err(self.refuse(format!(
                "tokenizer.json has {pieces} pieces and the network {rows} rows"
            )));
        }
        if tokenizer.ends().is_empty() {
            tracing::warn!(
                "the tokenizer {self} names no end of text: a text ends at its length only"
            );
        }
        let absorbing = architecture.regime.process == Process::Absorbing;
        let mask = architecture.vocabulary.mask.or(tokenizer.mask());
        match mask.filter(|&mask| absorbing && (mask as usize) < rows) {
            None if absorbing => {
                let nobody = "neither config.json nor the tokenizer names a mask of the network's";
                return Err(self.refuse(nobody));
            }
            mask => architecture.vocabulary.mask = mask,
        }
        let (origin, digest) = (self.origin(place), tokenizer.digest().into());
        let restored = match (copies, &origin, place) {
            (Some(directory), Some(origin), Place::Host(form)) => {
                Self::restored(directory, origin, *form, &architecture, digest)
            }
            _ => None,
        };
        let to_keep = origin.filter(|_| restored.is_none());
        let (facts, weights) = match restored {
            Some(restored) => restored,
            None => self.weights(place, architecture, digest)?,
        };
        let base = ServedBase {
            source: self.clone(),
            to_keep,
            facts,
            weights,
            tokenizer: Arc::new(tokenizer),
            generation_config: self.generation_config()?,
        };
        let (facts, usual) = (
            base.weights.facts(),
            base.usual(base.weights.facts().regime),
        );
        crate::engine::check_sampling(facts, facts.regime, &usual)
            .map_err(|error| self.refuse(format!("generation_config.json: {error}")))?;
        Ok(base)
    }
}

impl std::fmt::Display for BaseSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BaseSource::Embedded => f.write_str("compiled in"),
            BaseSource::Folder(folder) => write!(f, "in {}", folder.display()),
        }
    }
}

/// A base being served.
pub(super) struct ServedBase {
    source: BaseSource,
    /// What a copy of its weights would follow from, where there is none.
    to_keep: Option<Origin>,
    pub facts: BaseFacts,
    pub weights: place::ResidentBase,
    pub tokenizer: Arc<Tokenizer>,
    generation_config: Option<GenerationConfig>,
}

impl ServedBase {
    /// Keeps a copy of the weights as they are served in the store's `directory`, so that the next start need not round them. What
    /// fails is told: it costs the next start its time and nothing else.
    pub fn keep_copy(&self, directory: &Path) {
        let (Some(origin), place::ResidentBase::Host(weights)) = (&self.to_keep, &self.weights)
        else {
            return;
        };
        let Ok(parts) = weights.raw() else { return };
        match BaseCopy::write(directory, origin, self.facts.digest, parts) {
            Ok(()) => tracing::info!("the store keeps a copy of the base as it is served"),
            Err(error) => tracing::warn!(%error, "the store keeps no copy of the base"),
        }
    }

    /// What was read, in a line for operators: family, size, process, blocks, context, mask, and what ends a text.
    pub fn describe(&self) -> String {
        let facts = self.weights.facts();
        let token = |id: u32| match self.tokenizer.decode(&[id]) {
            text if text.is_empty() => id.to_string(),
            text => format!("{id} {:?}", checkpoint::shown(&text)),
        };
        let process = match facts.regime.process {
            Process::Absorbing => "absorbing",
            Process::Uniform => "uniform",
        };
        let blocks = match facts.regime.block {
            Some(block) => format!("blocks of {block}"),
            None => "whole sequences".to_owned(),
        };
        let mask = facts
            .mask
            .map_or("no mask".to_owned(), |id| format!("mask {}", token(id)));
        let ends: Vec<String> = self.tokenizer.ends().iter().map(|&id| token(id)).collect();
        let ends = match ends.is_empty() {
            true => "no end of text".to_owned(),
            false => format!("end of text {}", ends.join(", ")),
        };
        format!(
            "{} of {:.1} million parameters, {process} process, {blocks}, context of {} tokens, {mask}, {ends}",
            facts.family,
            facts.parameters as f64 / 1e6,
            facts.context,
        )
    }

    /// How a variant of this regime is sampled that says nothing of it.
    pub fn usual(&self, regime: Regime) -> Sampling {
        let said = self.generation_config.as_ref();
        defaults::usual(self.weights.facts(), regime, said)
    }

    /// The weights again where they lie, to compare a checkpoint with: they are not kept in f32.
    ///
    /// # Errors
    /// Where the folder does not have them any more.
    pub fn published(&self) -> Result<Published<'static>, Error> {
        self.source.published()
    }

    /// Refuses weights of another digest than those that are served.
    pub fn unchanged(&self, found: Digest) -> Result<(), Error> {
        let changed = || {
            self.source
                .refuse("its weights have changed since they were loaded")
        };
        match found == self.facts.digest {
            true => Ok(()),
            false => Err(changed()),
        }
    }

    /// The weights again, and how a fine-tune stands to them.
    ///
    /// # Errors
    /// What [`Relation::of`] refuses, a base that is not the one being served any more, and unless it is by `force` what looks like
    /// another revision of the base.
    pub fn relation(
        &self,
        tuned: &Published,
        origin: &str,
        force: bool,
    ) -> Result<(Published<'static>, Relation), Error> {
        let weights = self.published()?;
        let relation = Relation::of(&weights, tuned).map_err(checkpoint(origin))?;
        self.unchanged(relation.base)?;
        if relation.revision && !force {
            let moved = relation.moved;
            return Err(checkpoint(origin)(Mismatch::Revision { moved }.into()));
        }
        Ok((weights, relation))
    }
}

/// Names what a file was refused for.
pub(super) fn checkpoint(origin: &str) -> impl FnOnce(DeltaError) -> Error + '_ {
    move |source| Error::Checkpoint {
        origin: origin.to_owned(),
        source,
    }
}
