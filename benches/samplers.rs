//! One row of logits to one token, with and without cuts, and one step of whole sequences: what a step does beside the network.

use choir::rng::{Key, Stream};
use choir::sampler::{
    AbsorbingPredictor, Crossing, Filter, FilterWorkspace, Sampler, UniformPredictor,
    UniformSampler, UniformSettings,
};
use choir::sampler::{BlockSampler, BlockSettings};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// Of the published tokenizers, the mask included.
const VOCAB: usize = 50_258;
/// Positions of a whole sequence.
const LENGTH: usize = 64;

/// Logits as flat as an untrained network's, or with a few tokens far above the rest.
fn logits(rows: usize, spread: f64) -> Vec<f32> {
    let mut stream = Stream::new(Key::derive(&[b"bench"]));
    (0..rows * VOCAB)
        .map(|_| (spread * stream.normal()) as f32)
        .collect()
}

fn rows(criterion: &mut Criterion) {
    let plain = Filter {
        temperature: 1.0,
        top_k: None,
        nucleus_p: 1.0,
        crossing: Crossing::Kept,
        forbidden: None,
    };
    let filters = [
        ("plain", plain),
        (
            "nucleus",
            Filter {
                nucleus_p: 0.9,
                ..plain
            },
        ),
        (
            "top-k",
            Filter {
                top_k: Some(50),
                ..plain
            },
        ),
    ];
    let mut group = criterion.benchmark_group("row");
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(VOCAB as u64));
    for (shape, spread) in [("flat", 0.5), ("peaked", 4.0)] {
        let logits = logits(1, spread);
        let mut workspace = FilterWorkspace::default();
        for (name, filter) in filters {
            group.bench_function(format!("{name}, {shape}"), |bencher| {
                bencher.iter(|| filter.distribution(&logits, &mut workspace).draw(0.5));
            });
        }
    }
    group.finish();
}

fn steps(criterion: &mut Criterion) {
    let uniform = UniformSettings {
        block_size: None,
        max_tokens: LENGTH,
        predictor: UniformPredictor::default(),
        temperature: 1.0,
        nucleus_p: 1.0,
        top_k: None,
        stop_ids: Vec::new(),
        vocab_size: VOCAB,
        time_conditioned: true,
        prefill_chunk: LENGTH,
    };
    let predictor = AbsorbingPredictor::Ancestral { steps: 2 };
    let block = BlockSettings::new(LENGTH, LENGTH, predictor, VOCAB as u32 - 1, VOCAB);
    let samplers = [
        (
            "uniform",
            UniformSampler::new(uniform, &[], 1).map(Sampler::Uniform),
        ),
        (
            "absorbing, half a block",
            BlockSampler::new(block, &[], 1).map(Sampler::Block),
        ),
    ];
    let logits = logits(LENGTH, 4.0);
    let mut group = criterion.benchmark_group("step");
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(1));
    group.sample_size(20);
    for (name, sampler) in samplers {
        let Ok(mut sampler) = sampler else { continue };
        let count = sampler.next().rows.len();
        let rows: Vec<&[f32]> = logits.chunks(VOCAB).take(count).collect();
        group.throughput(Throughput::Elements((count * VOCAB) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || sampler.clone(),
                |mut sampler| sampler.accept(&rows),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, rows, steps);
criterion_main!(benches);
