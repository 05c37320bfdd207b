//! Two thin factors: what is large and few in a delta.

use rayon::prelude::*;

use super::svd::{Singular, leading};
use crate::ops::coded::Nibbles;

/// The largest rank whose factors take at most `bits` for each weight of the matrix.
pub(super) fn rank_of(bits: f64, [rows, cols]: [usize; 2]) -> usize {
    let rank = bits / 8.0 * (rows * cols) as f64 / bytes_of(1, [rows, cols]) as f64;
    (rank as usize).min(rows.min(cols))
}

/// The bytes of factors in four bits, each direction with its scale.
pub(super) fn bytes_of(rank: usize, [rows, cols]: [usize; 2]) -> usize {
    rank * (rows.div_ceil(2) + cols.div_ceil(2) + size_of::<f32>())
}

/// What one direction is worth.
pub(super) struct Direction {
    /// By how much it lessens the power of what is left, rounded as it is.
    pub saved: f64,
    /// The power of the matrix along it.
    pub power: f64,
}

/// The leading directions of the rotated matrix [rows, cols], the largest first.
pub(super) fn encode(
    rotated: &[f32],
    [rows, cols]: [usize; 2],
    rank: usize,
) -> (Nibbles, Vec<Direction>) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let (mut scales, mut directions) = (Vec::new(), Vec::new());
    for Singular { value, left, right } in leading(rotated, [rows, cols], rank) {
        let (of_right, of_left) = (sixteen(&right), sixteen(&left));
        // A rounded vector is longer or shorter along the true one; the scale makes good for both, so that nothing of the
        // direction is merely missing.
        let scale = (value / (of_right.along * of_left.along)) as f32;
        let s = f64::from(scale);
        directions.push(Direction {
            saved: 2.0 * s * value * of_right.along * of_left.along
                - s * s * of_right.power * of_left.power,
            power: value * value,
        });
        a.extend(of_right.bytes);
        b.extend(of_left.bytes);
        scales.push(scale);
    }
    (Nibbles { scales, a, b }, directions)
}

/// The first `rank` of the directions of a matrix [rows, cols]; `None` of rank 0.
pub(super) fn first(
    mut nibbles: Nibbles,
    rank: usize,
    [rows, cols]: [usize; 2],
) -> Option<Nibbles> {
    nibbles.scales.truncate(rank);
    nibbles.a.truncate(rank * cols.div_ceil(2));
    nibbles.b.truncate(rank * rows.div_ceil(2));
    (rank > 0).then_some(nibbles)
}

/// Adds the factors' product to `values` [rows, cols].
pub(super) fn add(nibbles: &Nibbles, cols: usize, values: &mut [f32]) {
    let out = values.len() / cols;
    let rows = values.par_chunks_exact_mut(cols).enumerate();
    rows.for_each(|(row, values)| {
        for (rank, scale) in nibbles.scales.iter().enumerate() {
            let b = scale * f32::from(Nibbles::number(&nibbles.b, out, rank, row));
            for (col, value) in values.iter_mut().enumerate() {
                let a = Nibbles::number(&nibbles.a, cols, rank, col);
                *value = f32::from(a).mul_add(b, *value);
            }
        }
    });
}

/// A vector of length 1 in sixteen levels.
struct Sixteen {
    bytes: Vec<u8>,
    /// <numbers, vector>.
    along: f64,
    /// |numbers|².
    power: f64,
}

/// Of a few scales, which let the largest element reach less and less of the last level, the one whose levels have the
/// smallest angle to the vector.
fn sixteen(vector: &[f64]) -> Sixteen {
    let largest = vector
        .iter()
        .fold(0f64, |most, value| most.max(value.abs()));
    let try_part = |part: f64| {
        let scale = (largest * part / 7.5).max(f64::MIN_POSITIVE);
        let level = |value: &f64| (value / scale).floor().clamp(-8.0, 7.0);
        let (mut bytes, mut along, mut power) = (vec![0; vector.len().div_ceil(2)], 0.0, 0.0);
        for (i, value) in vector.iter().enumerate() {
            let level = level(value);
            bytes[i / 2] |= ((level as i8 + 8) as u8) << (i % 2 * 4);
            let number = 2.0 * level + 1.0;
            along += number * value;
            power += number * number;
        }
        Sixteen {
            bytes,
            along,
            power,
        }
    };
    let nearer = |best: Sixteen, next: Sixteen| match next.along * next.along * best.power
        > best.along * best.along * next.power
    {
        true => next,
        false => best,
    };
    [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
        .into_iter()
        .map(try_part)
        .fold(try_part(1.0), nearer)
}
