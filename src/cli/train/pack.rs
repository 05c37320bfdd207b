//! `choir pack`: a variant as a small file, a coded delta, and what the coding costs it.

use super::Subject;
use super::calibrate::CalibrationArgs;
use crate::catalog::defaults::{process_to_store, to_store, usual};
use crate::catalog::{AddRequest, BaseSource, Catalog, CatalogConfig, CheckpointSource};
use crate::checkpoint::{self, Checkpoint};
use crate::cli::eval::roles;
use crate::cli::fine_tune::{FineTune, add};
use crate::cli::memory;
use crate::cli::sampling::SamplingArgs;
use crate::cli::scratch::ScratchStore;
use crate::engine::check_sampling;
use crate::model::architecture::published::Published;
use crate::model::tokenizer::GenerationConfig;
use crate::model::{Architecture, Place, Trainable};
use crate::server::choir::convert;
use crate::store::Keep;
use crate::superposition::{
    CodedDelta, Digest, Encoding, Measured, NamedTensors, Plan, Remarks, Sensitivities,
};
use crate::train::data::Document;
use crate::train::folder::{Folder, Tensors, replace, replaceable};
use crate::train::objective::Objective;
use crate::train::run::ValidationScore;
use crate::train::skills::Skill;
use crate::train::tokenizer;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::cmp::Ordering;
use std::path::PathBuf;

/// Nats per token that a fine-tune must have gained before a share of it means anything.
const LEAST_GAIN: f64 = 1e-3;

/// Pack a variant into a small file: its delta in about a bit a weight, which `choir variants add` takes as it is.
#[derive(Args, Debug)]
pub struct PackArgs {
    /// The base's folder, as it will be served.
    #[arg(long)]
    base: PathBuf,
    /// The variant's folder, or a file with its delta, packed or archived.
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
    /// Measure on this held-out text how much of the fine-tune's gain is kept, and say so in the file. Of a decoder at most 64 KiB of
    /// text, and with codes alone.
    #[arg(long, value_name = "FILE", group = "measured")]
    check_text: Option<PathBuf>,
    /// Use no thin factors beside codes, also where they would keep more: in memory they take more than in the file.
    #[arg(long)]
    codes_alone: bool,
    /// Measure base, variant and packed variant on held-out prompts of a skill.
    #[arg(long, group = "measured")]
    skill: Option<Skill>,
    /// What noise costs by role of matrices, as `choir eval --by-role` writes it, to divide the bits by [default: as measured on the base
    /// compiled in].
    #[arg(long, value_name = "FILE")]
    sensitivities: Option<PathBuf>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Print a JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Sampling defaults to go with the variant, over those usual for its process.
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// What was measured: base, variant, packed variant.
type Scores = [ValidationScore; 3];

/// Runs `choir pack`.
pub fn run(args: PackArgs) -> Result<()> {
    memory::keep();
    replaceable(&args.out).context("--out")?;
    let text = match &args.check_text {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            if text.trim().is_empty() {
                bail!("--check-text: {} is empty", file.display());
            }
            Some(text)
        }
        None => None,
    };
    let sensitivities = roles::read(args.sensitivities.as_deref())?;
    let network = BaseSource::Folder(args.base.clone()).architecture()?;
    if network.conditioning.is_none() {
        if args.skill.is_some() {
            bail!("--skill: the built-in skills are a DiT's");
        }
        if args.calibration.is_asked() {
            bail!("--calibrate: a decoder is not trained here");
        }
        if !args.variant.is_dir() {
            bail!(
                "--variant: {} is no folder, which a decoder's is",
                args.variant.display()
            );
        }
        return match text {
            Some(_) if args.sensitivities.is_some() => {
                bail!("--sensitivities: a decoder is measured as the service would keep it")
            }
            Some(text) => by_service(&args, &network, text),
            None => unmeasured(&args, &network, &sensitivities),
        };
    }
    if text.is_none() && args.skill.is_none() && args.variant.is_dir() {
        return unmeasured(&args, &network, &sensitivities);
    }
    let base = Folder::read(&args.base)?;
    if args.variant.is_file() && CodedDelta::is_one(&std::fs::read(&args.variant)?) {
        bail!("{}: it is a coded delta already", args.variant.display());
    }
    let variant = FineTune::read(&args.variant, &base)?;
    let lessons = args.calibration.lessons(&variant.folder)?;
    let remarks = variant.remarks(&convert::choice(args.sampling.wire())?)?;
    let base: NamedTensors = base.tensors.into_iter().collect();
    let (tuned, variant) = (variant.tensors(), variant.folder);
    let code = |low_rank| {
        let plan = Plan {
            low_rank,
            ..Plan::by(args.bits, network.roles(), &sensitivities)
        };
        let encoding = Encoding {
            plan,
            seed: args.seed,
            remarks: remarks.clone(),
        };
        CodedDelta::between(&base, &tuned, &encoding)
    };
    let mut coded = code(false)?;
    let subject = match (args.skill, text) {
        (Some(skill), _) => Some(Subject::Skill(skill)),
        (None, Some(held_out)) => Some(Subject::Text(vec![Document {
            name: String::new(),
            training: String::new(),
            held_out,
        }])),
        (None, None) => None,
    };
    let mut scores = None;
    if let Some(subject) = &subject {
        let reached = |delta: &CodedDelta| scored(&variant, &with(&base, delta), subject);
        let mut kept = reached(&coded)?;
        // Whether thin factors pay only a measurement tells.
        if !args.codes_alone {
            let other = code(true)?;
            let found = reached(&other)?;
            let right = |score: &ValidationScore| score.exact.map_or(0, |(right, _)| right);
            let better = match right(&found).cmp(&right(&kept)) {
                Ordering::Equal => found.nats_per_token < kept.nats_per_token,
                more => more.is_gt(),
            };
            if better {
                (coded, kept) = (other, found);
            }
        }
        let calibrated = lessons.is_some();
        if let Some(lessons) = lessons {
            args.calibration
                .run(lessons, &mut coded, &base, &variant, args.json)?;
            kept = reached(&coded)?;
        }
        let base = scored(&variant, &base.clone().into_parts(), subject)?;
        let tuned = scored(&variant, &variant.tensors, subject)?;
        let mut found = measured(subject, [&base, &tuned, &kept])?;
        if calibrated {
            found.method += &format!("; calibrated in {} steps", args.calibration.steps());
        }
        coded.about.measured = Some(found);
        scores = Some([base, tuned, kept]);
    }
    let packed = coded.to_bytes();
    replace(&args.out, &packed)?;
    let bytes = (packed.len(), network.weights());
    show(&args, &coded, bytes, scores.as_ref());
    Ok(())
}

