//! What keeps variants: signs made and applied, a delta accumulated, an activation rotated, a delta read back as a matrix and
//! on the activations. One matrix of a published small network's size.

use choir::ops::quantized::{Quantisation, QuantizedMatrix, SignedRow, add_signed};
use choir::rng::{Key, Stream};
use choir::superposition::{Bank, Delta, NamedTensor, NamedTensors, Scheme, retrieve};
use choir::transform::{Side, Signs, Transform};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use std::collections::BTreeMap;
use std::time::Duration;

const NAME: &str = "blocks.0.mlp.0.weight";
const SHAPE: [usize; 2] = [3072, 768];
const SEED: u64 = 7;

fn noise(count: usize) -> Vec<f32> {
    let mut stream = Stream::new(Key::derive(&[b"bench"]));
    (0..count).map(|_| stream.normal() as f32).collect()
}

/// A fine-tune of one matrix.
fn delta() -> Delta {
    let (shape, base) = (SHAPE.to_vec(), noise(SHAPE[0] * SHAPE[1]));
    let tuned = base
        .iter()
        .zip(base.iter().rev())
        .map(|(base, other)| base + 0.02 * other);
    let tensors = |data| {
        let tensor = NamedTensor {
            shape: shape.clone(),
            data,
        };
        NamedTensors(BTreeMap::from([(NAME.to_owned(), tensor)]))
    };
    let tuned = tensors(tuned.collect());
    Delta::between(&tensors(base), &tuned).expect("a fine-tune")
}

fn transforms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transform");
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(700));
    let (mut matrix, mut row) = (noise(SHAPE[0] * SHAPE[1]), noise(SHAPE[1]));
    let transform = Transform::new(SEED, NAME, SHAPE);
    group.throughput(Throughput::Elements(SHAPE[1] as u64));
    group.bench_function("signs made", |bencher| {
        bencher.iter(|| Signs::new(SEED, NAME, Side::Input, SHAPE[1]));
    });
    group.bench_function("signs applied", |bencher| {
        bencher.iter(|| transform.input.apply(&mut row))
    });
    group.throughput(Throughput::Elements(matrix.len() as u64));
    group.bench_function("matrix", |bencher| {
        bencher.iter(|| transform.apply(&mut matrix))
    });
    group.finish();
}

fn superposition(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("superposition");
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(1));
    group.sample_size(20);
    group.throughput(Throughput::Elements((SHAPE[0] * SHAPE[1]) as u64));
    let delta = delta();
    let empty = Bank::new(4, Scheme::default(), [(NAME.to_owned(), SHAPE)]);
    group.bench_function("accumulate", |bencher| {
        bencher.iter_batched_ref(
            || empty.clone(),
            |bank| bank.accumulate(&delta, SEED),
            BatchSize::LargeInput,
        );
    });
    let mut bank = empty.clone();
    bank.accumulate(&delta, SEED).expect("room for one");
    let gains = delta.matrices[NAME].gains();
    group.bench_function("retrieve", |bencher| {
        bencher.iter(|| retrieve(&bank, NAME, SEED, &gains, 1.0))
    });
    group.finish();

    let mut group = criterion.benchmark_group("retrieve on activations");
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(1));
    group.sample_size(20);
    let served = QuantizedMatrix::new(
        &bank.dense(NAME).expect("held"),
        SHAPE[0],
        SHAPE[1],
        Quantisation::Q4K,
    )
    .expect("a matrix");
    let input = Signs::new(SEED, NAME, Side::Input, SHAPE[1]);
    let output: Vec<bf16> = gains.iter().map(|gain| bf16::from_f32(*gain)).collect();
    for rows in [1, 4, 16, 64] {
        let (x, mut y) = (noise(rows * SHAPE[1]), vec![0f32; rows * SHAPE[0]]);
        let part = |row| SignedRow {
            row,
            input: &input,
            output: &output,
            weight: 1.0,
        };
        let banks = [(&served, (0..rows).map(part).collect())];
        group.throughput(Throughput::Elements(
            (2 * rows * SHAPE[0] * SHAPE[1]) as u64,
        )); // floating-point operations
        group.bench_function(BenchmarkId::from_parameter(rows), |bencher| {
            bencher.iter(|| add_signed(&banks, &x, &mut y));
        });
    }
    group.finish();
}

criterion_group!(benches, transforms, superposition);
criterion_main!(benches);
