//! Whole sequences through their samplers: one in blocks, and batches of the uniform process.

use super::Bench;
use super::meter::Mode;
use super::network::network;
use crate::bench::median;
use anyhow::Result;
use choir::model::gpu::GpuNetwork;
use choir::model::kv_cache::KvCache;
use choir::model::{Batch, Denoiser, DitConfig, Mix, PageId, Segment, VariantId};
use choir::sampler::{
    AbsorbingPredictor, BlockSampler, BlockSettings, Progress, Sampler, UniformPredictor,
    UniformSampler, UniformSettings,
};
use std::time::Instant;

/// Positions to a page of the cache.
const PAGE: usize = 16;
/// Of the uniform process, before noise removal.
const STEPS: u32 = 8;
const NUCLEI: [f32; 2] = [1.0, 0.95];

/// Takes one step of all `samplers`; false where one has finished. Each has as many pages of the cache as the others.
fn take(
    network: &GpuNetwork,
    mix: &Mix,
    samplers: &mut [Sampler],
    cache: &mut KvCache,
) -> Result<bool> {
    let each = cache.pages() / samplers.len().max(1);
    let mut segments = Vec::with_capacity(samplers.len());
    for (number, sampler) in samplers.iter_mut().enumerate() {
        let evaluation = sampler.next().clone();
        segments.push(Segment {
            mix: mix.clone(),
            block: network.facts().regime.block,
            phase: 0,
            sigma: evaluation.sigma,
            tokens: evaluation.tokens,
            first_position: evaluation.first_position,
            clean: evaluation.clean,
            rows: evaluation.rows,
            draws: sampler.draws(),
            pages: (number * each..(number + 1) * each)
                .map(|page| PageId(page as u32))
                .collect(),
            pages_start: 0,
        });
    }
    let batch = Batch { segments };
    let outcome = network.step(&batch, cache)?;
    let mut drawn = &outcome.drawn[..];
    let mut more = true;
    for (sampler, segment) in samplers.iter_mut().zip(&batch.segments) {
        let (own, rest) = drawn.split_at(segment.rows.len());
        drawn = rest;
        more &= !matches!(sampler.take(own), Progress::Finished(_));
    }
    Ok(more)
}

/// Milliseconds of every step on the wall, and on the device where it replays.
fn all(
    bench: &Bench,
    (network, mix): (&GpuNetwork, &Mix),
    samplers: &mut [Sampler],
    cache: &mut KvCache,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut wall, mut device, mut more) = (Vec::new(), Vec::new(), true);
    while more {
        let start = Instant::now();
        more = take(network, mix, samplers, cache)?;
        wall.push(1e3 * start.elapsed().as_secs_f64());
        device.extend(bench.meter.replays());
        if !device.is_empty() {
            bench.meter.start(Mode::Replays);
        }
    }
    Ok((wall, device))
}

pub fn latency(bench: &mut Bench) -> Result<()> {
    let config = bench.sizes.small.clone();
    let (tokens, block) = (bench.sizes.tokens, config.block().unwrap_or(1));
    let network = network(bench, &config.architecture()?, 1)?;
    let single = network.materialise(&Mix::single(VariantId(0)))?;
    let mut cache = network.cache(PAGE.into(), (1 + tokens + block).div_ceil(PAGE) + 1)?;
    let sampler = || -> Result<[Sampler; 1]> {
        let (rows, predictor) = (config.vocab_size, AbsorbingPredictor::FirstHitting);
        let settings = BlockSettings {
            prefill_chunk: config.model_length,
            ..BlockSettings::new(block, tokens, predictor, rows as u32 - 1, rows)
        };
        Ok([Sampler::Block(BlockSampler::new(settings, &[0], 0)?)])
    };
    let cases = [
        ("base", &network, Mix::base()),
        (
            "1 variant from its bank",
            &network,
            Mix::single(VariantId(0)),
        ),
        ("1 variant, materialised", &single, Mix::base()),
    ];
    for (name, network, mix) in cases {
        let of = (network, &mix);
        bench.meter.start(Mode::Off);
        all(bench, of, &mut sampler()?, &mut cache)?;
        let mut timed = sampler()?;
        let (wall, _) = all(bench, of, &mut timed, &mut cache)?;
        bench.meter.start(Mode::Replays);
        let (_, device) = all(bench, of, &mut sampler()?, &mut cache)?;
        bench.meter.start(Mode::Off);
        let made = timed[0].generated().len() as f64;
        let rate = 1e3 * made / wall.iter().sum::<f64>();
        let figures = [
            ("wall µs/step", 1e3 * median(wall.clone())),
            ("device µs/step", 1e3 * median(device)),
            ("steps", wall.len() as f64),
            ("tokens/s", rate),
        ];
        bench.report.line("latency", name, &figures);
    }
    Ok(())
}

