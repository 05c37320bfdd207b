//! Products of few rows in every form, beside candle's, at the published small configuration's shapes: GFLOP to a second of
//! processor time, medians of rounds in which all take turns. Processor time does not count what other processes take; it
//! is a thread's rate where there is one:
//!
//!     RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 cargo bench --bench forms [-- OUTxIN ...]

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use choir::ops::coded::{Code, Kept, LowRank, Nibbles, OwnMatrix, Rate, RowShare, add_own};
use choir::ops::quantized::{Quantisation, QuantizedMatrix};
use choir::transform::Rotation;
use half::bf16;
use timing::{Product, noise, rates};

mod timing;

const SHAPES: [(usize, usize); 4] = [(2304, 768), (3072, 768), (768, 3072), (50258, 768)];
const ROWS: [usize; 5] = [1, 4, 16, 64, 256];
const ROUNDS: usize = 7;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    // In a thread of the pool, as the engine is: a call from outside waits for one to wake up.
    rayon::scope(|_| measure(&wanted));
}

/// Any bits are a code, and any nibbles factors.
fn coded(rate: Rate, rank: usize, [out, input]: [usize; 2]) -> OwnMatrix {
    let bytes = |count: usize| {
        (0..count)
            .map(|at| (at * 167 % 251) as u8)
            .collect::<Vec<u8>>()
    };
    let (used, row) = (rate.row_bits(input) % 8, rate.row_bytes(input));
    let mut stream = bytes(out * row);
    for row in stream.chunks_mut(row).filter(|_| used > 0) {
        *row.last_mut().expect("a byte") &= (1 << used) - 1;
    }
    let factors = Nibbles {
        scales: vec![1.0; rank],
        a: bytes(rank * input.div_ceil(2)),
        b: bytes(rank * out.div_ceil(2)),
    };
    let kept = Kept::Coded {
        code: Code::new(rate, [out, input], stream).expect("a code"),
        gains: vec![bf16::ONE; out],
        low_rank: (rank > 0).then_some(LowRank::Nibbles(factors)),
    };
    let rotation = Rotation::new(1, "matrix", input);
    OwnMatrix::new(&kept, [out, input], rotation, 1.0).expect("what fits")
}

fn measure(wanted: &[String]) {
    for (out, input) in SHAPES {
        let shape = format!("{out}x{input}");
        if !wanted.is_empty() && !wanted.contains(&shape) {
            continue;
        }
        let weights = noise(out * input);
        let mut contenders: Vec<(String, Product)> = Vec::new();
        for form in Quantisation::ALL {
            let matrix = QuantizedMatrix::new(&weights, out, input, form).expect("matrix");
            let product = move |x: &[f32], rows: usize, y: &mut [f32]| {
                matrix.product(x, rows, y).expect("product")
            };
            contenders.push((form.to_string(), Box::new(product)));
        }
        let rank = out * input / 16 / (out + input); // a quarter of a bit in four-bit factors
        let kinds = Rate::ALL.map(|rate| (rate, 0));
        for (rate, rank) in kinds.into_iter().chain([(Rate::Half, rank)]) {
            let matrix = coded(rate, rank, [out, input]);
            let product = move |x: &[f32], rows: usize, y: &mut [f32]| {
                let shares = (0..rows).map(|row| RowShare { row, weight: 1.0 });
                add_own(&[(&matrix, shares.collect())], x, y).expect("product")
            };
            let low_rank = if rank > 0 { ", low rank" } else { "" };
            contenders.push((format!("coded {rate}{low_rank}"), Box::new(product)));
        }
        let dense = Tensor::from_slice(&weights, (out, input), &Device::Cpu).expect("tensor");
        let tensor = move |x: &[f32], rows: usize| {
            Tensor::from_slice(x, (rows, input), &Device::Cpu).expect("x")
        };
        for form in [GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q2K] {
            let matrix = QMatMul::from_qtensor(QTensor::quantize(&dense, form).expect("blocks"))
                .expect("matrix");
            let product = move |x: &[f32], rows: usize, _y: &mut [f32]| {
                matrix.forward(&tensor(x, rows)).expect("product");
            };
            contenders.push((format!("candle {form:?}"), Box::new(product)));
        }
        let transposed = dense.t().expect("transpose");
        let product = move |x: &[f32], rows: usize, _y: &mut [f32]| {
            tensor(x, rows).matmul(&transposed).expect("product");
        };
        contenders.push(("candle F32".to_owned(), Box::new(product)));

        println!(
            "\n| {shape} | {} |",
            ROWS.map(|rows| rows.to_string()).join(" | ")
        );
        println!("|---{}|", "|---".repeat(ROWS.len()));
        let (names, products): (Vec<String>, Vec<Product>) = contenders.into_iter().unzip();
        let mut lines: Vec<String> = names.iter().map(|name| format!("| {name}")).collect();
        for rows in ROWS {
            for (line, rate) in lines
                .iter_mut()
                .zip(rates(&products, (out, input, rows), ROUNDS))
            {
                *line += &format!(" | {rate:.0}");
            }
        }
        for line in lines {
            println!("{line} |");
        }
    }
}