/// Packs a published checkpoint, of any network and in shards or not, without measuring it: one tensor in memory at a time.
fn unmeasured(
    args: &PackArgs,
    network: &Architecture,
    sensitivities: &Sensitivities,
) -> Result<()> {
    let named = || args.variant.display().to_string();
    let config = std::fs::read(args.variant.join("config.json")).with_context(named)?;
    let regime = Architecture::read(&config).with_context(named)?.regime;
    let tuned = Checkpoint::open(&args.variant).with_context(named)?;
    let tuned = Published::new(network, tuned).with_context(named)?;
    // What is recorded is how it differs from its base.
    let facts = network.facts();
    let said = std::fs::read(args.variant.join("generation_config.json")).ok();
    let said = said
        .map(|text| GenerationConfig::parse(&text))
        .transpose()?;
    let chosen = convert::choice(args.sampling.wire())?;
    let sampling = chosen.over(usual(&facts, regime, said.as_ref()))?;
    check_sampling(&facts, regime, &sampling)?;
    let defaults = to_store(&sampling, regime, &facts);
    let encoding = Encoding {
        plan: Plan::by(args.bits, network.roles(), sensitivities),
        seed: args.seed,
        remarks: Remarks {
            process: Some(serde_json::to_string(&process_to_store(regime.process))?),
            defaults: Some(serde_json::to_string(&defaults)?),
        },
    };
    let base = BaseSource::Folder(args.base.clone());
    let coded = CodedDelta::between(&base.published()?, &tuned, &encoding)?;
    written(args, network, &coded)
}

