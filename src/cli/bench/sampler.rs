//! `choir bench sampler`: steps of a whole-sequence sampler (Duo) and of a block sampler (BD3-LM), network and sampling
//! timed apart, on a network of the published small size with random weights.

use super::products::{Rate, rates};
use super::{median, process_bytes};
use crate::catalog::loading::give_back;
use crate::model::kv_cache::KvCache;
use crate::model::weights::Dense;
use crate::model::{BaseWeights, Batch, Denoiser, Dit, DitConfig, Mix, PageId, Segment};
use crate::rng::{Key, Stream};
use crate::sampler::{
    BlockSampler, BlockSettings, LastBlock, Predictor, Progress, Sampler, UniformPredictor, UniformSampler,
    UniformSettings,
};
use anyhow::{Result, bail};
use clap::Args;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

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
    /// Tokens that the block sampler makes.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Less than 1 cuts every row to its nucleus.
    #[arg(long, default_value_t = 1.0)]
    nucleus_p: f32,
    /// Compute threads [default: one for each processor].
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// Positions to a page of the cache.
const PAGE: usize = 16;

/// What steps of one sampler take; times are medians.
#[derive(Debug, Serialize)]
struct Figures {
    sampler: String,
    network_seconds: f64,
    /// All that is not the network.
    sampling_seconds: f64,
    sampling_share: f64,
    /// Of the whole sequence.
    seconds: f64,
    tokens: usize,
    nfe: u32,
    /// Evaluations that only wrote keys and values.
    prefills: u32,
    /// Of one step.
    logits_bytes: usize,
    /// What the process grew by at most during that step.
    peak_bytes: u64,
}

struct Step {
    network: f64,
    sampling: f64,
    logits: usize,
    grown: Option<u64>,
}

pub fn run(args: SamplerBenchArgs) -> Result<()> {
    if args.steps == 0 || args.tokens == 0 || args.length == 0 {
        bail!("--steps, --tokens and --length must be above 0");
    }
    let threads = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    threads.install(|| measure(&args))
}

fn measure(args: &SamplerBenchArgs) -> Result<()> {
    let mut found = vec![duo(args)?];
    for &block in &args.blocks {
        found.push(blocks(args, block)?);
    }
    give_back();
    let products = rates(&config(args, None), &[1, 16, 256, args.length])?;
    if args.json {
        let sizes = json!({"layers": args.layers, "hidden": args.hidden, "heads": args.heads, "cond": args.cond,
            "vocab": args.vocab, "length": args.length, "nucleus_p": args.nucleus_p});
        let all = json!({"threads": rayon::current_num_threads(), "network": sizes, "samplers": found,
            "gflops": products});
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print(args, &found, &products);
    }
    Ok(())
}

fn config(args: &SamplerBenchArgs, block: Option<usize>) -> DitConfig {
    DitConfig {
        model_type: if block.is_some() { "bd3lm" } else { "duo" }.into(),
        vocab_size: args.vocab,
        model_length: args.length,
        hidden_dim: args.hidden,
        cond_dim: args.cond,
        n_blocks: args.layers,
        n_heads: args.heads,
        block_size: block,
        cross_attn: block.is_some(),
        time_conditioning: None,
        states: None,
    }
}

/// Every weight uniform within 1/sqrt(inputs) of 0, norms 1.
fn network(config: DitConfig) -> Result<Dit> {
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
    let base = BaseWeights::new(config, &tensors)?;
    drop(tensors);
    give_back();
    Ok(Dit::new(Arc::new(base), &[], Vec::new())?)
}

fn duo(args: &SamplerBenchArgs) -> Result<Figures> {
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
    let mut sampler = Sampler::Uniform(UniformSampler::new(settings, &[], 0)?);
    let steps = take_all(&network(config(args, None))?, &mut sampler, args.length)?;
    let timed = 2..steps.len() - 1; // noise removal is no step
    figures(format!("duo, length {}", args.length), &steps, timed, &sampler)
}

