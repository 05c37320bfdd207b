//! `choir train pack`: a variant as a small file, and what packing costs it.

use super::Subject;
use crate::catalog::defaults::{process_to_store, to_store};
use crate::cli::sampling::SamplingArgs;
use crate::engine::{Sampling, check_sampling};
use crate::model::{DitConfig, Trainable};
use crate::server::choir::convert;
use crate::superposition::{Delta, NamedTensors, Remarks, pack_with};
use crate::train::data::read_documents;
use crate::train::folder::{Folder, replace};
use crate::train::objective::Objective;
use crate::train::run::Score;
use crate::train::skills::Skill;
use crate::train::tokenizer;
use anyhow::{Context, Result};
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct PackArgs {
    /// The base's folder, as it will be served.
    #[arg(long)]
    base: PathBuf,
    /// The variant's folder.
    #[arg(long)]
    variant: PathBuf,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Weights that share a scale: 32 is finer, 64 is smaller.
    #[arg(long, default_value_t = 32)]
    group: usize,
    /// Measure base, variant and packed variant on the held-out part of these texts.
    #[arg(long, num_args = 1.., conflicts_with = "skill")]
    text: Vec<PathBuf>,
    /// Measure base, variant and packed variant on held-out prompts of a skill.
    #[arg(long)]
    skill: Option<Skill>,
    /// Print a JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Sampling defaults to go with the variant, over those usual for its process.
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: PackArgs) -> Result<()> {
    let read = |folder: &PathBuf| {
        let file = folder.join("model.safetensors");
        let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
        NamedTensors::from_safetensors(&bytes).with_context(|| file.display().to_string())
    };
    let (base, variant) = (read(&args.base)?, read(&args.variant)?);
    let packed = pack_with(&base, &variant, args.group, remarks(&args)?)?;
    replace(&args.out, &packed)?;
    let subject = match args.skill {
        Some(skill) => Some(Subject::Skill(skill)),
        None if !args.text.is_empty() => Some(Subject::Text(read_documents(&args.text)?)),
        None => None,
    };
    let mut scores = Vec::new();
    if let Some(subject) = subject {
        let delta = Delta::read(&base, &packed)?;
        let mut unpacked = base.clone();
        for (name, tensor) in &mut unpacked.0 {
            if let Some(delta) = delta.dense(name) {
                tensor
                    .data
                    .iter_mut()
                    .zip(delta)
                    .for_each(|(weight, delta)| *weight += delta);
            }
        }
        // A uniform variant's own objective says nothing of its absorbing base, but much of the packing.
        let mut folder = Folder::read(&args.variant)?;
        for (what, tensors) in [("base", base), ("variant", variant), ("packed", unpacked)] {
            folder.tensors = tensors.into_parts();
            scores.push((what, score(&folder, &subject)?));
        }
    }
    show(&args, packed.len(), &scores);
    Ok(())
}

/// The process that the variant's own configuration says it was tuned for, and how it is sampled.
fn remarks(args: &PackArgs) -> Result<Remarks> {
    let file = args.variant.join("config.json");
    let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
    let config: DitConfig =
        serde_json::from_slice(&bytes).with_context(|| file.display().to_string())?;
    config.check()?;
    let regime = config.regime();
    let sampling = convert::choice(args.sampling.wire())?.over(Sampling::of(regime.process))?;
    check_sampling(&config.facts(), regime, &sampling)?;
    Ok(Remarks {
        process: Some(serde_json::to_string(&process_to_store(regime.process))?),
        defaults: Some(serde_json::to_string(&to_store(&sampling, regime))?),
    })
}

fn score(folder: &Folder, subject: &Subject) -> Result<Score> {
    let model = Trainable::from_tensors(folder.config.clone(), &folder.tensors)?;
    let objective = Objective::new(&folder.config, folder.clip)?;
    let pieces = tokenizer::from_json(&folder.tokenizer)?;
    Ok(subject
        .validation(&objective, &pieces, folder.config.model_length)?
        .score(&model, &objective, 0)?)
}

fn show(args: &PackArgs, bytes: usize, scores: &[(&str, Score)]) {
    let exact = |score: &Score| {
        score
            .exact
            .map(|(right, of)| right as f64 / of.max(1) as f64)
    };
    if args.json {
        let mut fields = serde_json::json!({"out": args.out, "bytes": bytes});
        for (what, score) in scores {
            fields[*what] =
                serde_json::json!({"nats_per_token": score.nats_per_token, "exact": exact(score)});
        }
        println!("{fields}");
        return;
    }
    println!("{}: {bytes} bytes", args.out.display());
    for (what, score) in scores {
        let exact = exact(score).map_or(String::new(), |share| {
            format!(", {:.1} % exact", 100.0 * share)
        });
        println!(
            "  {what:8} {:.4} nats per token{exact}",
            score.nats_per_token
        );
    }
}
