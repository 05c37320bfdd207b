//! Products of few rows with one matrix, in every served form; candle's own `q4_K` product beside ours.

use candle_core::quantized::k_quants::{self, BlockQ4K, GgmlType};
use choir::ops::quantized::{Form, Served};
use choir::rng::{Key, Stream};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

fn noise(count: usize) -> Vec<f32> {
    let mut stream = Stream::new(Key::derive(&[b"bench"]));
    (0..count).map(|_| stream.normal() as f32).collect()
}

fn products(criterion: &mut Criterion) {
    for (out, input) in [(768, 256), (3072, 768)] {
        let weights = noise(out * input);
        let mut group = criterion.benchmark_group(format!("{out}x{input}"));
        group.warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_secs(1));
        group.sample_size(20);
        let per_row = input / BlockQ4K::BLCK_SIZE;
        let mut blocks = vec![BlockQ4K::zeros(); out * per_row];
        for (blocks, weights) in blocks.chunks_mut(per_row).zip(weights.chunks(input)) {
            BlockQ4K::from_float(weights, blocks);
        }
        for rows in [1, 4, 16, 64, 128] {
            let x = noise(rows * input);
            let mut y = vec![0f32; rows * out];
            group.throughput(Throughput::Elements(2 * (rows * out * input) as u64)); // floating-point operations
            for form in [Form::F32, Form::Q4K] {
                let Ok(matrix) = Served::new(&weights, out, input, form) else {
                    continue;
                };
                group.bench_function(BenchmarkId::new(form.to_string(), rows), |bencher| {
                    bencher.iter(|| matrix.product(&x, rows, &mut y));
                });
            }
            group.bench_function(BenchmarkId::new("q4k-candle", rows), |bencher| {
                bencher.iter(|| k_quants::matmul((rows, input, out), &x, &blocks, &mut y));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
