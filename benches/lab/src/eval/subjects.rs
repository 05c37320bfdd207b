//! What is measured: a base, variants of it, and each variant's held-out data.

use super::references::reference;
use anyhow::{Context, Result, anyhow, bail};
use choir::catalog::base::{self, BaseSource, Shipped};
use choir::cli::eval::{MeasuredVariant, On};
use choir::model::{DitConfig, Process, Trainable};
use choir::superposition::{Delta, NamedTensor, NamedTensors, read_file};
use choir::train::data::held_out_contexts;
use choir::train::folder::Tensors;
use choir::train::objective::Objective;
use choir::train::packing::SkillSource;
use choir::train::run::{Validation, ValidationScore};
use choir::train::{objective, tokenizer};
use std::path::Path;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Contexts of held-out text a variant.
    pub contexts: usize,
    /// Masked copies of every block.
    pub draws: usize,
    /// Held-out prompts a skill.
    pub prompts: usize,
}

/// One variant and what it is measured on.
pub struct Subject {
    pub name: String,
    pub seed: u64,
    pub delta: Delta,
    /// The base's, but with what the variant was tuned for.
    pub config: DitConfig,
    /// Its held-out text, for a style compiled in.
    pub text: Option<HeldOut>,
    pub test: Validation,
}

/// A text that nothing was trained on.
#[derive(Clone, Debug)]
pub struct HeldOut {
    pub name: String,
    pub text: &'static str,
}

/// A base and variants of it, in order of name.
pub struct Subjects {
    pub config: DitConfig,
    pub base: NamedTensors,
    pub variants: Vec<Subject>,
}

/// Picks what is named, all where nothing is.
fn chosen(names: &[String]) -> Result<Vec<Shipped>> {
    let shipped = base::shipped()?;
    if let Some(unknown) = names
        .iter()
        .find(|name| !shipped.iter().any(|s| s.name == **name))
    {
        let known: Vec<&str> = shipped.iter().map(|variant| variant.name).collect();
        bail!(
            "no variant {unknown:?} is compiled in; there are {}",
            known.join(", ")
        );
    }
    let wanted =
        |variant: &Shipped| names.is_empty() || names.iter().any(|name| name == variant.name);
    let mut variants: Vec<Shipped> = shipped.into_iter().filter(wanted).collect();
    variants.sort_by_key(|variant| variant.name);
    Ok(variants)
}

impl Subjects {
    /// The model compiled in, with its variants called `names`, or all: of each the fine-tune where that is at hand, else what its
    /// coded file stands for.
    pub fn compiled_in(names: &[String], effort: Effort) -> Result<Self> {
        let source = BaseSource::Embedded;
        let shipped = chosen(names)?;
        let config: DitConfig = serde_json::from_slice(&source.config_json()?)?;
        let base = source.tensors()?;
        let pieces = tokenizer::from_json(&source.tokenizer_json()?)?;
        let subject = |shipped: Shipped| -> Result<Subject> {
            let config = config.tuned(shipped.regime(&config.facts())?);
            let Shipped {
                name,
                about,
                packed,
            } = shipped;
            let packed = reference(name).unwrap_or(packed);
            let delta =
                Delta::read(&base, packed).with_context(|| format!("the delta of {name}"))?;
            let objective = objective(&config)?;
            let text = match &about.held_out {
                Some(file) => Some(HeldOut {
                    text: base::held_out(file)
                        .with_context(|| format!("{name}: no held-out text {file:?}"))?,
                    name: file.clone(),
                }),
                None => None,
            };
            let (contexts, bytes) = match (&about.skill, &text) {
                (Some(skill), _) => {
                    let skill = skill
                        .parse()
                        .map_err(|error: String| anyhow!("{name}: {error}"))?;
                    let source = SkillSource::new(skill, pieces.clone())?;
                    (
                        source.held_out(effort.prompts, objective.unit(config.model_length))?,
                        0,
                    )
                }
                (None, Some(held_out)) => {
                    let (length, block) = (config.model_length, objective.unit(16));
                    held_out_contexts(&[held_out.text], &pieces, length, block, effort.contexts)?
                }
                (None, None) => {
                    bail!("{name} has neither a held-out text nor a skill to be measured on")
                }
            };
            Ok(Subject {
                name: name.to_owned(),
                seed: delta.digest().seed(),
                delta,
                text,
                test: Validation {
                    contexts,
                    bytes,
                    draws: effort.draws,
                    // The uniform process decides nothing for good: there is no order in which to decode an answer.
                    exact: about.skill.is_some() && config.process() == Process::Absorbing,
                },
                config,
            })
        };
        let variants = shipped.into_iter().map(subject).collect::<Result<_>>()?;
        Ok(Self {
            config,
            base,
            variants,
        })
    }

