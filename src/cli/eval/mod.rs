//! `choir eval`: what keeping one's own fine-tunes in a store costs each of them, measured through the engine that serves them.

pub mod measure;

use super::capacity::Capacity;
use super::json::JsonArgs;
use super::place::PlaceArgs;
use super::scratch::Scratch;
use crate::catalog::{AddRequest, BaseSource, Catalog, CatalogConfig, Source};
use crate::model::{DitConfig, Place, Regime};
use crate::ops::quantized::Quantisation;
use crate::superposition::{Delta, NamedTensors, read_file};
use crate::train::data::held_out_contexts;
use crate::train::folder::Tensors;
use crate::train::tokenizer;
use anyhow::{Context, Result, bail};
use clap::Args;
use measure::{engine, lone, mean, nats, recovered};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Measure what keeping your own fine-tunes in a store costs each of them.
///
/// Every text is scored under the base, under the fine-tune alone, and under the fine-tune as a store of all these variants
/// serves it, once for every way to keep them.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Folder of the base: config.json, model.safetensors, tokenizer.json.
    #[arg(long)]
    base: PathBuf,
    /// A fine-tune of the base (a folder or a safetensors file) and a text that nothing was trained on.
    #[arg(long = "variant", required = true, value_name = "NAME=CHECKPOINT=TEXT")]
    variants: Vec<Own>,
    /// Variants to a bank (or body's/head's, as in 4/1), one store after the other.
    #[arg(long, value_delimiter = ',', default_value = "4/1,2,1")]
    capacities: Vec<Capacity>,
    /// Forms that banks are served in, each with every capacity: q2k, q4k, q4_0, q8_0, bf16, f32.
    #[arg(long, value_delimiter = ',', default_value = "q2k")]
    forms: Vec<Quantisation>,
    /// Contexts of each text.
    #[arg(long, default_value_t = 16)]
    contexts: usize,
    /// Noise levels drawn for every block.
    #[arg(long, default_value_t = 4)]
    samples: usize,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// `NAME=CHECKPOINT=TEXT`.
#[derive(Clone, Debug)]
pub struct Own {
    pub name: String,
    checkpoint: PathBuf,
    pub text: PathBuf,
}

impl FromStr for Own {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.splitn(3, '=').collect::<Vec<_>>()[..] {
            [name, checkpoint, text] => Ok(Own {
                name: name.to_owned(),
                checkpoint: checkpoint.into(),
                text: text.into(),
            }),
            _ => Err(
                "it is NAME=CHECKPOINT=TEXT, as in letters=letters/model.safetensors=letters.txt"
                    .to_owned(),
            ),
        }
    }
}

impl Own {
    /// The file with its weights.
    pub fn file(&self) -> PathBuf {
        match self.checkpoint.is_dir() {
            true => self.checkpoint.join("model.safetensors"),
            false => self.checkpoint.clone(),
        }
    }
}

/// One variant by itself; NELBOs in nats per token.
#[derive(Debug, Serialize)]
struct Reference {
    name: String,
    tokens: usize,
    base: f64,
    fine_tuned: f64,
}

/// One way to keep all variants.
#[derive(Debug, Serialize)]
struct MeasuredWay {
    capacity: Capacity,
    form: String,
    /// What all variants take in memory, and that in bits for each parameter of a matrix of each variant.
    bytes: u64,
    bits: f64,
    /// By variant: nats per token, and the share of the fine-tune's gain that is left.
    nats_per_token: Vec<f64>,
    shares: Vec<Option<f64>>,
    mean: Option<f64>,
    worst: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    variants: Vec<Reference>,
    kept: Vec<MeasuredWay>,
}

/// A base, and what its variants are measured on.
struct Subjects {
    source: BaseSource,
    config: DitConfig,
    tensors: NamedTensors,
    place: Place,
}

/// Tokens, and how many of them are given.
type Texts = Vec<(Vec<u32>, usize)>;

pub fn run(args: EvalArgs) -> Result<()> {
    for (option, value) in [("--contexts", args.contexts), ("--samples", args.samples)] {
        if !(1..=100_000).contains(&value) {
            bail!("{option}: {value} is not within 1 and 100000");
        }
    }
    args.json.check()?;
    let source = BaseSource::Folder(args.base.clone());
    let subjects = Subjects {
        config: serde_json::from_slice(&source.config_json()?)
            .context("config.json of a DiT, the networks that are measured here")?,
        tensors: source.tensors()?,
        place: args.place.open(|| Ok(Quantisation::F32))?,
        source,
    };
    let mut report = Report {
        variants: Vec::new(),
        kept: Vec::new(),
    };
    let mut texts: Vec<Texts> = Vec::new();
    for &capacity in &args.capacities {
        for &form in &args.forms {
            let scratch = Scratch::new("eval");
            let (catalog, generation) = subjects.store(&scratch, capacity, form)?;
            let before = bytes(&catalog);
            let engine = engine(generation)?;
            catalog.attach(engine.clone());
            for own in &args.variants {
                let request = AddRequest::new(own.name.clone(), Source::Path(own.file()));
                catalog.add(request, |_| {})?;
            }
            let bytes = bytes(&catalog) - before;
            if report.variants.is_empty() {
                for own in &args.variants {
                    let regime = catalog.get(&own.name)?.regime;
                    let (text, reference) = subjects.reference(&args, own, regime)?;
                    texts.push(text);
                    report.variants.push(reference);
                }
            }
            let of = |(own, text): (&Own, &Texts)| {
                nats(&engine, &[(own.name.clone(), 1.0)], text, args.samples)
            };
            let found = args.variants.iter().zip(&texts).map(of);
            let found = found.collect::<Result<Vec<f64>>>()?;
            let parameters = subjects.parameters() * args.variants.len();
            let bits = 8.0 * bytes as f64 / parameters as f64;
            report.add(capacity, form, bytes, bits, found);
        }
    }
    args.json.report(&report, || print!("{report}"))
}

