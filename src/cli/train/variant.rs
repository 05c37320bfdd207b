//! `choir train variant`: a fine-tune of a base, of its process or of the uniform one.

use super::{RunArgs, SubjectArgs, train};
use crate::cli::capacity::Capacity;
use crate::model::{DitConfig, Process, Trainable};
use crate::train::course::Course;
use crate::train::curriculum::Curriculum;
use crate::train::folder::Folder;
use crate::train::objective::SMALLEST_T;
use crate::train::settings::Anchor;
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProcessKind {
    /// Masked tokens, as the base.
    Absorbing,
    /// Uniform-state diffusion (Duo): few-step sampling, the network is told the noise level.
    Uniform,
}

#[derive(Args, Debug)]
pub struct VariantArgs {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    #[command(flatten)]
    subject: SubjectArgs,
    /// Begin with the weights of this other fine-tune of the base.
    #[arg(long, value_name = "FOLDER")]
    start: Option<PathBuf>,
    /// The variant's process [default: that of --start, else of the base].
    #[arg(long, value_enum)]
    process: Option<ProcessKind>,
    /// Uniform process: the whole sequence at once, with attention in both directions (the default).
    #[arg(long, conflicts_with = "block")]
    whole: bool,
    /// Uniform process: blocks of so many tokens, each with the clean ones before it.
    #[arg(long)]
    block: Option<usize>,
    /// Train under the interference of banks of so many variants (or body's/head's, as in 4/1, which a store's are), so that what is
    /// learned survives it.
    #[arg(long, default_value = "1")]
    interference: Capacity,
    /// Uniform process: the share of the run, from its beginning, that reads mixtures of tokens (the Gaussian curriculum).
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    curriculum: f64,
    /// Temperature of the mixtures at the beginning of the curriculum.
    #[arg(long, default_value_t = 0.1)]
    tau_start: f64,
    /// Temperature of the mixtures at its end.
    #[arg(long, default_value_t = 0.01)]
    tau_end: f64,
    /// Tokens in a mixture.
    #[arg(long, default_value_t = 16)]
    choices: usize,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs `choir train variant`.
pub fn run(args: VariantArgs) -> Result<()> {
    args.run.prepare()?;
    args.run.spare(&args.base)?;
    let base = Folder::read(&args.base)?;
    let first = match &args.start {
        Some(start) => Folder::read(start)?,
        None => base.clone(),
    };
    let config = args.config(&base.config, &first.config)?;
    let clip = match (config.process(), first.config.process()) {
        (Process::Uniform, Process::Absorbing) => (SMALLEST_T, 1.0),
        (Process::Uniform, Process::Uniform) => first.clip,
        (Process::Absorbing, _) => base.clip,
    };
    let model = Trainable::from_tensors(config.clone(), &first.tensors)?;
    let subject = args.subject.read()?;
    let curriculum = Curriculum {
        share: args.curriculum,
        tau: (args.tau_start, args.tau_end),
        choices: args.choices,
    };
    let course = match args.curriculum {
        0.0 => Course::Plain,
        _ => Course::Curriculum(curriculum),
    };
    let anchor = Anchor {
        tensors: base.tensors,
        members: args.interference.members(),
    };
    let folder = Folder {
        config,
        tensors: Default::default(),
        tokenizer: base.tokenizer,
        clip: args.run.clip(clip),
    };
    train(&args.run, folder, model, subject, course, Some(anchor))
}

impl VariantArgs {
    /// The variant's configuration, `first` being that of the weights it begins with.
    fn config(
        &self,
        base: &DitConfig,
        first: &DitConfig,
    ) -> Result<DitConfig, crate::train::Error> {
        let refuse = |field, reason: String| Err(crate::train::Error::Setting { field, reason });
        let process = self
            .process
            .map_or(first.process(), |process| match process {
                ProcessKind::Absorbing => Process::Absorbing,
                ProcessKind::Uniform => Process::Uniform,
            });
        if process == Process::Absorbing {
            if self.whole || self.block.is_some() {
                return refuse("block", "an absorbing variant has its base's".into());
            }
            if base.mask_id().is_none() {
                return refuse("process", "the base has no mask".into());
            }
            return Ok(base.clone());
        }
        let inherited = first
            .block()
            .filter(|_| first.process() == Process::Uniform);
        let block = if self.whole {
            None
        } else {
            self.block.or(inherited)
        };
        match block {
            Some(block) if block == 0 || !base.model_length.is_multiple_of(block) => refuse(
                "block",
                format!(
                    "{} tokens are not whole blocks of {block}",
                    base.model_length
                ),
            ),
            _ => Ok(base.uniform(block)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: VariantArgs,
    }

    fn config(options: &str, start: Option<&DitConfig>) -> Result<DitConfig, crate::train::Error> {
        let line = format!("variant --base b --out o --skill sort {options}");
        let base = base();
        let args = Line::try_parse_from(line.split_whitespace()).unwrap().args;
        args.config(&base, start.unwrap_or(&base))
    }

    fn base() -> DitConfig {
        let json = r#"{"model_type": "bd3lm", "vocab_size": 20, "model_length": 32, "hidden_dim": 8, "cond_dim": 4,
            "n_blocks": 1, "n_heads": 2, "block_size": 8, "cross_attn": true, "time_conditioning": false}"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_variant_has_its_starts_process_unless_another_is_asked_for() {
        let (base, whole, blocks) = (base(), base().uniform(None), base().uniform(Some(4)));
        assert_eq!(
            (whole.tokens(), whole.block(), whole.time_conditioned()),
            (19, None, true)
        );
        for (options, start, expected) in [
            ("", None, &base),
            ("--process uniform", None, &whole),
            ("--process uniform --whole", None, &whole),
            ("--process uniform --block 4", None, &blocks),
            ("", Some(&whole), &whole),
            ("", Some(&blocks), &blocks),
            ("--block 4", Some(&whole), &blocks),
            ("--whole", Some(&blocks), &whole),
            ("--process absorbing", Some(&whole), &base),
        ] {
            assert_eq!(&config(options, start).unwrap(), expected, "{options}");
        }
    }

    #[test]
    fn blocks_that_do_not_fit_are_refused() {
        for options in [
            "--block 4",
            "--whole",
            "--process uniform --block 0",
            "--process uniform --block 7",
        ] {
            let refused = config(options, None);
            assert!(
                matches!(
                    refused,
                    Err(crate::train::Error::Setting { field: "block", .. })
                ),
                "{options}: {refused:?}"
            );
        }
    }
}
