//! `choir-lab bench step`: where a step's time goes when sequences of a store's variants share it, from one materialised variant,
//! from one bank, and from several.

use super::steps::{Sequence, StepTimes, Watch};
use super::{median, parts, steps};
use anyhow::{Context, Result, bail};
use choir::cli::bench::open;
use choir::cli::json::JsonArgs;
use choir::cli::serve::StoreArgs;
use choir::model::profile::Profile;
use choir::model::{Denoiser, Mix, VariantId};
use choir::sampler::{AbsorbingPredictor, BlockSampler, BlockSettings, Sampler};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Args, Debug)]
pub struct StepArgs {
    /// Sequences that share the steps.
    #[arg(long, default_value_t = 16)]
    sequences: usize,
    /// Tokens to make of each.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Compute threads [default: one for each processor].
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// One way to fill the batch: sequences take turns with the mixes.
struct Scenario {
    name: String,
    instance: Arc<dyn Denoiser>,
    mixes: Vec<Mix>,
}

pub fn run(args: StepArgs) -> Result<()> {
    if args.sequences == 0 || args.tokens == 0 {
        bail!("--sequences and --tokens must be above 0");
    }
    args.json.check()?;
    let (catalog, generation, _scratch) = open(&args.store)?;
    let shared = &generation.denoiser;
    let Some(block) = shared.facts().regime.block else {
        bail!("the base does not denoise in blocks");
    };
    let regime = shared.facts().regime;
    let mut banks: BTreeMap<String, Vec<VariantId>> = BTreeMap::new();
    for variant in catalog
        .list()
        .into_iter()
        .filter(|variant| variant.regime == regime)
    {
        // One that is kept by itself shares nothing.
        let id = generation.variants[&variant.name].id;
        let bank = variant.banks.first().unwrap_or(&variant.name);
        banks.entry(bank.clone()).or_default().push(id);
    }
    let Some(members) = banks.values().max_by_key(|members| members.len()) else {
        bail!("the store holds no variant to measure");
    };
    let singles = |ids: &mut dyn Iterator<Item = &VariantId>| {
        ids.map(|id| Mix::single(*id)).collect::<Vec<_>>()
    };
    let one = singles(&mut members[..1].iter());
    let all = singles(&mut banks.values().flatten());
    let alone = shared
        .materialise(&one[0])?
        .context("this network cannot be materialised")?;
    let scenarios = [
        Scenario {
            name: "one variant, materialised".into(),
            instance: alone,
            mixes: vec![Mix::base()],
        },
        Scenario {
            name: format!("{} that share their bank", members.len()),
            instance: shared.clone(),
            mixes: singles(&mut members.iter()),
        },
        Scenario {
            name: format!("all {} variants", all.len()),
            instance: shared.clone(),
            mixes: all,
        },
    ];
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build()?;
    let measure = |scenario| measure(&args, scenario, block);
    let found = threads.install(|| scenarios.iter().map(measure).collect::<Result<Vec<_>>>())?;
    args.json.report(&found, || {
        for of in &found {
            let title = format!(
                "{}, {} sequences: {:.3} ms a step, {:.0} tokens/s",
                of.scenario, of.sequences, of.milliseconds, of.tokens_per_second
            );
            of.profile.print(&title);
        }
    })
}

/// A scenario's steps; the median of their times.
#[derive(Debug, Serialize)]
struct Figures {
    scenario: String,
    sequences: usize,
    milliseconds: f64,
    tokens_per_second: f64,
    profile: parts::Table,
}

fn measure(args: &StepArgs, scenario: &Scenario, block: usize) -> Result<Figures> {
    let network = scenario.instance.facts();
    let mask = network.mask.context("a base without a mask")?;
    let predictor = AbsorbingPredictor::FirstHitting;
    let settings = BlockSettings {
        time_conditioned: network.regime.time_conditioned,
        prefill_chunk: network.context,
        ..BlockSettings::new(block, args.tokens, predictor, mask, network.rows)
    };
    let mixes = scenario.mixes.iter().cycle();
    let mut sequences = (0..args.sequences as u64)
        .zip(mixes)
        .map(|(seed, mix)| {
            Ok(Sequence {
                sampler: Sampler::Block(BlockSampler::new(settings.clone(), &[0], seed)?),
                mix: mix.clone(),
                block: Some(block),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut warm = sequences.clone();
    let (network, length) = (&*scenario.instance, 1 + args.tokens + block);
    steps::run(
        network,
        &mut warm,
        length,
        Watch::Time,
        &mut Profile::default(),
    )?;
    let mut profile = Profile::default();
    let steps = steps::run(network, &mut sequences, length, Watch::Time, &mut profile)?;
    let time = |step: &StepTimes| step.network + step.sampling;
    let tokens: usize = sequences
        .iter()
        .map(|sequence| sequence.sampler.generated().len())
        .sum();
    Ok(Figures {
        scenario: scenario.name.clone(),
        sequences: args.sequences,
        milliseconds: 1e3 * median(steps.iter().map(time).collect()),
        tokens_per_second: tokens as f64 / steps.iter().map(time).sum::<f64>(),
        profile: parts::Table::new(&profile, steps.len()),
    })
}