fn blocks(args: &SamplerBenchArgs, block: usize) -> Result<Figures> {
    let settings = BlockSettings {
        block_size: block,
        max_tokens: args.tokens,
        predictor: Predictor::FirstHitting,
        temperature: 1.0,
        nucleus_p: args.nucleus_p,
        top_k: None,
        stop_ids: Vec::new(),
        mask_id: args.vocab as u32 - 1,
        vocab_size: args.vocab,
        time_conditioned: false,
        prefill_chunk: args.length,
        last_block: LastBlock::Whole,
    };
    let mut sampler = Sampler::Block(BlockSampler::new(settings, &[0], 0)?);
    let steps = take_all(
        &network(config(args, Some(block)))?,
        &mut sampler,
        1 + args.tokens + block,
    )?;
    let timed = 2.min(steps.len())..steps.len();
    figures(format!("blocks of {block}, first-hitting"), &steps, timed, &sampler)
}

/// Runs a sequence of at most `length` positions to its end. Memory is measured at the second step.
fn take_all(network: &Dit, sampler: &mut Sampler, length: usize) -> Result<Vec<Step>> {
    let pages: Vec<PageId> = (0..length.div_ceil(PAGE) as u32).map(PageId).collect();
    let mut cache = KvCache::new(network.config(), PAGE, pages.len());
    let mut steps = Vec::new();
    loop {
        let before = match steps.len() {
            1 => Some(reset_peak()?),
            _ => None,
        };
        let start = Instant::now();
        let evaluation = sampler.next().clone();
        let batch = Batch {
            segments: vec![Segment {
                mix: Mix::base(),
                block: network.config().block(),
                sigma: evaluation.sigma,
                tokens: evaluation.tokens,
                first_position: evaluation.first_position,
                clean: evaluation.clean,
                rows: evaluation.rows,
                draws: Vec::new(),
                pages: pages.clone(),
                pages_start: 0,
            }],
        };
        let forward = Instant::now();
        let logits = network.forward(&batch, &mut cache)?;
        let network = forward.elapsed().as_secs_f64();
        let rows: Vec<&[f32]> = (0..batch.logit_rows()).map(|row| logits.row(row)).collect();
        let progress = sampler.accept(&rows);
        let logits = size_of_val(&logits.data[..]);
        steps.push(Step {
            network,
            sampling: start.elapsed().as_secs_f64() - network,
            logits,
            grown: match before {
                Some(before) => Some(process_bytes("VmHWM")?.saturating_sub(before)),
                None => None,
            },
        });
        if let Progress::Finished(_) = progress {
            return Ok(steps);
        }
    }
}

/// Starts the peak of resident memory anew, from what is resident when free memory has gone back.
fn reset_peak() -> Result<u64> {
    give_back();
    std::fs::write("/proc/self/clear_refs", "5")?;
    process_bytes("VmRSS")
}

fn figures(sampler: String, steps: &[Step], timed: Range<usize>, made: &Sampler) -> Result<Figures> {
    let Some((logits_bytes, peak_bytes)) = steps.iter().find_map(|step| Some((step.logits, step.grown?))) else {
        bail!("{sampler}: there were too few steps to measure");
    };
    let of = |time: fn(&Step) -> f64| median(steps[timed.clone()].iter().map(time).collect());
    let (network_seconds, sampling_seconds) = (of(|step| step.network), of(|step| step.sampling));
    Ok(Figures {
        sampler,
        network_seconds,
        sampling_seconds,
        sampling_share: of(|step| step.sampling / (step.network + step.sampling)),
        seconds: steps.iter().map(|step| step.network + step.sampling).sum(),
        tokens: made.generated().len(),
        nfe: made.nfe(),
        prefills: made.prefills(),
        logits_bytes,
        peak_bytes,
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
        "NFE",
        "whole",
    ];
    let [a, b, c, d, e, f, g, h] = header;
    println!("{a:28}{b:>10}{c:>11}{d:>8}{e:>11}{f:>17}{g:>6}{h:>9}");
    for row in found {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let (logits, peak) = (row.logits_bytes as f64, row.peak_bytes as f64);
        println!(
            "{:28}{:8.4} s{:9.5} s{:6.1} %{:7.1} MiB{:7.1} MiB ×{:.2}{:6}{:7.2} s",
            row.sampler,
            row.network_seconds,
            row.sampling_seconds,
            100.0 * row.sampling_share,
            mib(logits),
            mib(peak),
            peak / logits,
            row.nfe + row.prefills,
            row.seconds,
        );
    }
    println!("\nx[rows, in] W[out, in]^T in f32, GFLOP/s, choir / candle; out × in, rows:");
    for rate in products {
        let shape = format!("{} × {}, {}", rate.out, rate.input, rate.rows);
        println!("{shape:24}{:6.0} / {:.0}", rate.ours, rate.candle);
    }
}
