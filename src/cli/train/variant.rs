//! `choir train variant`: a fine-tune of a base, of its process or of the uniform one.

use super::{RunArgs, SubjectArgs, train};
use crate::model::{DitConfig, Process, Trainable};
use crate::train::curriculum::Curriculum;
use crate::train::folder::Folder;
use crate::train::objective::SMALLEST_T;
use crate::train::run::{Anchor, Course};
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
    /// Train under the interference of a bank of this many variants, so that what is learned survives it.
    #[arg(long, default_value_t = 1)]
    interference: usize,
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
    let device = args.run.prepare()?;
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
    let model = Trainable::from_tensors(config.clone(), &first.tensors, &device)?;
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
        members: args.interference,
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
    fn config(&self, base: &DitConfig, first: &DitConfig) -> Result<DitConfig, crate::train::Error> {
        let refuse = |field, reason: String| Err(crate::train::Error::Setting { field, reason });
        let process = self.process.map_or(first.process(), |process| match process {
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
        let inherited = first.block().filter(|_| first.process() == Process::Uniform);
        let config = base.uniform(if self.whole { None } else { self.block.or(inherited) });
        match config.check() {
            Ok(()) => Ok(config),
            Err(error) => refuse("block", error.to_string()),
        }
    }
}
