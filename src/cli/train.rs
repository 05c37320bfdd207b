//! `choir train`: a tokenizer, a base, variants of it.

use crate::cli::place::DeviceName;
use crate::model::{DitConfig, Trainable};
use crate::train::course::Course;
use crate::train::data::{Document, TextSource, held_out_contexts, read_documents};
use crate::train::folder::{Folder, Precision, round_to_bf16};
use crate::train::objective::{Corruption, Objective};
use crate::train::optimizer::AdamW;
use crate::train::packing::SkillSource;
use crate::train::run::{TrainingEvent, TrainingRun, Validation, ValidationScore, open_gates};
use crate::train::settings::{Anchor, Budget, TrainSettings, TrainingSource};
use crate::train::skills::Skill;
use crate::train::{checkpoint, tokenizer};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use progress::Progress;
use std::path::{Path, PathBuf};

mod calibrate;
mod distill;
pub mod pack;
mod progress;
mod texts;
mod variant;

/// Make models: a tokenizer and a base from text, variants from a text or a skill.
#[derive(Args, Debug)]
pub struct TrainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Train a byte-level BPE tokenizer and write its tokenizer.json.
    Tokenizer(texts::TokenizerArgs),
    /// Train a base model from text.
    Base(BaseArgs),
    /// Fine-tune a base on a text or on a built-in skill.
    Variant(variant::VariantArgs),
    /// Make a few-step variant of a uniform one: discrete consistency distillation.
    Distill(distill::DistillArgs),
    /// Write the held-out parts (the last 5 %) of texts.
    HeldOut(texts::HeldOutArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Block diffusion (BD3-LM).
    Bd3lm,
    /// Masked diffusion over the whole context (MDLM).
    Mdlm,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Updates {
    /// AdamW for every weight.
    Adamw,
    /// Muon for the layers' matrices, AdamW for the rest: learns in fewer tokens.
    Muon,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Stored {
    F32,
    Bf16,
}

/// Options of every training run.
#[derive(Args, Debug)]
struct RunArgs {
    /// Output folder: config.json, model.safetensors, tokenizer.json, and the checkpoint while it trains.
    #[arg(long)]
    out: PathBuf,
    /// Stop after this many steps (the same seed and one thread then give the same result).
    #[arg(long, conflicts_with = "minutes")]
    steps: Option<u64>,
    /// Stop after this many minutes; the learning rate follows the clock.
    #[arg(long)]
    minutes: Option<f64>,
    /// Contexts per step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens per context [default: the model's context; 64 for a skill].
    #[arg(long)]
    length: Option<usize>,
    /// Peak learning rate.
    #[arg(long, default_value_t = 2e-3)]
    lr: f32,
    /// Steps over which the learning rate rises.
    #[arg(long, default_value_t = 50)]
    warm_up: u64,
    /// How the layers' matrices are updated.
    #[arg(long, value_enum, default_value = "adamw")]
    optimizer: Updates,
    /// Decoupled weight decay of the matrices: towards 0, for a variant towards the base.
    #[arg(long, default_value_t = 0.02)]
    weight_decay: f32,
    /// Decay of the averaged weights, which are what is written in the end.
    #[arg(long, default_value_t = 0.995)]
    ema: f32,
    /// Smallest share of masked or noisy tokens trained on (the clipped schedule) [default: 0.1, or the base's;
    /// 0.001 for the uniform process].
    #[arg(long)]
    mask_min: Option<f64>,
    /// Largest share of masked or noisy tokens trained on [default: 1, or the base's].
    #[arg(long)]
    mask_max: Option<f64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads to train with [default: all cores].
    #[arg(long)]
    threads: Option<usize>,
    /// Where the layers run: cpu, cuda, or cuda:N for the driver's device number N. Needs a build with --features cuda.
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// Go on from the checkpoint in the output folder, if there is one.
    #[arg(long)]
    resume: bool,
    /// How the weights are written.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Stored,
    /// How many times to validate on held-out text; the last time is at the end.
    #[arg(long, default_value_t = 4)]
    validations: u32,
    /// Seconds between two progress lines.
    #[arg(long, default_value_t = 10.0)]
    report_every: f64,
    /// Print one JSON object per event instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct BaseArgs {
    /// Text files, or folders of .txt files; their last 5 % are held out.
    #[arg(long, required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    /// The tokenizer.json to use (see `choir train tokenizer`).
    #[arg(long)]
    tokenizer: PathBuf,
    #[arg(long, value_enum, default_value = "bd3lm")]
    objective: Kind,
    /// Width of the network.
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    #[arg(long, default_value_t = 3)]
    layers: usize,
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Width of the conditioning vector.
    #[arg(long, default_value_t = 32)]
    cond: usize,
    /// Longest context, in tokens.
    #[arg(long, default_value_t = 256)]
    context: usize,
    /// Tokens denoised together (bd3lm).
    #[arg(long, default_value_t = 16)]
    block: usize,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs `choir train`.
pub fn run(args: TrainArgs) -> Result<()> {
    match args.what {
        What::Tokenizer(args) => texts::run_tokenizer(args),
        What::Base(args) => run_base(args),
        What::Variant(args) => variant::run(args),
        What::Distill(args) => distill::run(args),
        What::HeldOut(args) => texts::run_held_out(args),
    }
}

fn run_base(args: BaseArgs) -> Result<()> {
    args.run.prepare()?;
    let json = std::fs::read_to_string(&args.tokenizer)
        .with_context(|| args.tokenizer.display().to_string())?;
    let pieces = tokenizer::from_json(&json)?;
    let blockwise = matches!(args.objective, Kind::Bd3lm);
    let config = DitConfig {
        model_type: if blockwise { "bd3lm" } else { "mdlm" }.to_owned(),
        vocab_size: pieces.get_vocab_size(true) + 1,
        model_length: args.context,
        hidden_dim: args.hidden,
        cond_dim: args.cond,
        n_blocks: args.layers,
        n_heads: args.heads,
        block_size: Some(if blockwise { args.block } else { args.context }),
        cross_attn: blockwise,
        time_conditioning: Some(false),
        states: None,
    };
    config.check()?;
    let documents = read_documents(&args.text)?;
    let clip = args.run.clip((0.1, 1.0));
    let model = Trainable::random(config.clone(), args.run.seed)?;
    open_gates(&model)?;
    let folder = Folder {
        config,
        tensors: Default::default(),
        tokenizer: json,
        clip,
    };
    train(
        &args.run,
        folder,
        model,
        Subject::Text(documents),
        Course::Plain,
        None,
    )
}

enum Subject {
    Text(Vec<Document>),
    Skill(Skill),
}

impl Subject {
    /// What a model of this subject is measured on.
    fn validation(
        &self,
        objective: &Objective,
        pieces: &tokenizers::Tokenizer,
        context: usize,
    ) -> Result<Validation> {
        let masked = matches!(objective.corruption, Corruption::Mask(_));
        let draws = if masked { 2 } else { 4 };
        Ok(match self {
            Subject::Text(documents) => {
                let held_out: Vec<&str> = documents.iter().map(|d| d.held_out.as_str()).collect();
                let (contexts, bytes) =
                    held_out_contexts(&held_out, pieces, context, objective.unit(16), 48)?;
                Validation {
                    contexts,
                    bytes,
                    draws,
                    exact: false,
                }
            }
            Subject::Skill(skill) => {
                let contexts = SkillSource::new(*skill, pieces.clone())?
                    .held_out(200, objective.unit(context))?;
                Validation {
                    contexts,
                    bytes: 0,
                    draws,
                    exact: masked,
                }
            }
        })
    }
}

fn train(
    args: &RunArgs,
    mut folder: Folder,
    model: Trainable,
    subject: Subject,
    course: Course,
    base: Option<Anchor>,
) -> Result<()> {
    let objective = Objective::new(&folder.config, folder.clip)?;
    let pieces = tokenizer::from_json(&folder.tokenizer)?;
    let context = folder.config.model_length;
    let length = args.length.unwrap_or(match subject {
        Subject::Text(_) => context,
        Subject::Skill(_) => context.min(64),
    });
    let validation = subject.validation(&objective, &pieces, context)?;
    let source = match subject {
        Subject::Text(documents) => {
            TrainingSource::Text(TextSource::new(&documents, &pieces, length)?)
        }
        Subject::Skill(skill) => TrainingSource::Skill(Box::new(SkillSource::new(skill, pieces)?)),
    };
    let budget = match (args.steps, args.minutes) {
        (Some(steps), _) => Budget::Steps(steps),
        (None, Some(minutes)) => Budget::Seconds(minutes * 60.0),
        (None, None) => Budget::Steps(1000),
    };
    std::fs::create_dir_all(&args.out)?;
    let settings = TrainSettings {
        objective,
        course,
        budget,
        batch: args.batch,
        length,
        rate: args.lr,
        warm_up: args.warm_up,
        optimizer: AdamW {
            weight_decay: args.weight_decay,
            ema: args.ema,
            orthogonal: args.optimizer == Updates::Muon,
            ..AdamW::default()
        },
        base,
        seed: args.seed,
        checkpoint: Some(args.out.join(checkpoint::FILE)),
        save_every: 60.0,
        report_every: args.report_every,
        validate_every: 1.0 / f64::from(args.validations.max(1)),
        gpu: args.device.gpu()?,
    };
    let progress = Progress::new(args.json);
    let mut report = |news: TrainingEvent| progress.show(news);
    let (tensors, score) = TrainingRun::new(
        model,
        settings,
        source,
        Some(validation),
        args.resume,
        &mut report,
    )?
    .finish()?;
    progress.close();
    folder.tensors = tensors;
    let precision = match args.precision {
        Stored::F32 => Precision::F32,
        Stored::Bf16 => {
            round_to_bf16(&mut folder.tensors);
            Precision::Bf16
        }
    };
    folder.write(&args.out, precision)?;
    finish(&args.out, &folder, score, args.json);
    Ok(())
}

fn finish(out: &Path, folder: &Folder, score: Option<ValidationScore>, json: bool) {
    let parameters: usize = folder.tensors.values().map(|(_, data)| data.len()).sum();
    if json {
        let nats = score.map(|s| s.nats_per_token);
        println!(
            "{}",
            serde_json::json!({"event": "done", "out": out, "parameters": parameters, "nats_per_token": nats})
        );
    } else {
        println!("{}: {parameters} parameters", out.display());
    }
}

/// What is learned: a text or a built-in skill.
#[derive(Args, Debug)]
struct SubjectArgs {
    /// Text files or folders to train on; their last 5 % are held out.
    #[arg(long, num_args = 1.., required_unless_present = "skill", conflicts_with = "skill")]
    text: Vec<PathBuf>,
    /// A built-in skill: addition, reverse, roman or sort.
    #[arg(long)]
    skill: Option<Skill>,
}

impl SubjectArgs {
    fn read(&self) -> Result<Subject> {
        Ok(match self.skill {
            Some(skill) => Subject::Skill(skill),
            None => Subject::Text(read_documents(&self.text)?),
        })
    }
}

impl RunArgs {
    /// Refuses to write over a folder that the run reads.
    fn spare(&self, read: &Path) -> Result<()> {
        match (read.canonicalize(), self.out.canonicalize()) {
            (Ok(read), Ok(out)) if read == out => {
                bail!("--out: {} is read by this run", read.display())
            }
            _ => Ok(()),
        }
    }

    /// The clipped schedule, `default` where it is not given.
    fn clip(&self, default: (f64, f64)) -> (f64, f64) {
        (
            self.mask_min.unwrap_or(default.0),
            self.mask_max.unwrap_or(default.1),
        )
    }

    /// Sets the number of threads.
    fn prepare(&self) -> Result<()> {
        if let Some(threads) = self.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()
                .context("--threads")?;
        }
        Ok(())
    }
}
