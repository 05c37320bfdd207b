//! What is measured: fine-tunes of one's own, each with what it is measured on.

use super::measure;
use crate::catalog::BaseSource;
use crate::cli::fine_tune::FineTune;
use crate::model::Process;
use crate::train::data::held_out_contexts;
use crate::train::objective::{self, Objective};
use crate::train::packing::SkillSource;
use crate::train::skills::Skill;
use crate::train::tokenizer;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::str::FromStr;

/// `NAME=CHECKPOINT=TEXT`, or `NAME=CHECKPOINT=skill:SKILL`.
#[derive(Clone, Debug)]
pub struct MeasuredVariant {
    pub name: String,
    pub(super) checkpoint: PathBuf,
    pub on: On,
}

/// What a variant is measured on.
#[derive(Clone, Debug)]
pub enum On {
    /// A file that nothing was trained on.
    Text(PathBuf),
    /// Its held-out prompts, which have right answers.
    Skill(Skill),
}

/// Tokens, and how many of them are given.
pub type Texts = Vec<(Vec<u32>, usize)>;

impl FromStr for MeasuredVariant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let [name, checkpoint, on] = text.splitn(3, '=').collect::<Vec<_>>()[..] else {
            return Err(
                "it is NAME=CHECKPOINT=TEXT, as in letters=letters/model.safetensors=letters.txt"
                    .to_owned(),
            );
        };
        Ok(MeasuredVariant {
            name: name.to_owned(),
            checkpoint: checkpoint.into(),
            on: match on.strip_prefix("skill:") {
                Some(skill) => On::Skill(skill.parse()?),
                None => On::Text(on.into()),
            },
        })
    }
}

impl MeasuredVariant {
    /// The file with its weights.
    pub fn file(&self) -> PathBuf {
        match self.checkpoint.is_dir() {
            true => self.checkpoint.join("model.safetensors"),
            false => self.checkpoint.clone(),
        }
    }

    /// What the fine-tune is measured on, so many contexts of a text or so many prompts, and whether an engine can write their right
    /// answers.
    pub(super) fn texts(
        &self,
        source: &BaseSource,
        tuned: &FineTune,
        (contexts, prompts): (usize, usize),
    ) -> Result<(Texts, bool)> {
        let config = &tuned.folder.config;
        let pieces = tokenizer::from_json(&source.tokenizer_json()?)?;
        let unit = |otherwise| -> Result<usize> {
            Ok(Objective::new(config, (objective::SMALLEST_T, 1.0))?.unit(otherwise))
        };
        let (found, exact) = match &self.on {
            On::Text(file) => {
                let named = || file.display().to_string();
                let text = std::fs::read_to_string(file).with_context(named)?;
                let (length, block) = (config.model_length, unit(16)?);
                let found = held_out_contexts(&[&text], &pieces, length, block, contexts);
                (found.with_context(named)?.0, false)
            }
            On::Skill(skill) => {
                let source = SkillSource::new(*skill, pieces)?;
                let found = source.held_out(prompts, unit(config.model_length)?)?;
                // The uniform process decides nothing for good: there is no order in which to decode an answer.
                (found, config.process() == Process::Absorbing)
            }
        };
        let texts = (0..found.count).map(|index| measure::text(&found, index));
        Ok((texts.collect(), exact))
    }
}
