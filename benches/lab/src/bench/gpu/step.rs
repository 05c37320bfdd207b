//! One step of blocks of several sequences: the base's, variants' from their banks, and a materialised variant's.

use super::Bench;
use super::meter::Mode;
use super::network::{TO_A_BANK, bytes, in_few_bits, network};
use crate::bench::median;
use anyhow::Result;
use choir::model::gpu::GpuNetwork;
use choir::model::kv_cache::KvCache;
use choir::model::{Architecture, Batch, Denoiser, Mix, PageId, Segment, VariantId};
use choir::ops::categorical::{Crossing, Draw, DrawKind, Filter};
use choir::ops::gpu::GpuDevice;
use choir::ops::quantized::Quantisation;
use choir::rng::Noise;
use std::time::Instant;

/// Positions to a page of the cache.
const PAGE: usize = 16;
const BANKS: usize = 16;
/// Bits of a weight in tiles.
const TILE_BITS: f64 = 4.625;

/// A block of each of several sequences after cached positions.
pub struct Blocks<'a> {
    of: &'a Architecture,
    cached: usize,
    sequences: usize,
    block: usize,
}

impl Blocks<'_> {
    fn pages(&self) -> usize {
        (self.cached + self.block).div_ceil(PAGE)
    }

    fn segment(
        &self,
        sequence: usize,
        mix: Mix,
        first_position: usize,
        tokens: Vec<u32>,
    ) -> Segment {
        let first = sequence * self.pages();
        Segment {
            mix,
            block: Some(self.block),
            phase: 0,
            sigma: 0.0,
            tokens,
            first_position,
            clean: 0,
            rows: Vec::new(),
            draws: Vec::new(),
            pages: (first..first + self.pages())
                .map(|page| PageId(page as u32))
                .collect(),
            pages_start: 0,
        }
    }

    /// A cache in which the positions before the blocks lie.
    fn cache(&self, network: &GpuNetwork) -> Result<KvCache> {
        let mut cache = network.cache(PAGE.into(), self.sequences * self.pages())?;
        for sequence in 0..self.sequences {
            let tokens: Vec<u32> = (0..self.cached)
                .map(|at| ((31 * sequence + 7 * at) % self.of.vocabulary.tokens) as u32)
                .collect();
            let clean = Segment {
                clean: self.cached,
                ..self.segment(sequence, Mix::base(), 0, tokens)
            };
            let batch = Batch {
                segments: vec![clean],
            };
            network.step(&batch, &mut cache)?;
        }
        Ok(cache)
    }

    /// All blocks masked but for a first token, one row of each drawn as first-hitting does.
    fn batch(&self, mix: impl Fn(usize) -> Mix) -> Batch {
        let vocabulary = &self.of.vocabulary;
        let mask = vocabulary.mask.unwrap_or(vocabulary.rows as u32 - 1);
        let segments = (0..self.sequences).map(|sequence| {
            let mut tokens = vec![mask; self.block];
            tokens[0] = (sequence % vocabulary.tokens) as u32;
            let row = 1 + sequence % (self.block - 1);
            let draw = Draw {
                filter: Filter {
                    temperature: 1.0,
                    top_k: None,
                    nucleus_p: 1.0,
                    crossing: Crossing::Dropped,
                    forbidden: Some(mask),
                },
                tokens: vocabulary.rows,
                noise: Noise::new(sequence as u64),
                step: 1,
                position: (self.cached + row) as u32,
                kind: DrawKind::Predicted,
            };
            Segment {
                rows: vec![row],
                draws: vec![draw],
                ..self.segment(sequence, mix(sequence), self.cached, tokens)
            }
        });
        Batch {
            segments: segments.collect(),
        }
    }
}

/// Milliseconds of a step.
struct Took {
    wall: f64,
    device: f64,
}

/// Launches of a step are timed one by one first and printed under `profile`, if that is given and no step of this shape was
/// recorded before.
fn steps(
    bench: &mut Bench,
    network: &GpuNetwork,
    batch: &Batch,
    cache: &mut KvCache,
    profile: Option<&str>,
) -> Result<Took> {
    let mut once = || -> Result<f64> {
        let start = Instant::now();
        network.step(batch, cache)?;
        Ok(1e3 * start.elapsed().as_secs_f64())
    };
    if let Some(profile) = profile {
        bench.meter.start(Mode::Launches);
        once()?;
        bench.meter.launches(); // libraries have loaded what they need
        once()?;
        for (name, took, count) in bench.meter.launches() {
            let figures = [("launches", count as f64), ("µs", 1e3 * took)];
            bench.report.line(profile, &name, &figures);
        }
    }
    bench.meter.start(Mode::Off);
    // Launched, recorded, replayed.
    let warm = [once()?, once()?, once()?];
    let repeats = bench.repeats(warm[2]);
    let wall: Vec<f64> = (0..repeats).map(|_| once()).collect::<Result<_>>()?;
    let mut device = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        bench.meter.start(Mode::Replays);
        let took = once()?;
        device.push(bench.meter.replays().unwrap_or(took));
    }
    bench.meter.start(Mode::Off);
    Ok(Took {
        wall: median(wall),
        device: median(device),
    })
}

/// Waits for the device, and gives milliseconds since.
fn since(start: Instant, gpu: &dyn GpuDevice) -> Result<f64> {
    gpu.synchronise()?;
    Ok(1e3 * start.elapsed().as_secs_f64())
}

/// A batch's mixes: variant `sequence % variants * stride`.
struct Case {
    name: &'static str,
    banks: usize,
    variants: usize,
    stride: usize,
}

