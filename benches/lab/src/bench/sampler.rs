//! `choir-lab bench sampler`: steps of a whole-sequence sampler (Duo) and of a block sampler (BD3-LM), one sequence and several
//! together, on a network of the published small size with random weights: network and sampling timed apart, beside what the
//! papers' own code takes.

use super::papers::{self, Against};
use super::products::{Rate, rates};
use super::steps::{Sequence, StepTimes, Watch};
use super::{median, parts, steps};
use anyhow::{Result, bail};
use choir::cli::json::JsonArgs;
use choir::cli::memory::give_back;
use choir::model::base::Dense;
use choir::model::profile::Profile;
use choir::model::{BaseWeights, DitConfig, HostNetwork, Mix};
use choir::ops::quantized::Quantisation;
use choir::rng::{Key, Stream};
use choir::sampler::{
    AbsorbingPredictor, BlockSampler, BlockSettings, Sampler, UniformPredictor, UniformSampler,
    UniformSettings,
};
use clap::Args;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

#[derive(Args, Debug)]
pub struct SamplerBenchArgs {
    /// Layers of the network.
    #[arg(long, default_value_t = 12)]
    layers: usize,
    /// Its width.
    #[arg(long, default_value_t = 768)]
    hidden: usize,
    #[arg(long, default_value_t = 12)]
    heads: usize,
    /// Width of its conditioning.
    #[arg(long, default_value_t = 128)]
    cond: usize,
    #[arg(long, default_value_t = 50_258)]
    vocab: usize,
    /// Tokens of a whole sequence.
    #[arg(long, default_value_t = 1024)]
    length: usize,
    /// Duo steps to measure, besides one to warm up, one to measure memory and noise removal.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Block sizes of the block sampler.
    #[arg(long, value_delimiter = ',', default_value = "4,16")]
    blocks: Vec<usize>,
    /// Length of the block sampler's sequences in tokens, of which all but the first are made.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Sequences of the block sampler that run together, beside one alone.
    #[arg(long, default_value_t = 16)]
    together: usize,
    /// How the network's matrices are kept in memory, one after the other: f32, bf16, q8_0, q4k...
    #[arg(long, value_delimiter = ',', default_value = "f32,q4k")]
    base_form: Vec<Quantisation>,
    /// Less than 1 cuts every row to its nucleus.
    #[arg(long, default_value_t = 1.0)]
    nucleus_p: f32,
    /// Compute threads [default: one for each processor].
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Also say where the steps' time went.
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// What steps of one sampler take; times are medians.
#[derive(Debug, Serialize)]
struct Figures {
    sampler: String,
    base: String,
    /// Tokens to a block; all of the sequence for Duo.
    block: usize,
    sequences: usize,
    network_seconds: f64,
    /// All that is not the network.
    sampling_seconds: f64,
    sampling_share: f64,
    /// Of all sequences, from their first step to their end.
    seconds: f64,
    tokens: usize,
    tokens_per_second: f64,
    /// Evaluations, those that only wrote keys and values among them.
    evaluations: usize,
    /// Logits of one step, and what the process grew by at most during that step.
    logits_bytes: usize,
    peak_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<parts::Table>,
}

impl Figures {
    fn title(&self) -> String {
        format!("{}, {}", self.sampler, self.base)
    }
}

pub fn run(args: SamplerBenchArgs) -> Result<()> {
    if args.steps == 0 || args.tokens < 2 || args.length == 0 || args.together == 0 {
        bail!("--steps, --length and --together must be above 0, and --tokens above 1");
    }
    args.json.check()?;
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build()?;
    threads.install(|| measure(&args))
}

fn measure(args: &SamplerBenchArgs) -> Result<()> {
    let mut found = Vec::new();
    for &form in &args.base_form {
        let network = Network::new(config(args), form)?;
        found.push(duo(args, &network)?);
        for &block in &args.blocks {
            found.push(blocks(args, &network, block, 1)?);
            if args.together > 1 {
                found.push(blocks(args, &network, block, args.together)?);
            }
        }
        drop(network);
        give_back();
    }
    let products = rates(&config(args), &[1, 4, 16, 64, 256, args.length])?;
    let published =
        args.layers == 12 && args.hidden == 768 && args.heads == 12 && args.vocab == 50_258;
    if published && args.tokens == 128 {
        for row in &mut found {
            row.against = papers::against(
                row.block,
                row.tokens_per_second,
                row.network_seconds + row.sampling_seconds,
                &products,
            );
        }
    }
    let sizes = json!({"layers": args.layers, "hidden": args.hidden, "heads": args.heads, "cond": args.cond,
            "vocab": args.vocab, "length": args.length, "nucleus_p": args.nucleus_p});
    let report = json!({"threads": rayon::current_num_threads(), "network": sizes, "samplers": found, "gflops": products});
    args.json.report(&report, || print(args, &found, &products))
}

/// Duo's; a block sampler's segments say themselves that they are blocks and know no noise level.
fn config(args: &SamplerBenchArgs) -> DitConfig {
    DitConfig {
        model_type: "duo".into(),
        vocab_size: args.vocab,
        model_length: args.length,
        hidden_dim: args.hidden,
        cond_dim: args.cond,
        n_blocks: args.layers,
        n_heads: args.heads,
        block_size: None,
        cross_attn: false,
        time_conditioning: None,
        states: None,
    }
}

/// A network of random weights, and the form that its matrices are kept in.
struct Network {
    dit: HostNetwork,
    form: Quantisation,
}

impl Network {
    /// Every weight uniform within 1/sqrt(inputs) of 0, norms 1.
    fn new(config: DitConfig, form: Quantisation) -> Result<Self> {
        config.check()?;
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let mut stream = Stream::new(Key::derive(&[b"choir/bench/network", name.as_bytes()]));
            let bound = match shape[..] {
                [_, input] => 2.0 / (input as f64).sqrt(),
                _ => 0.0,
            };
            let middle = if name.contains("norm") { 1.0 } else { 0.0 };
            let count: usize = shape.iter().product();
            let data = (0..count).map(|_| (middle + bound * (stream.uniform() - 0.5)) as f32);
            let data = data.collect();
            (name, (shape, data))
        };
        let tensors: Dense = config.tensors().into_par_iter().map(tensor).collect();
        let base = BaseWeights::in_form(config.architecture()?, &tensors, form)?;
        drop(tensors);
        give_back();
        Ok(Network {
            dit: HostNetwork::new(Arc::new(base), &[], Vec::new())?,
            form,
        })
    }
}

