//! `choir-lab eval`: what superposition costs each variant, in nats and in right answers, and what it saves in bits.

use crate::picture;
use anyhow::{Result, bail};
use choir::cli::capacity::Capacity;
use choir::cli::eval::MeasuredVariant;
use choir::cli::json::JsonArgs;
use choir::cli::place::PlaceArgs;
use choir::ops::quantized::Quantisation;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use evaluate::evaluate;
use progress::Progress;
use samplers::SamplersArgs;
use std::path::PathBuf;
use subjects::{Effort, Subjects};
use table::Tables;
use tensors::Group;
use trial::{Comparison, TrialPlan};

mod alone;
mod arrangement;
mod engines;
mod evaluate;
mod judge;
mod plot;
mod progress;
pub mod references;
mod samplers;
mod served;
mod share;
mod subjects;
mod table;
mod tensors;
#[cfg(test)]
mod tests;
mod trial;
mod tuning;

/// Measure what ways to keep variants cost those compiled in, or your own, and what they save.
///
/// Every variant's held-out text or prompts are scored under the base, under the fine-tune alone and under the variant
/// as read back from banks of several capacities in several forms. --device and --base-form are for what goes through the service
/// itself: the scheme "served", and --samplers.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Folder of a base, to measure fine-tunes of it instead of those compiled in.
    #[arg(long, requires = "own", conflicts_with_all = ["variants", "samplers"])]
    base: Option<PathBuf>,
    /// A fine-tune of --base and a text that nothing was trained on.
    #[arg(
        long = "variant",
        id = "own",
        requires = "base",
        value_name = "NAME=CHECKPOINT=TEXT"
    )]
    own: Vec<MeasuredVariant>,
    /// Variants to keep in the banks and to measure [default: those whose fine-tune is at hand; with --samplers all].
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
    /// Variants to a bank (or body's/head's, as in 4/1), besides the store's own capacities.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,4/1,4/2,5,10")]
    capacities: Vec<Capacity>,
    /// Forms that banks are served in: f32, bf16, q8_0, q4_0, q4k, q2k. The last is the default's and the comparisons'.
    #[arg(long, value_delimiter = ',', default_value = "f32,q8_0,q4k,q2k")]
    forms: Vec<Quantisation>,
    /// The form of the output head's banks [default: as --forms, and with the last of these as a store serves them].
    #[arg(long)]
    head_form: Option<Quantisation>,
    /// What to compare with [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    schemes: Vec<Named>,
    /// Contexts of held-out text a variant.
    #[arg(long, default_value_t = 16)]
    contexts: usize,
    /// Masked copies of every block.
    #[arg(long, default_value_t = 2)]
    draws: usize,
    /// Held-out prompts a skill.
    #[arg(long, default_value_t = 200)]
    prompts: usize,
    /// Also show which tensors cost most: the default, with one group of them exact.
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    json: JsonArgs,
    /// Also draw recovered share against bits (with --samplers, cross-entropy against evaluations) into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    samplers: SamplersArgs,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What `--schemes` takes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Named {
    Nothing,
    One(Comparison),
    Served,
}

impl ValueEnum for Named {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Named::Nothing,
            Named::One(Comparison::PlainSum),
            Named::One(Comparison::Randes),
            Named::One(Comparison::BothSigns),
            Named::One(Comparison::Bitdelta),
            Named::One(Comparison::BitdeltaRow),
            Named::One(Comparison::LowRank),
            Named::One(Comparison::MixedRank),
            Named::One(Comparison::Codes),
            Named::One(Comparison::CodesAndFactors),
            Named::Served,
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        let named = |name, help| Some(PossibleValue::new(name).help(help));
        match self {
            Named::Nothing => named("none", "Nothing"),
            Named::One(comparison) => comparison.to_possible_value(),
            Named::Served => named(
                "served",
                "The store's default through the service itself, by the engine's own score",
            ),
        }
    }
}

/// Runs `choir-lab eval`.
pub fn run(args: EvalArgs) -> Result<()> {
    args.check()?;
    if args.samplers.samplers {
        return run_samplers(&args);
    }
    let effort = Effort {
        contexts: args.contexts,
        draws: args.draws,
        prompts: args.prompts,
    };
    let subjects = match &args.base {
        Some(base) => Subjects::own(base, &args.own, effort)?,
        None if args.variants.is_empty() => {
            let names = references::REFERENCES.map(|(name, _)| name.to_owned());
            Subjects::compiled_in(&names, effort)?
        }
        None => Subjects::compiled_in(&args.variants, effort)?,
    };
    let count = subjects.variants.len();
    let mut plan = TrialPlan::new(
        &args.capacities,
        (&args.forms, args.head_form),
        &args.comparisons(),
        count,
    );
    plan.tensors = args.tensors;
    let groups = if args.tensors { Group::ALL.len() } else { 0 };
    // `choir eval` measures one's own as served.
    let served = args.wants(Named::Served) && args.base.is_none();
    let place = args.place.open(|| Ok(Quantisation::F32))?;
    let progress = Progress::new((1 + plan.trials.len() + groups + usize::from(served)) * count);
    let mut tick = |what: &str| progress.step(what);
    let mut report = evaluate(&subjects, &plan, &mut tick)?;
    if served {
        report.served = Some(served::measure(
            &place,
            &subjects,
            args.served(),
            2 * args.draws,
            &mut tick,
        )?);
    }
    progress.close();
    picture::save(args.plot.as_deref(), || plot::chart(&report))?;
    args.json.report(&report, || print!("{}", Tables(&report)))
}

fn run_samplers(args: &EvalArgs) -> Result<()> {
    let report = samplers::measure(
        &args.samplers,
        &args.variants,
        &args.place.open(|| Ok(Quantisation::F32))?,
        args.served(),
    )?;
    picture::save(args.plot.as_deref(), || samplers::show::chart(&report))?;
    args.json
        .report(&report, || print!("{}", samplers::show::Table(&report)))
}

impl EvalArgs {
    /// Refuses before the long work what would fail after it.
    fn check(&self) -> Result<()> {
        let limits = [
            ("--contexts", self.contexts, 100_000),
            ("--draws", self.draws, 1000),
            ("--prompts", self.prompts, 100_000),
        ];
        for (option, value, most) in limits {
            if !(1..=most).contains(&value) {
                bail!("{option}: {value} is not within 1 and {most}");
            }
        }
        self.json.check()?;
        picture::check(self.plot.as_deref())
    }

    /// What the service's banks are in, and its heads where that is said.
    fn served(&self) -> (Quantisation, Option<Quantisation>) {
        (
            self.forms.last().copied().unwrap_or(Quantisation::Q2K),
            self.head_form,
        )
    }

    fn wants(&self, named: Named) -> bool {
        self.schemes.is_empty() || self.schemes.contains(&named)
    }

    fn comparisons(&self) -> Vec<Comparison> {
        let all = Comparison::value_variants().iter().copied();
        all.filter(|&one| self.wants(Named::One(one))).collect()
    }
}
