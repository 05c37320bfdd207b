//! `choir train distill`: a few-step variant from a uniform one.

use super::{RunArgs, SubjectArgs, train};
use crate::cli::capacity::Capacity;
use crate::model::Trainable;
use crate::ops::Divergence;
use crate::train::course::Course;
use crate::train::distill::Distillation;
use crate::train::folder::Folder;
use crate::train::settings::Anchor;
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Measure {
    /// KL(teacher || student): covers all that the teacher holds possible.
    Forward,
    /// KL(student || teacher): keeps to what the teacher holds likely (the papers').
    Backward,
}

#[derive(Args, Debug)]
pub struct DistillArgs {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// The uniform variant to begin with and to learn from.
    #[arg(long)]
    teacher: PathBuf,
    #[command(flatten)]
    subject: SubjectArgs,
    /// Rounds of equal length; each learns from the last and jumps twice as far.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The first round's jump is one of so many steps through time.
    #[arg(long, default_value_t = 64)]
    first_steps: u32,
    /// How student and teacher are compared.
    #[arg(long, value_enum, default_value = "backward")]
    divergence: Measure,
    /// Train under the interference of banks of so many variants (or body's/head's, as in 4/1, which a store's are), so that what is
    /// learned survives it.
    #[arg(long, default_value = "1")]
    interference: Capacity,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs `choir train distill`.
pub fn run(args: DistillArgs) -> Result<()> {
    args.run.prepare()?;
    [&args.base, &args.teacher]
        .into_iter()
        .try_for_each(|folder| args.run.spare(folder))?;
    let (base, mut folder) = (Folder::read(&args.base)?, Folder::read(&args.teacher)?);
    let course = Course::Distillation(Distillation {
        rounds: args.rounds,
        first_steps: args.first_steps,
        divergence: match args.divergence {
            Measure::Forward => Divergence::Forward,
            Measure::Backward => Divergence::Backward,
        },
    });
    folder.clip = args.run.clip(folder.clip);
    let model = Trainable::from_tensors(folder.config.clone(), &folder.tensors)?;
    let anchor = Anchor {
        tensors: base.tensors,
        members: args.interference.members(),
    };
    train(
        &args.run,
        folder,
        model,
        args.subject.read()?,
        course,
        Some(anchor),
    )
}
