//! `choir pack --calibrate`.

use super::progress::Progress;
use crate::superposition::{CodedDelta, NamedTensors};
use crate::train::calibrate::{Effort, calibrate};
use crate::train::data::{TextSource, read_documents};
use crate::train::folder::Folder;
use crate::train::packing::SkillSource;
use crate::train::run::TrainingEvent;
use crate::train::settings::TrainingSource;
use crate::train::tokenizer;
use anyhow::{Context, Result, anyhow};
use clap::{Args, value_parser};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct CalibrationArgs {
    /// Train what the file keeps of each number by itself, the rows' gains and the tensors in no code, on the first 95 % of these texts
    /// (of a skill: `skill:NAME`) until the packed variant says of them what the fine-tune says. A DiT's alone.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "measured")]
    calibrate: Vec<PathBuf>,
    /// Updates of the calibration, of eight contexts each.
    #[arg(long, default_value_t = 200, requires = "calibrate", value_parser = value_parser!(u64).range(1..))]
    calibrate_steps: u64,
}

impl CalibrationArgs {
    pub fn is_asked(&self) -> bool {
        !self.calibrate.is_empty()
    }

    pub fn steps(&self) -> u64 {
        self.calibrate_steps
    }

    /// What is learned, and how many tokens a context of it has, where that is asked for.
    pub fn lessons(&self, variant: &Folder) -> Result<Option<(TrainingSource, usize)>> {
        if !self.is_asked() {
            return Ok(None);
        }
        let pieces = tokenizer::from_json(&variant.tokenizer)?;
        let skill = match &self.calibrate[..] {
            [only] => only.to_str().and_then(|text| text.strip_prefix("skill:")),
            _ => None,
        };
        let context = variant.config.model_length;
        Ok(Some(match skill {
            Some(name) => {
                let skill = name.parse();
                let skill = skill.map_err(|error: String| anyhow!("--calibrate: {error}"))?;
                let source = SkillSource::new(skill, pieces)?;
                (TrainingSource::Skill(Box::new(source)), context.min(64))
            }
            None => {
                let texts = read_documents(&self.calibrate).context("--calibrate")?;
                let source = TextSource::new(&texts, &pieces, context).context("--calibrate")?;
                (TrainingSource::Text(source), context)
            }
        }))
    }

    /// Calibrates what is kept of `variant`; says how it goes, unless it is to be `quiet`.
    pub fn run(
        &self,
        (source, length): (TrainingSource, usize),
        coded: &mut CodedDelta,
        base: &NamedTensors,
        variant: &Folder,
        quiet: bool,
    ) -> Result<()> {
        let effort = Effort {
            steps: self.calibrate_steps,
            batch: 8,
            length,
            seed: coded.seed,
        };
        let progress = Progress::new(false);
        let mut report = |news: TrainingEvent| {
            if !quiet {
                progress.show(news);
            }
        };
        let parts = base.clone().into_parts();
        calibrate(coded, &parts, variant, source, effort, &mut report)?;
        progress.close();
        Ok(())
    }
}
