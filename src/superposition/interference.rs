//! How close a retrieved delta is to the true one. The rest, retrieved − true, is the interference of the other
//! variants in the bank.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use rayon::prelude::*;

use super::{Bank, Cells, Delta, DeltaMatrix, FixedTensor};
use crate::transform::Transform;

/// Inner products of a retrieved and a true delta; those of several tensors add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// <retrieved, true>
    pub dot: f64,
    /// <retrieved, retrieved>
    pub retrieved: f64,
    /// <true, true>
    pub truth: f64,
}

impl Moments {
    /// 1 where both are zero, 0 where one of them is.
    pub fn cosine(&self) -> f64 {
        match (self.retrieved > 0.0, self.truth > 0.0) {
            (true, true) => self.dot / (self.retrieved.sqrt() * self.truth.sqrt()),
            (false, false) => 1.0,
            _ => 0.0,
        }
    }

    /// ‖retrieved − true‖ / ‖true‖; 0 where both are zero.
    pub fn relative_error(&self) -> f64 {
        let squared = (self.retrieved - 2.0 * self.dot + self.truth).max(0.0);
        if squared == 0.0 {
            0.0
        } else {
            (squared / self.truth).sqrt()
        }
    }
}

impl AddAssign for Moments {
    fn add_assign(&mut self, other: Moments) {
        self.dot += other.dot;
        self.retrieved += other.retrieved;
        self.truth += other.truth;
    }
}

impl std::iter::Sum for Moments {
    fn sum<I: Iterator<Item = Moments>>(parts: I) -> Moments {
        parts.fold(Moments::default(), |mut sum, part| {
            sum += part;
            sum
        })
    }
}

/// Compares two deltas element by element.
pub fn similarity(retrieved: &[f32], truth: &[f32]) -> Moments {
    let products = retrieved.iter().zip(truth).map(|(r, t)| {
        let (r, t) = (f64::from(*r), f64::from(*t));
        Moments {
            dot: r * t,
            retrieved: r * r,
            truth: t * t,
        }
    });
    products.sum()
}

/// What [`similarity`] finds between the delta retrieved from `bank` and the true one, for every tensor of the
/// bank, without making either: in exact integers, a factor a row. `scale` gives c by tensor.
pub fn measure(
    bank: &Bank,
    delta: &Delta,
    seed: u64,
    scale: impl Fn(&str) -> f32 + Sync,
) -> BTreeMap<String, Moments> {
    let moments = |(name, fixed): (&String, &FixedTensor)| {
        let matrix = delta.matrices.get(name)?;
        let transform = bank.scheme.transform(seed, name, [fixed.rows, fixed.cols]);
        let gains = if bank.scheme.gains {
            matrix.gains()
        } else {
            vec![1.0; fixed.rows]
        };
        Some((
            name.clone(),
            of_tensor(fixed, matrix, &transform, scale(name), &gains),
        ))
    };
    bank.tensors.par_iter().filter_map(moments).collect()
}

fn of_tensor(
    fixed: &FixedTensor,
    delta: &DeltaMatrix,
    transform: &Transform,
    scale: f32,
    gains: &[f32],
) -> Moments {
    let rows = delta.values.chunks_exact(fixed.cols).enumerate();
    let row_moments = |(row, levels): (usize, &[i8])| {
        let range = row * fixed.cols..(row + 1) * fixed.cols;
        let signs = transform.input.words();
        let [dot, squares, truth] = match &fixed.cells {
            Cells::I16(cells) => products(&cells[range], levels, signs),
            Cells::I32(cells) => products(&cells[range], levels, signs),
        };
        let (gain, step) = (
            f64::from(scale * gains[row]) * fixed.quantum(),
            f64::from(delta.scales[row]),
        );
        let sign = f64::from(transform.output.sign(row));
        Moments {
            dot: sign * gain * step * dot,
            retrieved: gain * gain * squares,
            truth: step * step * truth,
        }
    };
    rows.map(row_moments).sum()
}

/// Of one row: sum r S q, sum S², sum q².
fn products<T: Copy + Into<i64>>(cells: &[T], levels: &[i8], words: &[u32]) -> [f64; 3] {
    let (mut dot, mut squares, mut truth) = (0i64, 0f64, 0i64);
    for ((cells, levels), word) in cells.chunks(32).zip(levels.chunks(32)).zip(words) {
        for (bit, (cell, level)) in cells.iter().zip(levels).enumerate() {
            let (cell, level): (i64, i64) = ((*cell).into(), (*level).into());
            let mask = -i64::from(word >> bit & 1);
            dot += cell * ((level ^ mask) - mask);
            truth += level * level;
            squares += (cell * cell) as f64;
        }
    }
    [dot as f64, squares, truth as f64]
}
