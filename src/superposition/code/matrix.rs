//! One matrix in a code: what is encoded and given a gain for each row, and what it stands for.

use half::bf16;
use rayon::prelude::*;

use super::viterbi::{LANES, Room, Trellis};
use crate::ops::coded::{Code, Rate};

/// The nearest code of the rotated delta `rows` of `cols` elements, and the gains that let each row's own part come back
/// whole: g = |u|² / <q, u>. The least-squares gain <q, u> / |q|² would shrink what is kept.
pub(super) fn encode(rotated: &[f32], cols: usize, rate: Rate) -> (Code, Vec<bf16>) {
    let (rows, row_bytes) = (rotated.len() / cols, rate.row_bytes(cols));
    let (mut stream, mut gains) = (vec![0; rows * row_bytes], vec![bf16::ZERO; rows]);
    let trellis = Trellis::new(rate);
    let blocks = (rotated.par_chunks(LANES * cols))
        .zip(stream.par_chunks_mut(LANES * row_bytes))
        .zip(gains.par_chunks_mut(LANES));
    blocks.for_each_init(Room::default, |room, ((rotated, stream), gains)| {
        let mut even = rotated.to_vec();
        for row in even.chunks_exact_mut(cols) {
            let variance = squares(row) / cols as f64;
            let scale = if variance > 0.0 {
                variance.sqrt().recip()
            } else {
                0.0
            };
            row.iter_mut()
                .for_each(|value| *value = (f64::from(*value) * scale) as f32);
        }
        trellis.encode(&even, cols, stream, room);
        let mut weights = vec![0; cols];
        let rows = stream
            .chunks_exact(row_bytes)
            .zip(rotated.chunks_exact(cols));
        for (gain, (stream, row)) in gains.iter_mut().zip(rows) {
            rate.decode(stream, &mut weights);
            let products = weights
                .iter()
                .zip(row)
                .map(|(q, u)| f64::from(*q) * f64::from(*u));
            let along: f64 = products.sum();
            if along > 0.0 {
                *gain = bf16::from_f64(squares(row) / along);
            }
        }
    });
    (Code::of(rate, [rows, cols], stream), gains)
}

/// Gains times code, still rotated.
pub(super) fn rotated(code: &Code, gains: &[bf16]) -> Vec<f32> {
    let cols = code.cols();
    let mut values = vec![0.0; code.rows() * cols];
    let rows = values.par_chunks_exact_mut(cols).zip(gains).enumerate();
    rows.for_each_init(
        || vec![0; cols],
        |weights, (row, (values, gain))| {
            code.decode_row(row, weights);
            for (value, weight) in values.iter_mut().zip(weights) {
                *value = gain.to_f32() * f32::from(*weight);
            }
        },
    );
    values
}

/// The power of what a code lacks of the rotated delta that it is of.
pub(super) fn lost(code: &Code, gains: &[bf16], rotated: &[f32]) -> f64 {
    let cols = code.cols();
    let rows = rotated.par_chunks_exact(cols).zip(gains).enumerate();
    let rows = rows.map_init(
        || vec![0; cols],
        |weights, (row, (values, gain))| {
            code.decode_row(row, weights);
            let apart = |(value, weight): (&f32, &i8)| {
                f64::from(value - gain.to_f32() * f32::from(*weight)).powi(2)
            };
            values.iter().zip(weights.iter()).map(apart).sum::<f64>()
        },
    );
    rows.collect::<Vec<_>>().into_iter().sum()
}

/// The sum of all squares, by pieces, so that it does not depend on threads.
pub(super) fn power(values: &[f32]) -> f64 {
    let pieces = values.par_chunks(1 << 16).map(squares);
    pieces.collect::<Vec<_>>().into_iter().sum()
}

pub(super) fn squares(values: &[f32]) -> f64 {
    let square = |value: &f32| f64::from(*value) * f64::from(*value);
    values.iter().map(square).sum()
}
