//! `choir eval`: what keeping one's own fine-tunes in a store costs each of them, measured through the engine that serves them.

mod decoder;
pub mod measure;
mod own;
mod report;
pub mod roles;

pub use own::{MeasuredVariant, On};

use super::capacity::Capacity;
use super::fine_tune::FineTune;
use super::json::JsonArgs;
use super::place::PlaceArgs;
use super::scratch::ScratchStore;
use crate::catalog::{AddRequest, BaseSource, Catalog, CatalogConfig, CheckpointSource};
use crate::engine::{EngineHandle, Sampling, SamplingParams};
use crate::model::Place;
use crate::ops::quantized::Quantisation;
use crate::store::Keep;
use crate::superposition::{CodedDelta, Encoding, MatrixRole, NamedTensors, Plan, Sensitivities};
use crate::train::folder::{Folder, replace, replaceable};
use anyhow::{Context, Result, bail};
use clap::Args;
use measure::{engine, exact, lone, nats};
use own::Texts;
use report::{EvalReport, Reached, Reference};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Measure what keeping your own fine-tunes in a store costs each of them.
///
/// Every text is scored under the base, under the fine-tune alone, and under the fine-tune as a store of all these variants
/// serves it, once for every way to keep them. Of a decoder's fine-tunes the service itself measures what codes keep, on texts of at
/// most 64 KiB, and that is all.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Folder of the base: config.json, model.safetensors, tokenizer.json.
    #[arg(long)]
    base: PathBuf,
    /// A fine-tune of the base (a folder, a checkpoint's file or a delta's) and a text that nothing was trained on, or `skill:` and a
    /// built-in skill's name.
    #[arg(long = "variant", required = true, value_name = "NAME=CHECKPOINT=TEXT")]
    variants: Vec<MeasuredVariant>,
    /// Ways to keep them.
    #[arg(long, value_delimiter = ',', default_value = "coded,superposed")]
    keep: Vec<Keep>,
    /// Bits of coded variants for each weight, everything counted; each by codes alone and with thin factors.
    #[arg(long, value_delimiter = ',', default_values_t = [Plan::BITS])]
    bits: Vec<f64>,
    /// A coded file of one of the variants. Where each has one they are measured as they are, too.
    #[arg(long, value_name = "NAME=FILE", value_parser = file_of)]
    coded: Vec<(String, PathBuf)>,
    /// Variants to a bank (or body's/head's, as in 4/1), one store after the other.
    #[arg(long, value_delimiter = ',', default_value = "4/1,2,1")]
    capacities: Vec<Capacity>,
    /// Forms that banks are served in, each with every capacity: q2k, q4k, q4_0, q8_0, bf16, f32.
    #[arg(long, value_delimiter = ',', default_value = "q2k")]
    forms: Vec<Quantisation>,
    /// Contexts of each text.
    #[arg(long, default_value_t = 16)]
    contexts: usize,
    /// Held-out prompts of each skill.
    #[arg(long, default_value_t = 200)]
    prompts: usize,
    /// Noise levels drawn for every block.
    #[arg(long, default_value_t = 4)]
    samples: usize,
    /// What noise costs by role of matrices, as --by-role writes it [default: as measured on the base compiled in].
    #[arg(long, value_name = "FILE")]
    sensitivities: Option<PathBuf>,
    /// Measure what noise in one role of matrices costs, role after role, and write it to this file, for --sensitivities. A DiT's alone.
    #[arg(long, value_name = "FILE")]
    by_role: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// One way to keep all variants.
#[derive(Clone, Copy)]
enum Way {
    Files,
    Coded {
        bits: f64,
        low_rank: bool,
    },
    Superposed {
        capacity: Capacity,
        form: Quantisation,
    },
    /// All matrices in four bits but those of one role.
    Noise(Option<MatrixRole>),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Way::Files => f.write_str("files as they are"),
            Way::Coded { bits, low_rank } => {
                let thin = if *low_rank { "and thin factors " } else { "" };
                write!(f, "codes {thin}{bits}")
            }
            Way::Superposed { capacity, form } => write!(f, "superposed {capacity} {form}"),
            Way::Noise(None) => f.write_str("codes, 4 bits throughout"),
            Way::Noise(Some(role)) => write!(f, "the same, {role} in {}", roles::NOISY),
        }
    }
}

