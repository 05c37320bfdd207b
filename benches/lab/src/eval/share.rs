//! What the figures mean: recovered share, bits, and their summaries.

pub use choir::cli::eval::measure::{mean, recovered};
use serde::Serialize;

/// What one set of weights reaches on one variant's held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reached {
    /// The NELBO.
    pub nats_per_token: f64,
    /// Prompts answered exactly, for a skill.
    pub exact: Option<usize>,
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
