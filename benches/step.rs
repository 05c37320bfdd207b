//! One evaluation of sixteen sequences of eight tokens, with sixty-four in the cache and one row of logits wanted of each: by a
//! tiny network and by one of the compiled-in model's size, of random weights; from the base, from one variant, from four of
//! one bank and of four banks; from coded variants, with and without a low-rank part: one, ten, and one for each sequence. A
//! materialised variant takes what the base takes.

use choir::model::{
    BaseWeights, Batch, Denoiser, DitConfig, HostNetwork, Mix, PageId, Segment, ServedBank,
    VariantId, VariantWeights,
};
use choir::ops::coded::{Code, Kept, LowRank, Nibbles, Rate};
use choir::ops::quantized::Quantisation;
use choir::rng::{Key, Stream};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use half::bf16;
use std::sync::Arc;
use std::time::Duration;

const SEQUENCES: usize = 16;
const BLOCK: usize = 8;
/// Positions in the cache, in pages of sixteen.
const CACHED: usize = 64;
const PAGES: u32 = 4;
/// Of superposed variants, whose numbers come first; those of coded ones follow.
const BANKS: usize = 4;
/// Variants to a bank; those of bank b are 4 b to 4 b + 3.
const CAPACITY: usize = 4;

fn config(hidden_dim: usize, n_blocks: usize, vocab_size: usize) -> DitConfig {
    DitConfig {
        model_type: "bd3lm".into(),
        vocab_size,
        model_length: 256,
        hidden_dim,
        cond_dim: 32,
        n_blocks,
        n_heads: hidden_dim / 64,
        block_size: Some(BLOCK),
        cross_attn: true,
        time_conditioning: None,
        states: None,
    }
}

fn network(config: &DitConfig) -> HostNetwork {
    let mut stream = Stream::new(Key::derive(&[b"bench"]));
    let mut noise = |count: usize, size: f64| {
        (0..count)
            .map(|_| (size * stream.normal()) as f32)
            .collect::<Vec<f32>>()
    };
    let tensors = config.tensors();
    let dense = tensors.iter().map(|(name, shape)| {
        let count = shape.iter().product();
        (name.clone(), (shape.clone(), noise(count, 0.05)))
    });
    let dense = dense.collect();
    let matrices: Vec<(String, [usize; 2])> = (tensors.iter())
        .filter_map(|(name, shape)| Some((name.clone(), <[usize; 2]>::try_from(&shape[..]).ok()?)))
        .collect();
    let banks: Vec<Arc<ServedBank>> = (0..BANKS)
        .map(|_| {
            let all = matrices
                .iter()
                .map(|(name, [out, input])| (name.clone(), *out, *input, noise(out * input, 1.0)));
            Arc::new(ServedBank::build(Quantisation::Q2K, all.collect::<Vec<_>>()).expect("a bank"))
        })
        .collect();
    let variants = (0..BANKS * CAPACITY).map(|index| VariantWeights {
        seed: index as u64,
        scale: 1.0,
        banks: vec![index / CAPACITY],
        gains: matrices
            .iter()
            .map(|(name, [out, _])| (name.clone(), vec![0.01; *out]))
            .collect(),
        kept: Default::default(),
        vectors: Default::default(),
    });
    let coded = (0..2 * SEQUENCES).map(|index| {
        let low_rank = index < SEQUENCES;
        let matrices = matrices.iter();
        VariantWeights {
            seed: index as u64,
            scale: 1.0,
            banks: Vec::new(),
            gains: Default::default(),
            kept: matrices
                .map(|(name, shape)| (name.clone(), kept(name, *shape, low_rank)))
                .collect(),
            vectors: Default::default(),
        }
    });
    let base = Arc::new(
        BaseWeights::new(config.architecture().expect("a network"), &dense).expect("a base"),
    );
    let variants = variants.chain(coded);
    HostNetwork::new(base, &banks, variants.collect()).expect("a network")
}

/// A matrix at the default rates: half a bit, with a quarter of a bit in factors where that is asked for; the embedding one bit, the
/// head two. Any bits are a code.
fn kept(name: &str, [out, input]: [usize; 2], low_rank: bool) -> Kept {
    let (rate, rank) = match name {
        name if name.contains("vocab_embed") => (Rate::One, 0),
        name if name.starts_with("output_layer.linear") => (Rate::Two, 0),
        _ => (Rate::Half, out * input / 16 / (out + input)),
    };
    let bytes = |count: usize| {
        let byte = |at: usize| (at * 167 % 251) as u8;
        (0..count).map(byte).collect::<Vec<u8>>()
    };
    let (used, row) = (rate.row_bits(input) % 8, rate.row_bytes(input));
    let mut stream = bytes(out * row);
    for row in stream.chunks_mut(row).filter(|_| used > 0) {
        *row.last_mut().expect("a byte") &= (1 << used) - 1;
    }
    let factors = LowRank::Nibbles(Nibbles {
        scales: vec![1e-5; rank],
        a: bytes(rank * input.div_ceil(2)),
        b: bytes(rank * out.div_ceil(2)),
    });
    Kept::Coded {
        code: Code::new(rate, [out, input], stream).expect("a code"),
        gains: vec![bf16::from_f32(1e-4); out],
        low_rank: (low_rank && rank > 0).then_some(factors),
    }
}

/// One block of each sequence, which takes turns with the variants.
fn batch(variants: &[u32]) -> Batch {
    let segment = |index: usize| Segment {
        mix: match variants {
            [] => Mix::base(),
            _ => Mix::single(VariantId(variants[index % variants.len()])),
        },
        block: Some(BLOCK),
        phase: 0,
        sigma: 0.0,
        tokens: (0..BLOCK as u32).collect(),
        first_position: CACHED,
        clean: 0,
        rows: vec![index % BLOCK],
        draws: Vec::new(),
        pages: (0..PAGES)
            .map(|page| PageId(page + index as u32 * PAGES))
            .collect(),
        pages_start: 0,
    };
    Batch {
        segments: (0..SEQUENCES).map(segment).collect(),
    }
}

fn steps(criterion: &mut Criterion) {
    let sizes = [
        ("tiny", config(64, 2, 256)),
        ("compiled-in", config(256, 3, 1024)),
    ];
    for (name, config) in sizes {
        let network = network(&config);
        let mut cache = network
            .cache(16.into(), SEQUENCES * PAGES as usize)
            .expect("a cache");
        let mut group = criterion.benchmark_group(format!("step, {name}"));
        group.warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        group.sample_size(20);
        let coded = |count: usize| (16..16 + count as u32).collect::<Vec<u32>>();
        let code_alone = |count: usize| (32..32 + count as u32).collect::<Vec<u32>>();
        let mixes: [(&str, Vec<u32>); 10] = [
            ("base", vec![]),
            ("1 variant", vec![0]),
            ("4 of 1 bank", vec![0, 1, 2, 3]),
            ("4 of 4 banks", vec![0, 4, 8, 12]),
            ("1 coded", coded(1)),
            ("10 coded", coded(10)),
            ("16 coded", coded(16)),
            ("1 coded, no low rank", code_alone(1)),
            ("10 coded, no low rank", code_alone(10)),
            ("16 coded, no low rank", code_alone(16)),
        ];
        for (label, variants) in mixes {
            let batch = batch(&variants);
            group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
                bencher.iter(|| network.forward(&batch, &mut cache));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
