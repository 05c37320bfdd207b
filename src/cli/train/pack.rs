//! `choir pack`: a variant as a small file, a coded delta, and what the coding costs it.

use super::Subject;
use crate::catalog::defaults::{process_to_store, to_store};
use crate::cli::sampling::SamplingArgs;
use crate::engine::{Sampling, check_sampling};
use crate::model::{DitConfig, Trainable};
use crate::server::choir::convert;
use crate::superposition::{CodedDelta, Digest, Encoding, Measured, NamedTensors, Plan, Remarks};
use crate::train::data::Document;
use crate::train::folder::{Folder, replace};
use crate::train::objective::Objective;
use crate::train::run::Score;
use crate::train::skills::Skill;
use crate::train::tokenizer;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::PathBuf;

/// Nats per token that a fine-tune must have gained before a share of it means anything.
const LEAST_GAIN: f64 = 1e-3;

/// Pack a variant into a small file: its delta in about a bit a weight, which `choir variants add` takes as it is.
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
    /// Bits for each weight of the base's matrices, everything counted.
    #[arg(long, default_value_t = Plan::BITS)]
    bits: f64,
    /// Defines the variant's rotations [default: from its delta].
    #[arg(long)]
    seed: Option<u64>,
    /// Measure on this held-out text how much of the fine-tune's gain is kept, and say so in the file.
    #[arg(long, value_name = "FILE", conflicts_with = "skill")]
    check_text: Option<PathBuf>,
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

/// What was measured: base, variant, packed variant.
type Scores = [Score; 3];

/// Runs `choir pack`.
pub fn run(args: PackArgs) -> Result<()> {
    let read = |folder: &PathBuf| {
        let file = folder.join("model.safetensors");
        let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
        NamedTensors::from_safetensors(&bytes).with_context(|| file.display().to_string())
    };
    let text = match &args.check_text {
        Some(file) => {
            Some(std::fs::read_to_string(file).with_context(|| file.display().to_string())?)
        }
        None => None,
    };
    let (base, variant) = (read(&args.base)?, read(&args.variant)?);
    let weights = base.0.values().filter(|tensor| tensor.matrix().is_some());
    let weights = weights.map(|tensor| tensor.data.len()).sum();
    let remarks = remarks(&args)?;
    let code = |low_rank| {
        let plan = Plan {
            bits: args.bits,
            low_rank,
            ..Plan::default()
        };
        let encoding = Encoding {
            plan,
            seed: args.seed,
            remarks: remarks.clone(),
        };
        CodedDelta::between(&base, &variant, &encoding)
    };
    let mut coded = code(Plan::default().low_rank)?;
    let subject = match (args.skill, &text) {
        (Some(skill), _) => Some(Subject::Skill(skill)),
        (None, Some(text)) => Some(Subject::Text(vec![Document {
            name: String::new(),
            training: String::new(),
            held_out: text.clone(),
        }])),
        (None, None) => None,
    };
    let mut scores = None;
    if let Some(subject) = &subject {
        // Whether thin factors pay only a measurement tells.
        let other = code(!Plan::default().low_rank)?;
        let score = |delta: Option<&CodedDelta>| score(&args, &base, delta, subject);
        let [first, second] = [score(Some(&coded))?, score(Some(&other))?];
        let second_is_better = second.nats_per_token < first.nats_per_token;
        let tuned = scored(&args, variant.clone(), subject)?;
        scores = Some([
            score(None)?,
            tuned,
            if second_is_better { second } else { first },
        ]);
        if second_is_better {
            coded = other;
        }
    }
    if let (Some(scores), Some(text)) = (&scores, &text) {
        let [base, variant, kept] = scores.map(|score| score.nats_per_token);
        let gain = base - variant;
        if gain.is_nan() || gain < LEAST_GAIN {
            bail!(
                "--check-text: the variant gains {gain:.4} nats per token on it, too little to measure a share of"
            );
        }
        coded.about.measured = Some(Measured {
            share: (base - kept) / gain,
            method: format!("held-out NELBO; the fine-tune gains {gain:.3} nats per token"),
            text: Digest::of(text.as_bytes()),
        });
    }
    let packed = coded.to_bytes();
    replace(&args.out, &packed)?;
    show(&args, &coded, (packed.len(), weights), scores.as_ref());
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
        defaults: Some(serde_json::to_string(&to_store(
            &sampling,
            regime,
            &config.facts(),
        ))?),
    })
}

/// What the base with a delta reaches.
fn score(
    args: &PackArgs,
    base: &NamedTensors,
    delta: Option<&CodedDelta>,
    subject: &Subject,
) -> Result<Score> {
    let mut tensors = base.clone();
    for (name, tensor) in &mut tensors.0 {
        let delta = delta.and_then(|delta| delta.dense(name));
        for (weight, delta) in tensor.data.iter_mut().zip(delta.unwrap_or_default()) {
            *weight += delta;
        }
    }
    scored(args, tensors, subject)
}

/// What weights reach, always with the same noise. A uniform variant's own objective says nothing of its absorbing base, but
/// much of the packing.
fn scored(args: &PackArgs, tensors: NamedTensors, subject: &Subject) -> Result<Score> {
    let mut folder = Folder::read(&args.variant)?;
    folder.tensors = tensors.into_parts();
    let model = Trainable::from_tensors(folder.config.clone(), &folder.tensors)?;
    let objective = Objective::new(&folder.config, folder.clip)?;
    let pieces = tokenizer::from_json(&folder.tokenizer)?;
    let context = folder.config.model_length;
    let validation = subject.validation(&objective, &pieces, context)?;
    Ok(validation.score(&model, &objective, 0)?)
}

fn show(
    args: &PackArgs,
    coded: &CodedDelta,
    (bytes, weights): (usize, usize),
    scores: Option<&Scores>,
) {
    let (bits, error) = (coded.bits(weights), coded.about.error);
    let share = coded.about.measured.as_ref().map(|measured| measured.share);
    let exact = |score: &Score| {
        score
            .exact
            .map(|(right, of)| right as f64 / of.max(1) as f64)
    };
    let named = ["base", "variant", "packed"];
    let named = named.into_iter().zip(scores.into_iter().flatten());
    if args.json {
        let mut fields = serde_json::json!({"out": args.out, "bytes": bytes, "bits": bits, "error": error, "share": share});
        for (what, score) in named {
            fields[what] =
                serde_json::json!({"nats_per_token": score.nats_per_token, "exact": exact(score)});
        }
        println!("{fields}");
        return;
    }
    let file = args.out.display();
    println!("{file}: {bytes} bytes, {bits:.3} bits a weight, relative error {error:.3}");
    for (what, score) in named {
        let exact = exact(score).map_or(String::new(), |share| {
            format!(", {:.1} % exact", 100.0 * share)
        });
        println!(
            "  {what:8} {:.4} nats per token{exact}",
            score.nats_per_token
        );
    }
    if let Some(share) = share {
        println!("  share of the gain that is kept: {share:.3}");
    }
}
