//! Matrix products at a network's own shapes, beside candle's: what a time per step is to be compared by.

use super::median;
use anyhow::Result;
use candle_core::{Device, Tensor};
use choir::model::DitConfig;
use choir::ops::packed::Packed;
use choir::rng::{Key, Stream};
use serde::Serialize;
use std::time::Instant;

/// y [rows, out] = x [rows, in] W^T in f32, in 10^9 floating-point operations per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rate {
    pub out: usize,
    pub input: usize,
    pub rows: usize,
    pub ours: f64,
    pub candle: f64,
}

/// Products to a measurement, of which the median counts.
const RUNS: usize = 5;

/// Rates of the four large matrices of a layer and of the head.
pub fn rates(config: &DitConfig, rows: &[usize]) -> Result<Vec<Rate>> {
    let (h, v) = (config.hidden_dim, config.vocab_size);
    let mut rates = Vec::new();
    for (out, input) in [(3 * h, h), (4 * h, h), (h, 4 * h), (v, h)] {
        let weights = noise(out * input);
        let packed = Packed::new(&weights, out, input);
        let matrix = Tensor::from_vec(weights, (out, input), &Device::Cpu)?.t()?;
        for &rows in rows {
            let x = noise(rows * input);
            let mut y = vec![0f32; rows * out];
            let ours = gflops(rows * out * input, || {
                packed.product(&x, rows, &mut y);
                Ok(())
            })?;
            let x = Tensor::from_vec(x, (rows, input), &Device::Cpu)?;
            let candle = gflops(rows * out * input, || {
                x.matmul(&matrix)?;
                Ok(())
            })?;
            rates.push(Rate {
                out,
                input,
                rows,
                ours,
                candle,
            });
        }
    }
    Ok(rates)
}

fn gflops(multiplications: usize, mut product: impl FnMut() -> Result<()>) -> Result<f64> {
    product()?; // the first one pays for memory that is not there yet
    let mut seconds = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = Instant::now();
        product()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(2e-9 * multiplications as f64 / median(seconds))
}

fn noise(count: usize) -> Vec<f32> {
    let mut stream = Stream::new(Key::derive(&[b"choir/bench/products"]));
    (0..count).map(|_| stream.uniform() as f32 - 0.5).collect()
}
