//! Products of few rows in every form, beside candle's, at the published small configuration's shapes: GFLOP to a second of
//! processor time, medians of rounds in which all take turns. Processor time does not count what other processes take; it
//! is a thread's rate where there is one:
//!
//!     RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 cargo bench --bench forms [-- OUTxIN ...]

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use choir::ops::quantized::{Form, Served};
use choir::rng::{Key, Stream};

const SHAPES: [(usize, usize); 4] = [(2304, 768), (3072, 768), (768, 3072), (50258, 768)];
const ROWS: [usize; 5] = [1, 4, 16, 64, 256];
const ROUNDS: usize = 7;
/// Seconds of one measurement, at least.
const LEAST: f64 = 0.01;

fn noise(count: usize) -> Vec<f32> {
    let mut stream = Stream::new(Key::derive(&[b"bench"]));
    (0..count).map(|_| stream.normal() as f32).collect()
}

/// Of rows of x, and how many they are.
type Product = Box<dyn Fn(&[f32], usize)>;

/// Seconds that this process has taken.
#[allow(unsafe_code, reason = "one call of the system")]
fn taken() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to `time` only.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Seconds for one product.
fn seconds(product: &dyn Fn(&[f32], usize), x: &[f32], rows: usize) -> f64 {
    let (start, mut count) = (taken(), 0u32);
    while count == 0 || taken() - start < LEAST {
        product(x, rows);
        count += 1;
    }
    (taken() - start) / f64::from(count)
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    // In a thread of the pool, as the engine is: a call from outside waits for one to wake up.
    rayon::scope(|_| measure(&wanted));
}

fn measure(wanted: &[String]) {
    for (out, input) in SHAPES {
        let shape = format!("{out}x{input}");
        if !wanted.is_empty() && !wanted.contains(&shape) {
            continue;
        }
        let weights = noise(out * input);
        let mut contenders: Vec<(String, Product)> = Vec::new();
        for form in Form::ALL {
            let matrix = Served::new(&weights, out, input, form).expect("matrix");
            let product = move |x: &[f32], rows: usize| {
                let mut y = vec![0f32; rows * out];
                matrix.product(x, rows, &mut y).expect("product");
            };
            contenders.push((form.to_string(), Box::new(product)));
        }
        let dense = Tensor::from_slice(&weights, (out, input), &Device::Cpu).expect("tensor");
        let tensor = move |x: &[f32], rows: usize| Tensor::from_slice(x, (rows, input), &Device::Cpu).expect("x");
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
