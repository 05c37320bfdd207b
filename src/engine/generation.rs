//! A generation: one committed state of the store, as a model instance and the names it serves.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::Error;
use super::sampling::Sampling;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Denoiser, Mix, Process, Regime, VariantId};

/// What the base is called among variants; none has this name.
pub const BASE: &str = "base";

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
    /// The generation's in its own manner, where it has one.
    pub tokenizer: Option<Arc<Tokenizer>>,
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

/// Largest weight, by magnitude, that a mix may give a variant.
pub const MAX_WEIGHT: f32 = 16.0;

/// Which weights a request is for.
#[derive(Clone, Debug)]
pub enum Target {
    /// Variants by name with their weights; empty is the base. They are resolved when the request is submitted.
    Named(Vec<(String, f32)>),
    Resolved(Resolved),
}

impl Default for Target {
    fn default() -> Self {
        Target::Named(Vec::new())
    }
}

impl From<Vec<(String, f32)>> for Target {
    fn from(names: Vec<(String, f32)>) -> Self {
        Target::Named(names)
    }
}

impl From<Resolved> for Target {
    fn from(resolved: Resolved) -> Self {
        Target::Resolved(resolved)
    }
}

/// What the names of a mix mean in one generation, which it leases: whatever comes later of a request needs no name any more.
#[derive(Clone)]
pub struct Resolved {
    pub lease: Arc<Generation>,
    pub(super) mix: Mix,
    /// What all its variants were tuned for; what the base was for the empty mix.
    pub regime: Regime,
    /// As they were given.
    names: Vec<(String, f32)>,
    /// Which of them has the largest weight by magnitude, if any.
    heaviest: Option<usize>,
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Resolved");
        debug
            .field("generation", &self.lease.number)
            .field("names", &self.names)
            .finish()
    }
}

impl Resolved {
    /// # Errors
    /// `UnknownVariant`; `BadField` for more than `most` parts, weights out of bounds, a variant named twice, and variants that were
    /// not tuned alike.
    pub(super) fn new(
        lease: Arc<Generation>,
        names: Vec<(String, f32)>,
        most: usize,
    ) -> Result<Self, Error> {
        let bad = |reason: String| Error::bad("mix", reason);
        let named = names.len();
        if named > most {
            let reason = format!("it has {named} variants and at most {most} may be mixed");
            return Err(bad(reason));
        }
        let mut parts = Vec::with_capacity(names.len());
        let mut shared: Option<(&str, Regime)> = None;
        for (name, weight) in &names {
            let unknown = || Error::UnknownVariant { name: name.clone() };
            let facts = lease.variants.get(name).ok_or_else(unknown)?;
            if !weight.is_finite() || weight.abs() > MAX_WEIGHT {
                let reason =
                    format!("the weight of {name:?} is {weight}, not within {MAX_WEIGHT} of 0");
                return Err(bad(reason));
            }
            if let Some((other, first)) = shared.filter(|(_, first)| *first != facts.regime) {
                let (first, own) = (tuned_for(first), tuned_for(facts.regime));
                let reason = format!("{other:?} was tuned for {first} and {name:?} for {own}");
                return Err(bad(reason));
            }
            shared = Some((name, facts.regime));
            parts.push((facts.id, *weight));
        }
        let regime = shared.map_or_else(|| lease.denoiser.facts().regime, |(_, regime)| regime);
        parts.sort_by_key(|(id, _)| *id);
        if parts.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(bad("a variant is named twice".into()));
        }
        let magnitude = |index: &usize| names[*index].1.abs();
        let heaviest = (0..names.len()).max_by(|a, b| magnitude(a).total_cmp(&magnitude(b)));
        Ok(Resolved {
            mix: Mix(parts),
            regime,
            lease,
            names,
            heaviest,
        })
    }

    /// The names and weights that were asked for.
    pub fn names(&self) -> &[(String, f32)] {
        &self.names
    }

    /// Whose share a request takes of: that of the heaviest variant, so that mixes do not add to the shares.
    pub fn payer(&self) -> &str {
        self.heaviest.map_or(BASE, |index| &self.names[index].0)
    }

    /// Sampling defaults: those of the heaviest variant, the base's for the empty mix.
    pub fn defaults(&self) -> &Sampling {
        let heaviest = self.lease.variants.get(self.payer());
        heaviest.map_or(&self.lease.defaults, |facts| &facts.defaults)
    }

    /// What texts are made of, and how they begin and end: likewise.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        let heaviest = self.lease.variants.get(self.payer());
        let own = heaviest.and_then(|facts| facts.tokenizer.as_ref());
        own.unwrap_or(&self.lease.tokenizer)
    }
}

fn tuned_for(regime: Regime) -> String {
    match (regime.process, regime.block) {
        (Process::Absorbing, _) => "the absorbing process".to_owned(),
        (Process::Uniform, Some(block)) => format!("the uniform process in blocks of {block}"),
        (Process::Uniform, None) => "the uniform process over whole sequences".to_owned(),
    }
}

/// A generation that is never evaluated, for tests that only look at which one it is.
#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::model::kv_cache::KvCache;
    use crate::model::{Batch, DitConfig, Logits, NetworkFacts};

    pub const SIZE: usize = 100;

    struct Network {
        facts: NetworkFacts,
        fails: bool,
    }

    impl Denoiser for Network {
        fn facts(&self) -> &NetworkFacts {
            &self.facts
        }

        fn forward(&self, _batch: &Batch, _cache: &mut KvCache) -> crate::model::Result<Logits> {
            Err(crate::model::Error::NoRows)
        }

        fn bytes(&self) -> usize {
            SIZE
        }

        fn materialise(&self, _mix: &Mix) -> crate::model::Result<Option<Arc<dyn Denoiser>>> {
            if self.fails {
                return Err(crate::model::Error::NoRows);
            }
            Ok(Some(Arc::new(network(false))))
        }
    }

    fn network(fails: bool) -> Network {
        let config = include_bytes!("../../models/base/config.json");
        let config: DitConfig = serde_json::from_slice(config).expect("config");
        let facts = config.facts();
        Network { facts, fails }
    }

    /// One whose variants can be materialised, or not.
    pub fn generation(fails: bool) -> Arc<Generation> {
        let tokenizer = include_bytes!("../../models/base/tokenizer.json");
        let tokenizer = Tokenizer::from_bytes(tokenizer).expect("tokenizer");
        Arc::new(Generation {
            number: 1,
            denoiser: Arc::new(network(fails)),
            tokenizer: Arc::new(tokenizer),
            defaults: Sampling::default(),
            variants: BTreeMap::new(),
            memory: Vec::new(),
        })
    }
}
