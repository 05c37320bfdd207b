//! What the figures mean: recovered share, bits, and their summaries.

use serde::Serialize;

/// Nats per token that a fine-tune must have gained before a share of it means anything.
pub const LEAST_GAIN: f64 = 1e-3;

/// What one set of weights reaches on one variant's held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reached {
    /// The NELBO.
    pub nats_per_token: f64,
    /// Prompts answered exactly, for a skill.
    pub exact: Option<usize>,
}

/// The share of the fine-tune's gain that is left: 1 is all of it, 0 none, below 0 worse than the base. `None`
/// where the fine-tune itself gained next to nothing.
pub fn recovered(base: f64, fine_tuned: f64, retrieved: f64) -> Option<f64> {
    let gain = base - fine_tuned;
    (gain >= LEAST_GAIN).then(|| (base - retrieved) / gain)
}

/// Bits for each of `parameters` of each of `variants` in `bytes` that all variants take together.
pub fn bits(bytes: usize, parameters: usize, variants: usize) -> f64 {
    8.0 * bytes as f64 / (parameters * variants).max(1) as f64
}

/// A row of figures over all variants.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Mean and worst recovered share over the variants that have one.
    pub mean: Option<f64>,
    pub worst: Option<f64>,
    /// Mean over the skills of what is left of the fine-tune's exact answers.
    pub kept_exact: Option<f64>,
    /// By variant, in order of name.
    pub shares: Vec<Option<f64>>,
    pub reached: Vec<Reached>,
}

impl Summary {
    /// `references` are (base, fine-tuned) of every variant.
    pub fn new(references: &[(Reached, Reached)], reached: Vec<Reached>) -> Self {
        let each = || references.iter().zip(&reached);
        let shares: Vec<Option<f64>> = each()
            .map(|((base, tuned), got)| {
                recovered(
                    base.nats_per_token,
                    tuned.nats_per_token,
                    got.nats_per_token,
                )
            })
            .collect();
        let kept = each().filter_map(|((_, tuned), got)| match (tuned.exact, got.exact) {
            (Some(of), Some(got)) if of > 0 => Some(got as f64 / of as f64),
            _ => None,
        });
        let known = || shares.iter().flatten().copied();
        Self {
            mean: mean(known()),
            worst: known().min_by(f64::total_cmp),
            kept_exact: mean(kept),
            shares,
            reached,
        }
    }
}

/// The mean; `None` of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0usize, 0.0), |(count, sum), value| {
        (count + 1, sum + value)
    });
    (count > 0).then(|| sum / count as f64)
}