fn duo(args: &SamplerBenchArgs, network: &Network) -> Result<Figures> {
    let settings = UniformSettings {
        block_size: None,
        max_tokens: args.length,
        predictor: UniformPredictor {
            steps: args.steps as u32 + 2,
            ..UniformPredictor::default()
        },
        temperature: 1.0,
        nucleus_p: args.nucleus_p,
        top_k: None,
        stop_ids: Vec::new(),
        vocab_size: args.vocab,
        time_conditioned: true,
        prefill_chunk: args.length,
    };
    let sampler = Sampler::Uniform(UniformSampler::new(settings, &[], 0)?);
    figures(args, network, vec![sampler], args.length, None)
}

fn blocks(
    args: &SamplerBenchArgs,
    network: &Network,
    block: usize,
    sequences: usize,
) -> Result<Figures> {
    let mask = args.vocab as u32 - 1;
    let predictor = AbsorbingPredictor::FirstHitting;
    let settings = BlockSettings {
        nucleus_p: args.nucleus_p,
        prefill_chunk: args.length,
        ..BlockSettings::new(block, args.tokens - 1, predictor, mask, args.vocab)
    };
    let samplers = (0..sequences as u64)
        .map(|seed| {
            Ok(Sampler::Block(BlockSampler::new(
                settings.clone(),
                &[0],
                seed,
            )?))
        })
        .collect::<Result<_>>()?;
    figures(args, network, samplers, args.tokens + block, Some(block))
}