/// One fine-tune, what it is measured on and how it is sampled.
struct Subject<'a> {
    own: &'a MeasuredVariant,
    tuned: FineTune,
    texts: Texts,
    exact: bool,
}

/// A base, and what its variants are measured on.
struct Subjects<'a> {
    source: BaseSource,
    base: Folder,
    variants: Vec<Subject<'a>>,
    /// Coded files by name.
    files: BTreeMap<String, PathBuf>,
    place: Place,
    samples: usize,
    sensitivities: Sensitivities,
}

pub fn run(args: EvalArgs) -> Result<()> {
    for (option, value) in [
        ("--contexts", args.contexts),
        ("--prompts", args.prompts),
        ("--samples", args.samples),
    ] {
        if !(1..=100_000).contains(&value) {
            bail!("{option}: {value} is not within 1 and 100000");
        }
    }
    args.json.check()?;
    if let Some(file) = &args.by_role {
        replaceable(file).context("--by-role")?;
    }
    let sensitivities = roles::read(args.sensitivities.as_deref())?;
    let source = BaseSource::Folder(args.base.clone());
    let network = source.architecture()?;
    if network.conditioning.is_none() {
        return decoder::run(&args, source, &network);
    }
    let base = Folder::read(&args.base)?;
    let effort = (args.contexts, args.prompts);
    let subject = |own| -> Result<Subject> {
        let own: &MeasuredVariant = own;
        let tuned = FineTune::read(&own.file(), &base)?;
        let (texts, exact) = own.texts(&source, &tuned, effort)?;
        Ok(Subject {
            own,
            tuned,
            texts,
            exact,
        })
    };
    let variants = args.variants.iter().map(subject).collect::<Result<_>>()?;
    let subjects = Subjects {
        variants,
        place: args.place.open(|| Ok(Quantisation::F32))?,
        source,
        base,
        files: args.coded.into_iter().collect(),
        samples: args.samples,
        sensitivities,
    };
    let has_file = |subject: &Subject| subjects.files.contains_key(&subject.own.name);
    let files = subjects.variants.iter().all(has_file);
    let mut report = EvalReport {
        variants: subjects.references()?,
        ..EvalReport::default()
    };
    if files {
        subjects.measure(Way::Files, &mut report)?;
    }
    if args.keep.contains(&Keep::Coded) {
        for &bits in &args.bits {
            let first = report.kept.len();
            for low_rank in [false, true] {
                subjects.measure(Way::Coded { bits, low_rank }, &mut report)?;
            }
            report.add_better(format!("the better for each {bits}"), [first, first + 1]);
        }
    }
    if args.keep.contains(&Keep::Superposed) {
        for &capacity in &args.capacities {
            for &form in &args.forms {
                subjects.measure(Way::Superposed { capacity, form }, &mut report)?;
            }
        }
    }
    if let Some(file) = &args.by_role {
        let found = subjects.by_role(&mut report)?;
        replace(file, format!("{:#}\n", serde_json::json!(found)).as_bytes())?;
        report.sensitivities = Some(found);
    }
    args.json.report(&report, || print!("{report}"))
}

/// `NAME=FILE`.
fn file_of(text: &str) -> Result<(String, PathBuf), String> {
    let parts = text.split_once('=');
    let (name, file) = parts.ok_or("it is NAME=FILE, as in letters=letters.safetensors")?;
    Ok((name.to_owned(), file.into()))
}

/// What a store takes in memory.
fn bytes(catalog: &Catalog) -> u64 {
    catalog.status().memory.iter().map(|part| part.bytes).sum()
}

