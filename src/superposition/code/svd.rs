//! The leading singular vectors of a matrix, by randomised subspace iteration (Halko, Martinsson and Tropp,
//! arXiv 0909.4061, algorithm 4.4) and Jacobi's eigenvalue method for the small problem that is left.
//!
//! Every sum is made in an order of its own, so that the result is the same on every machine and for any number of
//! threads: what is encoded behind it depends on its last bit.

use rayon::prelude::*;

use crate::rng::{Key, Stream};

/// Directions beyond those asked for, and how often the subspace is refined.
const SPARE: usize = 8;
const ROUNDS: usize = 3;

/// One singular value and its two vectors.
pub struct Singular {
    pub value: f64,
    /// [rows].
    pub left: Vec<f64>,
    /// [cols].
    pub right: Vec<f64>,
}

/// The `rank` largest singular values of `matrix` [rows, cols] and their vectors, as near as a few rounds bring them;
/// fewer where the matrix has fewer.
pub fn leading(matrix: &[f32], [rows, cols]: [usize; 2], rank: usize) -> Vec<Singular> {
    let width = (rank + SPARE).min(rows.min(cols));
    let mut stream = Stream::new(Key::derive(&[b"choir/singular/1"]));
    let mut right: Vec<f32> = (0..cols * width).map(|_| stream.normal() as f32).collect();
    let mut left = Vec::new();
    for _ in 0..ROUNDS {
        left = times(matrix, cols, &right, width);
        orthonormalise(&mut left, width);
        right = transposed_times(matrix, cols, &left, width);
        orthonormalise(&mut right, width);
    }
    // matrix ~= left · small, small [width, cols] = leftᵀ matrix.
    let small = transposed_times(matrix, cols, &left, width);
    let gram = gram(&small, width);
    let (values, vectors) = eigen(gram, width);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    let largest = values[order[0]];
    (order.into_iter().take(rank))
        .filter(|i| values[*i] > largest * 1e-10 && values[*i] > 0.0)
        .map(|i| {
            let value = values[i].sqrt();
            let vector: Vec<f64> = (0..width).map(|j| vectors[j * width + i]).collect();
            let mix = |thin: &[f32]| -> Vec<f64> {
                let row = |row: &[f32]| {
                    row.iter()
                        .zip(&vector)
                        .map(|(a, b)| f64::from(*a) * b)
                        .sum()
                };
                thin.chunks_exact(width).map(row).collect()
            };
            let right = mix(&small).iter().map(|x| x / value).collect();
            Singular {
                value,
                left: mix(&left),
                right,
            }
        })
        .collect()
}

/// matrix [rows, cols] · thin [cols, width].
fn times(matrix: &[f32], cols: usize, thin: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; matrix.len() / cols * width];
    let rows = out
        .par_chunks_exact_mut(width)
        .zip(matrix.par_chunks_exact(cols));
    rows.for_each(|(out, row)| {
        for (thin, x) in thin.chunks_exact(width).zip(row) {
            add(out, thin, *x);
        }
    });
    out
}

/// matrixᵀ [cols, rows] · thin [rows, width].
fn transposed_times(matrix: &[f32], cols: usize, thin: &[f32], width: usize) -> Vec<f32> {
    /// Columns that one task makes: a cache line of the matrix's rows.
    const PART: usize = 16;
    let mut out = vec![0.0; cols * width];
    let parts = out.par_chunks_mut(PART * width).enumerate();
    parts.for_each(|(part, out)| {
        for (row, thin) in matrix.chunks_exact(cols).zip(thin.chunks_exact(width)) {
            for (out, x) in out.chunks_exact_mut(width).zip(&row[part * PART..]) {
                add(out, thin, *x);
            }
        }
    });
    out
}

fn add(out: &mut [f32], from: &[f32], factor: f32) {
    for (out, from) in out.iter_mut().zip(from) {
        *out = from.mul_add(factor, *out);
    }
}

/// thinᵀ thin [width, width] for thin [rows, width].
fn gram(thin: &[f32], width: usize) -> Vec<f64> {
    let mut gram = vec![0.0; width * width];
    let rows = gram.par_chunks_exact_mut(width).enumerate();
    rows.for_each(|(i, out)| {
        for row in thin.chunks_exact(width) {
            let x = f64::from(row[i]);
            for (out, y) in out.iter_mut().zip(row) {
                *out += x * f64::from(*y);
            }
        }
    });
    gram
}

/// Makes the columns of `thin` [rows, width] orthonormal: by its Gram matrix's eigenvectors, which a matrix of too low a
/// rank does not stop. Twice, since the first time squares its condition.
fn orthonormalise(thin: &mut [f32], width: usize) {
    for _ in 0..2 {
        let (values, vectors) = eigen(gram(thin, width), width);
        let largest = values.iter().copied().fold(0.0, f64::max);
        let scale: Vec<f64> = (values.iter())
            .map(|value| match *value > largest * 1e-12 {
                true => 1.0 / value.sqrt(),
                false => 0.0,
            })
            .collect();
        thin.par_chunks_exact_mut(width).for_each(|row| {
            let mut out = vec![0.0; width];
            for (x, vectors) in row.iter().zip(vectors.chunks_exact(width)) {
                for (out, vector) in out.iter_mut().zip(vectors) {
                    *out += f64::from(*x) * vector;
                }
            }
            for ((x, out), scale) in row.iter_mut().zip(&out).zip(&scale) {
                *x = (out * scale) as f32;
            }
        });
    }
}

/// Eigenvalues and eigenvectors (by column) of a symmetric matrix, by cyclic Jacobi rotations.
fn eigen(mut matrix: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    let total: f64 = matrix.iter().map(|x| x * x).sum();
    for _ in 0..30 {
        let mut off = 0.0;
        for p in 0..n {
            for q in p + 1..n {
                let apq = matrix[p * n + q];
                off += apq * apq;
                if apq * apq <= total * 1e-32 {
                    continue;
                }
                let theta = (matrix[q * n + q] - matrix[p * n + p]) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (a, b) = (matrix[k * n + p], matrix[k * n + q]);
                    (matrix[k * n + p], matrix[k * n + q]) = (c * a - s * b, s * a + c * b);
                }
                for k in 0..n {
                    let (a, b) = (matrix[p * n + k], matrix[q * n + k]);
                    (matrix[p * n + k], matrix[q * n + k]) = (c * a - s * b, s * a + c * b);
                    let (a, b) = (vectors[k * n + p], vectors[k * n + q]);
                    (vectors[k * n + p], vectors[k * n + q]) = (c * a - s * b, s * a + c * b);
                }
            }
        }
        if off <= total * 1e-26 {
            break;
        }
    }
    ((0..n).map(|i| matrix[i * n + i]).collect(), vectors)
}