/// Runs sequences of at most `length` positions to their ends. Memory is measured at the second step of one that is alone.
fn figures(
    args: &SamplerBenchArgs,
    network: &Network,
    samplers: Vec<Sampler>,
    length: usize,
    block: Option<usize>,
) -> Result<Figures> {
    let sequence = |sampler| Sequence {
        sampler,
        mix: Mix::base(),
        block,
    };
    let mut sequences: Vec<Sequence> = samplers.into_iter().map(sequence).collect();
    let (mut profile, watch) = match sequences.len() {
        1 => (Profile::default(), Watch::Memory),
        _ => (Profile::default(), Watch::Time),
    };
    let steps = steps::run(&network.dit, &mut sequences, length, watch, &mut profile)?;
    // The first warms up, the second is watched; Duo's last removes noise and is no step.
    let last = steps.len() - usize::from(block.is_none());
    let timed = &steps[2.min(last)..last];
    let of = |time: fn(&StepTimes) -> f64| median(timed.iter().map(time).collect());
    let seconds: f64 = steps.iter().map(|step| step.network + step.sampling).sum();
    let tokens = sequences.iter().map(|s| s.sampler.generated().len()).sum();
    let (size, together) = (block.unwrap_or(length), sequences.len());
    Ok(Figures {
        sampler: match block {
            None => format!("duo, length {length}"),
            Some(block) => format!("{together} × blocks of {block}"),
        },
        base: network.form.to_string(),
        block: size,
        sequences: together,
        network_seconds: of(|step| step.network),
        sampling_seconds: of(|step| step.sampling),
        sampling_share: of(|step| step.sampling / (step.network + step.sampling)),
        seconds,
        tokens,
        tokens_per_second: tokens as f64 / seconds,
        evaluations: steps.len(),
        logits_bytes: steps.get(1).map_or(0, |step| step.logits),
        peak_bytes: steps.get(1).and_then(|step| step.grown),
        against: None,
        profile: args
            .profile
            .then(|| parts::Table::new(&profile, steps.len())),
    })
}

fn print(args: &SamplerBenchArgs, found: &[Figures], products: &[Rate]) {
    let SamplerBenchArgs {
        layers,
        hidden,
        heads,
        cond,
        vocab,
        ..
    } = args;
    let threads = rayon::current_num_threads();
    println!(
        "{layers} layers, {hidden} wide, {heads} heads, cond {cond}, vocabulary {vocab}, random weights; {threads} threads\n"
    );
    let header = [
        "a step of",
        "network",
        "sampling",
        "share",
        "logits",
        "peak",
        "steps",
        "whole",
        "tokens/s",
    ];
    let [a, b, c, d, e, f, g, h, i] = header;
    println!("{a:29}{b:>10}{c:>11}{d:>8}{e:>11}{f:>17}{g:>6}{h:>9}{i:>10}");
    for row in found {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let logits = row.logits_bytes as f64;
        let peak = row.peak_bytes.map_or(String::new(), |peak| {
            format!("{:.1} MiB ×{:.2}", mib(peak as f64), peak as f64 / logits)
        });
        println!(
            "{:21}{:8}{:8.4} s{:9.5} s{:6.1} %{:7.1} MiB{peak:>17}{:6}{:7.2} s{:10.1}",
            row.sampler,
            row.base,
            row.network_seconds,
            row.sampling_seconds,
            100.0 * row.sampling_share,
            mib(logits),
            row.evaluations,
            row.seconds,
            row.tokens_per_second,
        );
    }
    println!("\nx[rows, in] W[out, in]^T in f32, GFLOP/s, choir / candle; out × in, rows:");
    for rate in products {
        let shape = format!("{} × {}, {}", rate.out, rate.input, rate.rows);
        println!("{shape:24}{:6.0} / {:.0}", rate.ours, rate.candle);
    }
    papers::print(
        found
            .iter()
            .filter_map(|row| Some((row.title(), row.against.as_ref()?))),
    );
    for row in found {
        if let Some(profile) = &row.profile {
            profile.print(&row.title());
        }
    }
}