/// Packs a published checkpoint as the service does that adds it, which measures it, too: in a store that is thrown away. The whole delta
/// is in memory for that.
fn by_service(args: &PackArgs, network: &Architecture, text: String) -> Result<()> {
    let form = network.usual_form(checkpoint::available());
    let scratch = ScratchStore::new("pack");
    let config = CatalogConfig {
        place: Place::Host(form),
        keep: Some(Keep::Coded),
        ..CatalogConfig::new(scratch.path(), BaseSource::Folder(args.base.clone()))
    };
    let (catalog, _) = Catalog::open(config, |_| {})?;
    let request = AddRequest {
        seed: args.seed,
        bits: Some(args.bits as f32),
        defaults: convert::choice(args.sampling.wire())?,
        check_text: Some(text),
        force: true,
        ..AddRequest::new("packed", CheckpointSource::Path(args.variant.clone()))
    };
    let share = catalog.add(request, |_| {})?.variant.share;
    let coded = catalog.coded("packed")?;
    let mut coded = coded.context("the service keeps it otherwise")?;
    coded.about.measured = share.map(|found| Measured {
        share: found.share.into(),
        method: format!("{}; base in {form}", found.method),
        text: found.text,
    });
    written(args, network, &coded)
}

/// Writes the file, and says what it is.
fn written(args: &PackArgs, network: &Architecture, coded: &CodedDelta) -> Result<()> {
    let packed = coded.to_bytes();
    replace(&args.out, &packed)?;
    show(args, coded, (packed.len(), network.weights()), None);
    Ok(())
}

/// The base with what is kept of a delta.
fn with(base: &NamedTensors, delta: &CodedDelta) -> Tensors {
    let mut tensors = base.clone().into_parts();
    add(&mut tensors, |name| delta.dense(name));
    tensors
}

/// What weights reach, always with the same noise. A uniform variant's own objective says nothing of its absorbing base, but
/// much of the packing.
fn scored(variant: &Folder, tensors: &Tensors, subject: &Subject) -> Result<ValidationScore> {
    let model = Trainable::from_tensors(variant.config.clone(), tensors)?;
    let objective = Objective::new(&variant.config, variant.clip)?;
    let pieces = tokenizer::from_json(&variant.tokenizer)?;
    let validation = subject.validation(&objective, &pieces, variant.config.model_length)?;
    Ok(validation.score(&model, &objective, 0)?)
}

/// What the file says of its share.
fn measured(subject: &Subject, [base, tuned, kept]: [&ValidationScore; 3]) -> Result<Measured> {
    let [base_nats, tuned_nats, kept_nats] = [base, tuned, kept].map(|score| score.nats_per_token);
    let gain = base_nats - tuned_nats;
    if gain.is_nan() || gain < LEAST_GAIN {
        bail!(
            "the variant gains {gain:.4} nats per token on what it is measured on, too little to measure a share of"
        );
    }
    let (on, text) = match subject {
        Subject::Text(texts) => {
            let text: String = texts.iter().map(|text| &text.held_out[..]).collect();
            ("a held-out text".to_owned(), Digest::of(text.as_bytes()))
        }
        Subject::Skill(skill) => {
            let exact = |score: &ValidationScore| score.exact.map_or(0, |(right, _)| right);
            let (right, of) = (exact(kept), exact(tuned));
            let on = format!(
                "held-out prompts of {}, {right} right where the fine-tune has {of}",
                skill.name()
            );
            (on, Digest::of(skill.name().as_bytes()))
        }
    };
    Ok(Measured {
        share: (base_nats - kept_nats) / gain,
        method: format!("NELBO of {on}; the fine-tune gains {gain:.3} nats per token"),
        text,
    })
}

fn show(
    args: &PackArgs,
    coded: &CodedDelta,
    (bytes, weights): (usize, usize),
    scores: Option<&Scores>,
) {
    let (bits, error) = (coded.bits(weights), coded.about.error);
    let share = coded.about.measured.as_ref().map(|measured| measured.share);
    let exact = |score: &ValidationScore| {
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