fn uniform(config: &DitConfig, nucleus_p: f32, seed: u64) -> Result<Sampler> {
    let settings = UniformSettings {
        block_size: None,
        max_tokens: config.model_length,
        predictor: UniformPredictor {
            steps: STEPS,
            ..UniformPredictor::default()
        },
        temperature: 1.0,
        nucleus_p,
        top_k: None,
        stop_ids: Vec::new(),
        vocab_size: config.tokens(),
        time_conditioned: true,
        prefill_chunk: config.model_length,
    };
    Ok(Sampler::Uniform(UniformSampler::new(settings, &[], seed)?))
}

pub fn duo(bench: &mut Bench) -> Result<()> {
    let config = bench.sizes.small.uniform(None);
    let network = network(bench, &config.architecture()?, 0)?;
    let mix = Mix::base();
    for sequences in bench.sizes.sequences.clone() {
        let mut cache = network.cache(PAGE.into(), sequences)?;
        let samplers = |nucleus_p| -> Result<Vec<Sampler>> {
            (0..sequences as u64)
                .map(|seed| uniform(&config, nucleus_p, seed))
                .collect()
        };
        // Launched one by one, and every launch timed: as long as nothing is recorded.
        let mut profiles = Vec::new();
        for nucleus_p in NUCLEI {
            bench.meter.start(Mode::Launches);
            let mut profiled = samplers(nucleus_p)?;
            take(&network, &mix, &mut profiled, &mut cache)?;
            bench.meter.launches();
            take(&network, &mix, &mut profiled, &mut cache)?;
            profiles.push(bench.meter.launches());
        }
        bench.meter.start(Mode::Off);
        for (nucleus_p, launches) in NUCLEI.into_iter().zip(profiles) {
            let sum: f64 = launches.iter().map(|(_, took, _)| took).sum();
            let of = launches
                .iter()
                .filter(|(name, ..)| name.starts_with("categorical"));
            let sampling: f64 = of.map(|(_, took, _)| took).sum();
            // Recorded, and tables made of every noise level.
            all(
                bench,
                (&network, &mix),
                &mut samplers(nucleus_p)?,
                &mut cache,
            )?;
            let (wall, _) = all(
                bench,
                (&network, &mix),
                &mut samplers(nucleus_p)?,
                &mut cache,
            )?;
            let figures = [
                ("wall ms/step", median(wall.clone())),
                (
                    "tokens/s",
                    1e3 * (sequences * config.model_length) as f64 / wall.iter().sum::<f64>(),
                ),
                ("sampling ms", sampling),
                ("its share", sampling / sum),
            ];
            let name = format!("{sequences} sequences, nucleus {nucleus_p}");
            bench.report.line("duo", &name, &figures);
            let profile = format!("duo, {name}");
            for (kernel, took, count) in launches {
                let figures = [("launches", count as f64), ("µs", 1e3 * took)];
                bench.report.line(&profile, &kernel, &figures);
            }
        }
    }
    Ok(())
}