impl Subjects<'_> {
    /// What base and fine-tunes make of what each variant is measured on, unrounded where that is on the CPU.
    fn references(&self) -> Result<Vec<Reference>> {
        let place = match &self.place {
            Place::Host(_) => Place::Host(Quantisation::F32),
            device => device.clone(),
        };
        let tokenizer = Arc::new(self.source.tokenizer()?);
        let of = |subject: &Subject| -> Result<Reference> {
            let config = &subject.tuned.folder.config;
            let sampling = subject.tuned.sampling();
            let alone = |weights| {
                let engine = lone(&place, config, weights, tokenizer.clone())?;
                self.reached(&engine, &[], &sampling, subject)
            };
            let scored = subject.texts.iter().map(|(text, given)| text.len() - given);
            Ok(Reference {
                name: subject.own.name.clone(),
                tokens: scored.sum(),
                base: alone(&self.base.tensors)?,
                fine_tuned: alone(&subject.tuned.folder.tensors)?,
            })
        };
        self.variants.iter().map(of).collect()
    }

    fn reached(
        &self,
        engine: &EngineHandle,
        mix: &[(String, f32)],
        sampling: &Sampling,
        subject: &Subject,
    ) -> Result<Reached> {
        let right = match subject.exact {
            true => Some(exact(engine, mix, sampling, &subject.texts)?),
            false => None,
        };
        Ok(Reached {
            nats_per_token: nats(engine, mix, &subject.texts, self.samples)?,
            right,
        })
    }

    /// Keeps all variants in one way, in a store made for the purpose, and asks the service of it.
    fn measure(&self, way: Way, report: &mut EvalReport) -> Result<()> {
        let scratch = ScratchStore::new("eval");
        let network = self.base.config.architecture()?;
        let (keep, capacity, form) = match way {
            Way::Files | Way::Coded { .. } | Way::Noise(_) => {
                (Keep::Coded, None, Quantisation::Q2K)
            }
            Way::Superposed { capacity, form } => (Keep::Superposed, Some(capacity), form),
        };
        let usual = CatalogConfig::new(scratch.path(), self.source.clone());
        let config = CatalogConfig {
            bank_capacity: capacity.map(|capacity| capacity.body),
            head_capacity: capacity.map(|capacity| capacity.head),
            place: self.place.clone(),
            bank_form: form,
            archive: false,
            keep: Some(keep),
            ..usual
        };
        let (catalog, generation) = Catalog::open(config, |_| {}).context("opening the store")?;
        let before = bytes(&catalog);
        let engine = engine(generation)?;
        catalog.attach(engine.clone());
        for subject in &self.variants {
            let source = match way {
                Way::Files => CheckpointSource::Path(self.files[&subject.own.name].clone()),
                Way::Coded { bits, low_rank } => CheckpointSource::Bytes(self.coded(
                    subject,
                    Plan {
                        low_rank,
                        ..Plan::by(bits, network.roles(), &self.sensitivities)
                    },
                )?),
                Way::Noise(role) => {
                    CheckpointSource::Bytes(self.coded(subject, roles::plan(&network, role))?)
                }
                Way::Superposed { .. } => CheckpointSource::Path(subject.own.file()),
            };
            catalog.add(AddRequest::new(subject.own.name.clone(), source), |_| {})?;
        }
        let bytes = bytes(&catalog) - before;
        let reached = |subject: &Subject| {
            let mix = [(subject.own.name.clone(), 1.0)];
            self.reached(&engine, &mix, &subject.tuned.sampling(), subject)
        };
        let reached: Result<Vec<_>> = self.variants.iter().map(reached).collect();
        let matrices = self
            .base
            .tensors
            .values()
            .filter(|(shape, _)| shape.len() == 2);
        let weights: usize = matrices.map(|(_, values)| values.len()).sum();
        let bits = 8.0 * bytes as f64 / (weights * self.variants.len()) as f64;
        report.add(way.to_string(), (bytes, bits), reached?);
        Ok(())
    }

    /// A fine-tune's coded file.
    fn coded(&self, subject: &Subject, plan: Plan) -> Result<Vec<u8>> {
        let encoding = Encoding {
            plan,
            seed: None,
            remarks: subject.tuned.remarks(&SamplingParams::default())?,
        };
        let base: NamedTensors = self.base.tensors.clone().into_iter().collect();
        let coded = CodedDelta::between(&base, &subject.tuned.tensors(), &encoding)?;
        Ok(coded.to_bytes())
    }
}
