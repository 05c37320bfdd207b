//! A generation: one committed state of the store, as a model instance and the names it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Error, Sampling};
use crate::model::tokenizer::Tokenizer;
use crate::model::{Denoiser, Mix, Process, Regime, VariantId};

/// Everything a sequence needs to run to its end. A running sequence leases one (holds the `Arc`), so that
/// publishing the next one changes nothing for it; the last lease to go frees the instance.
pub struct Generation {
    pub number: u64,
    pub denoiser: Arc<dyn Denoiser>,
    pub tokenizer: Arc<Tokenizer>,
    /// The base's own defaults.
    pub defaults: Sampling,
    pub variants: BTreeMap<String, VariantFacts>,
    /// What this generation's weights take in memory; parts shared with other generations are counted in each.
    pub memory: Vec<MemoryPart>,
}

/// What the engine needs to know of a variant.
#[derive(Clone, Debug)]
pub struct VariantFacts {
    pub id: VariantId,
    /// What it was tuned for; its network's own or another.
    pub regime: Regime,
    pub defaults: Sampling,
}

/// Bytes held by one named part ("base", "bank body-0", "private tensors", ...).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPart {
    pub part: String,
    pub bytes: u64,
    /// On the device, not on the host.
    pub on_device: bool,
}

impl std::fmt::Display for MemoryPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.part)?;
        f.write_str(if self.on_device { " (device)" } else { "" })
    }
}

impl Generation {
    /// The banks that rows of a mix read.
    pub fn banks(&self, mix: &Mix) -> Vec<usize> {
        let banks = mix
            .0
            .iter()
            .flat_map(|(variant, _)| self.denoiser.banks(*variant));
        banks
            .copied()
            .collect::<BTreeSet<usize>>()
            .into_iter()
            .collect()
    }

    /// Sampling defaults for a mix: those of its heaviest variant, the base's for the empty mix.
    pub fn defaults(&self, mix: &[(String, f32)]) -> Sampling {
        mix.iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .and_then(|(name, _)| self.variants.get(name))
            .map_or_else(|| self.defaults.clone(), |facts| facts.defaults.clone())
    }

    /// What a mix was tuned for, which all its variants must share; what the base was for the empty one.
    pub fn regime(&self, mix: &[(String, f32)]) -> Result<Regime, Error> {
        let mut shared: Option<(&str, Regime)> = None;
        for (name, _) in mix {
            let unknown = || Error::UnknownVariant { name: name.clone() };
            let regime = self.variants.get(name).ok_or_else(unknown)?.regime;
            match shared {
                Some((other, first)) if first != regime => {
                    let what = |regime: Regime| match (regime.process, regime.block) {
                        (Process::Absorbing, _) => "the absorbing process".to_owned(),
                        (Process::Uniform, Some(block)) => {
                            format!("the uniform process in blocks of {block}")
                        }
                        (Process::Uniform, None) => {
                            "the uniform process over whole sequences".to_owned()
                        }
                    };
                    let reason = format!(
                        "{other:?} was tuned for {} and {name:?} for {}",
                        what(first),
                        what(regime)
                    );
                    return Err(Error::BadField {
                        field: "mix",
                        reason,
                    });
                }
                _ => shared = Some((name, regime)),
            }
        }
        Ok(shared.map_or_else(|| self.denoiser.facts().regime, |(_, regime)| regime))
    }

    /// Turns names into this generation's ids, in canonical order.
    pub fn mix(&self, names: &[(String, f32)]) -> Result<Mix, Error> {
        let mut parts = Vec::with_capacity(names.len());
        for (name, weight) in names {
            let facts = self
                .variants
                .get(name)
                .ok_or_else(|| Error::UnknownVariant { name: name.clone() })?;
            if !weight.is_finite() || weight.abs() > MAX_WEIGHT {
                let reason =
                    format!("the weight of {name:?} is {weight}, not within {MAX_WEIGHT} of 0");
                return Err(Error::BadField {
                    field: "mix",
                    reason,
                });
            }
            parts.push((facts.id, *weight));
        }
        parts.sort_by_key(|(id, _)| *id);
        match parts.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(_) => Err(Error::BadField {
                field: "mix",
                reason: "a variant is named twice".into(),
            }),
            None => Ok(Mix(parts)),
        }
    }
}

/// Largest weight, by magnitude, that a mix may give a variant.
pub const MAX_WEIGHT: f32 = 16.0;
