//! Our f32 product beside those of crates, called directly, each with the weights as they come, [out, in], and turned round,
//! whichever is faster: GFLOP a second of processor time, medians of rounds in which all take turns. With two threads each
//! crate's takes half of the outputs, and the rate is both threads'. Few rows read every weight for little work: their roof
//! is a plain read of as much memory.
//!
//!     cargo bench --bench gemm [-- OUTxIN ...]

#![allow(unsafe_code, reason = "the crates take pointers")]

use choir::ops::packed::Packed;
use rayon::prelude::*;
use timing::{Product, noise, rates};

mod timing;

const SHAPES: [(usize, usize); 6] = [
    (2304, 768),
    (768, 3072),
    (50258, 768),
    (768, 256),
    (1024, 256),
    (256, 1024),
];
const ROWS: [usize; 6] = [1, 4, 16, 64, 256, 1024];
const ROUNDS: usize = 5;

/// A matrix [out, in] somewhere in memory, and how far apart its outputs and its inputs lie.
#[derive(Clone, Copy)]
struct Weights {
    data: *const f32,
    output: isize,
    input: isize,
}

/// What a crate has: y [rows, out], with rows `stride` apart, of x [rows, in].
type Gemm =
    unsafe fn(shape: [usize; 3], x: *const f32, weights: Weights, y: *mut f32, stride: isize);

/// # Safety
/// The pointers reach as far as the shape and the strides say.
unsafe fn gemm(
    [rows, out, input]: [usize; 3],
    x: *const f32,
    w: Weights,
    y: *mut f32,
    stride: isize,
) {
    let (none, k) = (gemm::Parallelism::None, input as isize);
    // SAFETY: the caller's.
    unsafe {
        #[rustfmt::skip]
        gemm::gemm(
            rows, out, input, y, 1, stride, false, x, 1, k, w.data, w.output, w.input, 0.0, 1.0, false, false, false, none,
        );
    }
}

/// # Safety
/// As [`gemm`].
unsafe fn matrixmultiply(
    [rows, out, input]: [usize; 3],
    x: *const f32,
    w: Weights,
    y: *mut f32,
    stride: isize,
) {
    let k = input as isize;
    // SAFETY: the caller's.
    unsafe {
        #[rustfmt::skip]
        matrixmultiply::sgemm(rows, input, out, 1.0, x, k, 1, w.data, w.input, w.output, 0.0, y, stride, 1);
    }
}

/// # Safety
/// As [`gemm`].
#[cfg(target_arch = "x86_64")]
unsafe fn faer(
    [rows, out, input]: [usize; 3],
    x: *const f32,
    w: Weights,
    y: *mut f32,
    stride: isize,
) {
    use private_gemm_x86::{Accum, DType, DstKind, IType, InstrSet, gemm};
    use std::ptr::null;
    let k = input as isize;
    let set = match is_x86_feature_detected!("avx512f") {
        true => InstrSet::Avx512,
        false => InstrSet::Avx256,
    };
    // SAFETY: the caller's.
    unsafe {
        #[rustfmt::skip]
        gemm(
            DType::F32, IType::U64, set, rows, out, input, y.cast(), stride, 1, null(), null(), DstKind::Full, Accum::Replace,
            x.cast(), k, 1, false, null(), 0, w.data.cast(), w.input, w.output, false, (&raw const ONE).cast(), 1,
        );
    }
}

static ONE: f32 = 1.0;

/// The crates' versions are in Cargo.lock; the last is what faer multiplies with.
const CRATES: &[(&str, Gemm)] = &[
    ("gemm", gemm),
    ("matrixmultiply", matrixmultiply),
    #[cfg(target_arch = "x86_64")]
    ("private-gemm-x86", faer),
];

/// Addresses that tasks share.
#[derive(Clone, Copy)]
struct Shared(Weights, *mut f32);
// SAFETY: tasks only read the weights, and each writes outputs of its own.
unsafe impl Sync for Shared {}

