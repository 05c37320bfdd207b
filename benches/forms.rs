//! Products of few rows in every form, beside candle's: GFLOP/s at the published small configuration's shapes, medians of
//! rounds in which all take turns. `cargo bench --bench forms [-- OUTxIN ...]`

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use choir::ops::quantized::{Form, Served};
use choir::rng::{Key, Stream};
use std::time::Instant;

const SHAPES: [(usize, usize); 4] = [(2304, 768), (3072, 768), (768, 3072), (50258, 768)];
const ROWS: [usize; 5] = [1, 4, 16, 64, 256];
const ROUNDS: usize = 7;
/// Seconds of one measurement, at least.
const LEAST: f64 = 0.01;

fn noise(count: usize) -> Vec<f32> {
    let mut stream = Stream::new(Key::derive(&[b"bench"]));
    (0..count).map(|_| stream.normal() as f32).collect()
}

/// Seconds for one product.
fn seconds(product: &dyn Fn(&[f32], usize), x: &[f32], rows: usize) -> f64 {
    let (start, mut count) = (Instant::now(), 0u32);
    while count == 0 || start.elapsed().as_secs_f64() < LEAST {
        product(x, rows);
        count += 1;
    }
    start.elapsed().as_secs_f64() / f64::from(count)
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (out, input) in SHAPES {
        let shape = format!("{out}x{input}");
        if !wanted.is_empty() && !wanted.contains(&shape) {
            continue;
        }
        let weights = noise(out * input);
        let mut contenders: Vec<(String, Box<dyn Fn(&[f32], usize)>)> = Vec::new();
        for form in Form::ALL {
            let matrix = Served::new(&weights, out, input, form).expect("matrix");
            let product = move |x: &[f32], rows: usize| {
                let mut y = vec![0f32; rows * out];
                matrix.product(x, rows, &mut y).expect("product");
            };
            contenders.push((form.to_string(), Box::new(product)));
        }
        let dense = Tensor::from_slice(&weights, (out, input), &Device::Cpu).expect("tensor");
        let tensor = |x: &[f32], rows: usize| Tensor::from_slice(x, (rows, input), &Device::Cpu).expect("x");
        for form in [GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q2K] {
            let matrix = QMatMul::from_qtensor(QTensor::quantize(&dense, form).expect("blocks")).expect("matrix");
            let product = move |x: &[f32], rows: usize| {
                matrix.forward(&tensor(x, rows)).expect("product");
            };
            contenders.push((format!("candle {form:?}"), Box::new(product)));
        }
        let transposed = dense.t().expect("transpose");
        let product = move |x: &[f32], rows: usize| {
            tensor(x, rows).matmul(&transposed).expect("product");
        };
        contenders.push(("candle F32".to_owned(), Box::new(product)));

        println!("\n| {shape} | {} |", ROWS.map(|rows| rows.to_string()).join(" | "));
        println!("|---{}|", "|---".repeat(ROWS.len()));
        let mut lines: Vec<String> = contenders.iter().map(|(name, _)| format!("| {name}")).collect();
        for rows in ROWS {
            let x = noise(rows * input);
            let mut times = vec![Vec::new(); contenders.len()];
            for _ in 0..ROUNDS {
                for (times, (_, product)) in times.iter_mut().zip(&contenders) {
                    times.push(seconds(product, &x, rows));
                }
            }
            for (line, mut times) in lines.iter_mut().zip(times) {
                times.sort_by(f64::total_cmp);
                let rate = 2e-9 * (rows * out * input) as f64 / times[ROUNDS / 2];
                *line += &format!(" | {rate:.0}");
            }
        }
        for line in lines {
            println!("{line} |");
        }
    }
}