const CASES: [Case; 5] = [
    Case {
        name: "base",
        banks: 0,
        variants: 1,
        stride: 1,
    },
    Case {
        name: "1 variant",
        banks: 1,
        variants: 1,
        stride: 1,
    },
    Case {
        name: "4 variants of 1 bank",
        banks: 1,
        variants: 4,
        stride: 1,
    },
    Case {
        name: "4 variants of 4 banks",
        banks: 4,
        variants: 4,
        stride: TO_A_BANK,
    },
    Case {
        name: "16 variants of 16 banks",
        banks: 16,
        variants: 16,
        stride: TO_A_BANK,
    },
];

pub fn measure(bench: &mut Bench, part: &str, of: &Architecture) -> Result<()> {
    let (base, bank) = bytes(of);
    let (free, _) = bench.gpu.memory()?;
    let room = free.saturating_sub(2 * base + free / 16) / bank;
    let banks = room.clamp(1, BANKS);
    let start = Instant::now();
    let network = network(bench, of, banks)?;
    let made = since(start, &*bench.gpu)?;
    let figures = [
        ("base GB", base as f64 * 1e-9),
        ("bank GB", bank as f64 * 1e-9),
        ("banks", banks as f64),
        ("made in s", 1e-3 * made),
    ];
    bench.report.line(part, "network", &figures);

    let (single, switch) = materialised(bench, part, &network)?;
    for (sequences, block) in [(4, 16), (16, 4)] {
        let blocks = Blocks {
            of,
            cached: bench.sizes.cached,
            sequences,
            block,
        };
        let mut cache = blocks.cache(&network)?;
        let shape = format!("{sequences} x {block} rows");
        let profile = format!("{part}, {shape}, materialised");
        let batch = blocks.batch(|_| Mix::base());
        let alone = steps(bench, &single, &batch, &mut cache, Some(&profile))?;
        let line = format!("{shape}, materialised");
        bench
            .report
            .line(part, &line, &figures_of(&alone, &alone, 0, &switch));
        for case in CASES
            .iter()
            .filter(|case| case.banks <= banks && case.variants <= sequences)
        {
            let batch = blocks.batch(|sequence| match case.banks {
                0 => Mix::base(),
                _ => Mix::single(VariantId((sequence % case.variants * case.stride) as u32)),
            });
            let profile = (case.banks > 0).then(|| format!("{part}, {shape}, {}", case.name));
            let took = steps(bench, &network, &batch, &mut cache, profile.as_deref())?;
            let line = format!("{shape}, {}", case.name);
            bench
                .report
                .line(part, &line, &figures_of(&took, &alone, case.banks, &switch));
        }
    }
    few_bits(bench, part, of, &single)
}

/// Steps of a base in few bits, beside those of the same shape in bf16.
fn few_bits(bench: &mut Bench, part: &str, of: &Architecture, bf16: &GpuNetwork) -> Result<()> {
    for form in [Quantisation::Q8_0, Quantisation::Q4K] {
        let network = in_few_bits(bench, of, form)?;
        for sequences in [1, 4, 16] {
            let blocks = Blocks {
                of,
                cached: bench.sizes.cached,
                sequences,
                block: 4,
            };
            let mut cache = blocks.cache(&network)?;
            let batch = blocks.batch(|_| Mix::base());
            let beside = steps(bench, bf16, &batch, &mut cache, None)?;
            let profile = format!("{part}, {sequences} x 4 rows, {form}");
            let took = steps(bench, &network, &batch, &mut cache, Some(&profile))?;
            let figures = [
                ("ms", took.wall),
                ("on the device", took.device),
                ("bf16 ms", beside.wall),
                ("bf16 on the device", beside.device),
            ];
            let line = format!("{sequences} x 4 rows, base in {form}");
            bench.report.line(part, &line, &figures);
        }
    }
    Ok(())
}

/// A variant's own weights, and what making them took when their memory had been there before.
fn materialised(bench: &mut Bench, part: &str, network: &GpuNetwork) -> Result<(GpuNetwork, Took)> {
    let one = || -> Result<(GpuNetwork, f64)> {
        let start = Instant::now();
        let single = network.materialise(&Mix::single(VariantId(0)))?;
        Ok((single, since(start, &*bench.gpu)?))
    };
    let (_, first) = one()?;
    let (_, wall) = one()?;
    bench.meter.start(Mode::Launches);
    let (single, _) = one()?;
    let device = bench.meter.launches().iter().map(|(_, took, _)| took).sum();
    bench.meter.start(Mode::Off);
    let figures = [
        ("first, wall ms", first),
        ("wall ms", wall),
        ("device ms", device),
    ];
    bench
        .report
        .line(part, "making another variant's weights", &figures);
    Ok((single, Took { wall, device }))
}

/// `switch`: what materialising takes.
fn figures_of(took: &Took, alone: &Took, banks: usize, switch: &Took) -> [(&'static str, f64); 7] {
    [
        ("wall µs", 1e3 * took.wall),
        ("device µs", 1e3 * took.device),
        ("wall ratio", alone.wall / took.wall),
        ("device ratio", alone.device / took.device),
        ("roofline", 16.0 / (16.0 + TILE_BITS * banks as f64)),
        // Of a variant's steps, from which on materialising is faster; infinite where it never is.
        (
            "switch pays, wall",
            switch.wall / (took.wall - alone.wall).max(0.0),
        ),
        (
            "switch pays, device",
            switch.device / (took.device - alone.device).max(0.0),
        ),
    ]
}