    /// Fine-tunes of the base in a folder, each with a text that nothing was trained on.
    pub fn own(base: &Path, variants: &[MeasuredVariant], effort: Effort) -> Result<Self> {
        let source = BaseSource::Folder(base.to_owned());
        let config: DitConfig = serde_json::from_slice(&source.config_json()?)?;
        let base = source.tensors()?;
        let pieces = tokenizer::from_json(&source.tokenizer_json()?)?;
        let subject = |own: &MeasuredVariant| -> Result<Subject> {
            let file = own.file();
            let shown = || file.display().to_string();
            let delta = Delta::read(&base, &read_file(&file)?).with_context(shown)?;
            let beside = file.with_file_name("config.json");
            let config = match std::fs::read(&beside) {
                Ok(json) => {
                    let tuned: DitConfig = serde_json::from_slice(&json)
                        .with_context(|| beside.display().to_string())?;
                    config.tuned(tuned.regime())
                }
                Err(_) => config.clone(),
            };
            let (objective, length) = (objective(&config)?, config.model_length);
            let (contexts, bytes) = match &own.on {
                On::Text(text) => {
                    let named = || text.display().to_string();
                    let text = std::fs::read_to_string(text).with_context(named)?;
                    let block = objective.unit(16);
                    held_out_contexts(&[&text], &pieces, length, block, effort.contexts)?
                }
                On::Skill(skill) => {
                    let source = SkillSource::new(*skill, pieces.clone())?;
                    (source.held_out(effort.prompts, objective.unit(length))?, 0)
                }
            };
            let exact = matches!(own.on, On::Skill(_)) && config.process() == Process::Absorbing;
            Ok(Subject {
                name: own.name.clone(),
                seed: delta.digest().seed(),
                delta,
                config,
                text: None,
                test: Validation {
                    contexts,
                    bytes,
                    draws: effort.draws,
                    exact,
                },
            })
        };
        let variants = variants.iter().map(subject).collect::<Result<_>>()?;
        Ok(Self {
            config,
            base,
            variants,
        })
    }

    /// Parameters in superposed tensors, and in all.
    pub fn parameters(&self) -> (usize, usize) {
        let count = |matrices: bool| {
            let tensors = self.base.0.values();
            let counted = tensors.filter(|tensor| !matrices || tensor.matrix().is_some());
            counted.map(|tensor| tensor.data.len()).sum()
        };
        (count(true), count(false))
    }

    /// The base plus what `delta` gives for each tensor, in row order; a tensor it gives nothing for is the base's.
    pub fn weights(&self, delta: impl Fn(&str) -> Option<Vec<f32>>) -> Tensors {
        let add = |(name, tensor): (&String, &NamedTensor)| {
            let mut data = tensor.data.clone();
            for (weight, delta) in data.iter_mut().zip(delta(name).unwrap_or_default()) {
                *weight += delta;
            }
            (name.clone(), (tensor.shape.clone(), data))
        };
        self.base.0.iter().map(add).collect()
    }

    /// Measures weights on a variant's held-out data, always with the same noise, so that differences are paired; by the
    /// bound of the variant's own process, whosever weights they are.
    pub fn score(
        &self,
        variant: &Subject,
        weights: &Tensors,
        test: &Validation,
    ) -> Result<ValidationScore> {
        let model = Trainable::from_tensors(variant.config.clone(), weights)?;
        Ok(test.score(&model, &objective(&variant.config)?, 0)?)
    }
}

/// Over the whole range of t, whatever was trained on.
fn objective(config: &DitConfig) -> Result<Objective> {
    Ok(Objective::new(config, (objective::SMALLEST_T, 1.0))?)
}