/// A crate's product, `threads` tasks with as many outputs each; weights lie as [out, in] or as [in, out].
fn product<'a>(
    gemm: Gemm,
    weights: &'a [f32],
    (out, input): (usize, usize),
    turned: bool,
    threads: usize,
) -> Product<'a> {
    let (output, step) = if turned { (1, out) } else { (input, 1) };
    Box::new(move |x, rows, y| {
        assert!(x.len() == rows * input && y.len() == rows * out && weights.len() == out * input);
        let all = Weights {
            data: weights.as_ptr(),
            output: output as isize,
            input: step as isize,
        };
        let shared = Shared(all, y.as_mut_ptr());
        let share = out.div_ceil(threads);
        (0..threads)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| {
                let Shared(all, y) = { &shared };
                let first = task * share;
                let own = Weights {
                    data: all.data.wrapping_add(first * output),
                    ..*all
                };
                let shape = [rows, share.min(out - first), input];
                // SAFETY: the outputs from `first` on of matrices whose sizes were checked.
                unsafe { gemm(shape, x.as_ptr(), own, y.wrapping_add(first), out as isize) };
            });
    })
}

/// Adds weights up, which is to read them once.
fn read(weights: &[f32]) -> f32 {
    let sums = weights.chunks(1 << 14).map(|part| {
        let (lines, _) = part.as_chunks::<64>();
        let mut sums = [0f32; 64];
        for line in lines {
            sums.iter_mut()
                .zip(line)
                .for_each(|(sum, weight)| *sum += weight);
        }
        sums.iter().sum::<f32>()
    });
    sums.sum()
}

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        pool.install(|| measure(&wanted, threads));
    }
}

fn measure(wanted: &[String], threads: usize) {
    for (out, input) in SHAPES {
        let shape = format!("{out}x{input}");
        if !wanted.is_empty() && !wanted.contains(&shape) {
            continue;
        }
        // What the order of weights is does not matter.
        let weights = noise(out * input);
        let packed = Packed::new(&weights, out, input);
        let mut products: Vec<Product> = vec![
            Box::new(|_, _, _| {
                let share = weights.len().div_ceil(threads);
                std::hint::black_box(
                    weights
                        .par_chunks(share)
                        .with_max_len(1)
                        .map(read)
                        .sum::<f32>(),
                );
            }),
            Box::new(|x, rows, y| packed.product(x, rows, y)),
        ];
        for (_, gemm) in CRATES {
            for turned in [false, true] {
                products.push(product(*gemm, &weights, (out, input), turned, threads));
            }
        }
        let names = CRATES.iter().map(|(name, _)| *name);
        let names = ["choir"]
            .into_iter()
            .chain(names)
            .chain(["choir, of the best crate", "choir, of a plain read"]);
        let mut lines: Vec<String> = names.map(|name| format!("| {name}")).collect();
        for rows in ROWS {
            let rates = rates(&products, (out, input, rows), ROUNDS);
            let rates: Vec<f64> = rates
                .into_iter()
                .map(|rate| rate * threads as f64)
                .collect();
            let (roof, ours) = (rates[0], rates[1]);
            let crates: Vec<f64> = rates[2..]
                .chunks(2)
                .map(|both| both[0].max(both[1]))
                .collect();
            let best = crates.iter().copied().fold(0.0, f64::max);
            let cells = [ours]
                .into_iter()
                .chain(crates)
                .map(|rate| format!("{rate:.0}"));
            // A row's two operations for each of a weight's four bytes.
            let reading = match rows {
                1 | 4 => format!("{:.2} of {:.0} GB/s", ours / roof, 2.0 * roof / rows as f64),
                _ => String::new(),
            };
            let cells = cells.chain([format!("{:.2}", ours / best), reading]);
            for (line, cell) in lines.iter_mut().zip(cells) {
                *line += &format!(" | {cell}");
            }
        }
        println!(
            "\n| {shape}, {threads} thread(s) | {} |",
            ROWS.map(|rows| rows.to_string()).join(" | ")
        );
        println!("|---{}|", "|---".repeat(ROWS.len()));
        for line in lines {
            println!("{line} |");
        }
    }
}
