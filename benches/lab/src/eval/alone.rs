//! Schemes that keep each variant by itself, all at about the bits that a code has by default.
//!
//! ```text
//! BitDelta          sign(d) · mean |d|, one mean to a matrix (arXiv 2402.10193), or one to a row
//! low rank          the leading directions of d, factors in 16 bits
//! mixed precision   more of them: the first in 8 bits, the next in 3, the others in 2, a scale to a vector (in the manner of
//!                   Delta-CoMe, arXiv 2406.08903)
//! codes             as a store keeps them, alone and with thin factors
//! ```

use super::subjects::{Subject, Subjects};
use super::trial::Comparison;
use anyhow::Result;
use choir::superposition::{BitDelta, CodedDelta, Encoding, NamedTensors, Plan, leading};
use std::collections::BTreeMap;

/// What each tensor is read back as; one that is not there is exact.
pub type Dense = BTreeMap<String, Vec<f32>>;

/// Keeps one variant; what it is read back as, and the bytes that takes.
pub fn keep(subjects: &Subjects, variant: &Subject, scheme: Comparison) -> Result<(Dense, usize)> {
    let delta = |name: &str| variant.delta.dense(name).unwrap_or_default();
    if let Comparison::Codes | Comparison::CodesAndFactors = scheme {
        return codes(subjects, variant, scheme == Comparison::CodesAndFactors);
    }
    let whole = |vectors: usize| {
        variant
            .delta
            .vectors
            .values()
            .map(|v| vectors * v.data.len())
            .sum::<usize>()
    };
    let mut bytes = whole(2);
    let mut kept = Dense::new();
    if scheme == Comparison::Bitdelta {
        let tuned = subjects.weights(|tensor| variant.delta.dense(tensor));
        let tuned: NamedTensors = tuned.into_iter().collect();
        let bits = BitDelta::between(&subjects.base, &tuned)?;
        for (name, matrix) in &bits.matrices {
            bytes += size_of_val(&matrix.negative[..]) + size_of_val(&matrix.mean);
            kept.extend(bits.dense(name).map(|dense| (name.clone(), dense)));
        }
        return Ok((kept, bytes));
    }
    for (name, matrix) in &variant.delta.matrices {
        let shape = [matrix.rows, matrix.cols];
        let (dense, taken) = match scheme {
            Comparison::BitdeltaRow => signs(&delta(name), shape),
            _ => low_rank(&delta(name), shape, scheme == Comparison::MixedRank),
        };
        bytes += taken;
        kept.insert(name.clone(), dense);
    }
    Ok((kept, bytes))
}

fn codes(subjects: &Subjects, variant: &Subject, low_rank: bool) -> Result<(Dense, usize)> {
    let network = subjects.config.architecture()?;
    let encoding = Encoding {
        plan: Plan {
            low_rank,
            at_least: true,
            ..Plan::of(Plan::BITS, network.roles())
        },
        ..Encoding::default()
    };
    let (base, shapes) = (subjects.base.digest(), subjects.base.shapes());
    let delta = |name: &str| Ok(variant.delta.dense(name).unwrap_or_default());
    let coded = CodedDelta::encode(base, &shapes, &encoding, delta)?;
    let dense = |name: &String| {
        let unchanged = || vec![0.0; shapes[name].iter().product()];
        (name.clone(), coded.dense(name).unwrap_or_else(unchanged))
    };
    Ok((shapes.keys().map(dense).collect(), coded.bytes()))
}

/// One bit a weight and one scale a row, in 16 bits.
fn signs(delta: &[f32], [rows, cols]: [usize; 2]) -> (Vec<f32>, usize) {
    let row = |row: &[f32]| {
        let mean = row.iter().map(|value| value.abs()).sum::<f32>() / cols as f32;
        row.iter()
            .map(|value| mean.copysign(*value))
            .collect::<Vec<_>>()
    };
    let dense = delta.chunks_exact(cols).flat_map(row).collect();
    (dense, rows * (cols.div_ceil(8) + 2))
}

/// The leading directions that fit the bits of a code.
fn low_rank(delta: &[f32], [rows, cols]: [usize; 2], mixed: bool) -> (Vec<f32>, usize) {
    /// Directions in 8 and in 3 bits, in parts of all.
    const PARTS: (f64, f64) = (0.02, 0.3);
    let budget = Plan::BITS / 8.0 * (rows * cols) as f64;
    // Bits of one vector's numbers, by its place among `rank`.
    let bits = |at: usize, rank: usize| match mixed {
        false => 16,
        true if at <= (PARTS.0 * rank as f64) as usize => 8,
        true if (at as f64) < PARTS.1 * rank as f64 => 3,
        true => 2,
    };
    let taken = |rank: usize| -> usize {
        let one = |at| ((rows + cols) * bits(at, rank)).div_ceil(8) + 2 * usize::from(mixed);
        (0..rank).map(one).sum()
    };
    let most = rows.min(cols);
    let rank = (1..=most)
        .take_while(|rank| taken(*rank) as f64 <= budget)
        .last()
        .unwrap_or(1);
    let mut dense = vec![0.0; rows * cols];
    for (at, direction) in leading(delta, [rows, cols], rank).into_iter().enumerate() {
        let levels = 1 << (bits(at, rank) - 1);
        let [left, right] = [&direction.left, &direction.right].map(|vector| match mixed {
            true => rounded(vector, levels),
            false => vector.clone(),
        });
        for (row, left) in dense.chunks_exact_mut(cols).zip(&left) {
            for (value, right) in row.iter_mut().zip(&right) {
                *value += (direction.value * left * right) as f32;
            }
        }
    }
    (dense, taken(rank))
}

/// In 2 · `levels` steps, none at zero, with the scale of those tried that is nearest.
fn rounded(vector: &[f64], levels: i32) -> Vec<f64> {
    let largest = vector
        .iter()
        .fold(0f64, |most, value| most.max(value.abs()));
    let with = |part: f64| -> Vec<f64> {
        let step = (largest * part / f64::from(levels)).max(f64::MIN_POSITIVE);
        let level = |value: &f64| {
            (value / step)
                .floor()
                .clamp(-f64::from(levels), f64::from(levels - 1))
        };
        vector
            .iter()
            .map(|value| step * (level(value) + 0.5))
            .collect()
    };
    let apart = |rounded: &[f64]| -> f64 {
        let square = |(a, b): (&f64, &f64)| (a - b) * (a - b);
        rounded.iter().zip(vector).map(square).sum()
    };
    let tried = [1.0, 0.8, 0.6, 0.45, 0.3].map(with);
    let nearest = tried
        .into_iter()
        .min_by(|a, b| apart(a).total_cmp(&apart(b)));
    nearest.unwrap_or_default()
}