/// What a store takes in memory.
fn bytes(catalog: &Catalog) -> u64 {
    catalog.status().memory.iter().map(|part| part.bytes).sum()
}

impl Subjects {
    fn store(
        &self,
        scratch: &Scratch,
        capacity: Capacity,
        form: Quantisation,
    ) -> Result<(Catalog, crate::engine::Generation)> {
        let config = CatalogConfig {
            bank_capacity: Some(capacity.body),
            head_capacity: Some(capacity.head),
            place: self.place.clone(),
            bank_form: form,
            archive: false,
            ..CatalogConfig::new(scratch.path(), self.source.clone())
        };
        Catalog::open(config, |_| {}).context("opening the store")
    }

    /// Of all matrices.
    fn parameters(&self) -> usize {
        let matrices = self.tensors.0.values().filter(|t| t.matrix().is_some());
        matrices.map(|tensor| tensor.data.len()).sum()
    }

    /// The text of a variant tuned for `regime`, and what base and fine-tune make of it, both unrounded on the CPU.
    fn reference(&self, args: &EvalArgs, own: &Own, regime: Regime) -> Result<(Texts, Reference)> {
        let config = self.config.tuned(regime);
        let read = std::fs::read_to_string(&own.text);
        let text = read.with_context(|| own.text.display().to_string())?;
        let pieces = tokenizer::from_json(&self.source.tokenizer_json()?)?;
        let block = regime.block.unwrap_or(16);
        let (contexts, _) =
            held_out_contexts(&[&text], &pieces, config.model_length, block, args.contexts)
                .with_context(|| own.text.display().to_string())?;
        let texts: Texts = (contexts.tokens.chunks(contexts.length))
            .map(|context| (context.to_vec(), 1))
            .collect();
        let exact = match &self.place {
            Place::Host(_) => Place::Host(Quantisation::F32),
            device => device.clone(),
        };
        let tokenizer = Arc::new(self.source.tokenizer()?);
        let alone = |weights: &Tensors| {
            let engine = lone(&exact, &config, weights, tokenizer.clone())?;
            nats(&engine, &[], &texts, args.samples)
        };
        let mut weights = self.tensors.clone().into_parts();
        let base = alone(&weights)?;
        let delta = Delta::read(&self.tensors, &read_file(&own.file())?)?;
        for (name, (_, weights)) in &mut weights {
            let delta = delta.dense(name).unwrap_or_default();
            weights.iter_mut().zip(delta).for_each(|(w, d)| *w += d);
        }
        let reference = Reference {
            name: own.name.clone(),
            tokens: contexts.count * (contexts.length - 1),
            base,
            fine_tuned: alone(&weights)?,
        };
        Ok((texts, reference))
    }
}

impl Report {
    /// Adds a way to keep all variants, by what it reaches.
    fn add(
        &mut self,
        capacity: Capacity,
        form: Quantisation,
        bytes: u64,
        bits: f64,
        nats: Vec<f64>,
    ) {
        let each = self.variants.iter().zip(&nats);
        let shares = each.map(|(of, &kept)| recovered(of.base, of.fine_tuned, kept));
        let shares: Vec<Option<f64>> = shares.collect();
        let known = || shares.iter().flatten().copied();
        self.kept.push(MeasuredWay {
            capacity,
            form: form.to_string(),
            bytes,
            bits,
            mean: mean(known()),
            worst: known().min_by(f64::total_cmp),
            nats_per_token: nats,
            shares,
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{s:.3}"));
        for Reference {
            name,
            tokens,
            base,
            fine_tuned,
        } in &self.variants
        {
            writeln!(
                f,
                "{name}: {base:.4} nats per token under the base, {fine_tuned:.4} tuned ({tokens} tokens)"
            )?;
        }
        writeln!(
            f,
            "\nshare of that gain which is left, by variants to a bank (body/head) and form:"
        )?;
        for kept in &self.kept {
            let (mib, mean) = (kept.bytes as f64 / f64::from(1 << 20), number(kept.mean));
            let (worst, bits) = (number(kept.worst), kept.bits);
            let shares = self.variants.iter().zip(&kept.shares);
            let each = shares.map(|(of, share)| format!("{} {}", of.name, number(*share)));
            writeln!(
                f,
                "{:10} {bits:5.2} bits a parameter, {mib:.2} MiB: mean {mean}, worst {worst} ({})",
                format!("{} {}", kept.capacity, kept.form),
                each.collect::<Vec<_>>().join(", ")
            )?;
        }
        Ok(())
    }
}
