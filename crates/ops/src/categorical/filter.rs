//! From a row of logits to the distribution a token is drawn from: forbidden mask, temperature, top-k, nucleus.

use super::distribution::{Distribution, Weights, logit_of, rank};
use crate::math;

/// What becomes of the token whose probability carries the running sum (best token first) past `nucleus_p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// As in BD3-LM's sampler: only tokens whose running sum stays within p are kept, but always the best one.
    Dropped,
    /// As in Duo's sampler, and usual elsewhere.
    Kept,
}

/// How a row of logits is turned into a distribution. In this order: the forbidden token loses its probability; logits
/// are divided by the temperature; the `top_k` best tokens are kept; of these the nucleus; what is left is renormalised.
/// Equal logits rank by ascending id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filter {
    /// 0 puts everything on the best token.
    pub temperature: f32,
    pub top_k: Option<usize>,
    /// In (0, 1]; 1 keeps every token.
    pub nucleus_p: f32,
    pub crossing: Crossing,
    /// The mask token, which no sampler may ever draw.
    pub forbidden: Option<u32>,
}

/// Memory that filters reuse from row to row: at most one word per token of the vocabulary.
#[derive(Clone, Debug, Default)]
pub struct FilterWorkspace {
    ranks: Vec<u64>,
    sums: Vec<f64>,
}

/// Logits within this many temperatures of the best one are looked at first; the others weigh below e^-8 of it each
/// and seldom matter to a nucleus or to the k best.
const NEAR: f32 = 8.0;
/// A rest this small is sorted.
const SMALL: usize = 32;

impl Filter {
    /// The distribution that a row of logits ([vocab], any scale) stands for.
    pub fn distribution<'a>(
        &self,
        logits: &'a [f32],
        workspace: &'a mut FilterWorkspace,
    ) -> Distribution<'a> {
        let (mut weights, best) = Weights::new(logits, self.temperature, self.forbidden);
        if self.temperature == 0.0 {
            // Not the clamped top: several logits may be infinite.
            let logit = logits.get(best as usize).copied().unwrap_or(f32::MIN);
            weights.limit = rank(best, logit.max(f32::MIN)) + 1;
            weights.sharpness = 1.0;
        } else {
            weights.limit = self.limit(logits, &weights, workspace);
        }
        let total = weights.sum(logits, &mut workspace.sums);
        Distribution {
            logits,
            weights,
            best,
            sums: &workspace.sums,
            total,
        }
    }

    /// The best token that is not forbidden, the lowest id among equals.
    pub fn best(&self, logits: &[f32]) -> u32 {
        Weights::new(logits, 1.0, self.forbidden).1
    }

    /// The probability of a token, or of the best one, at temperature 1 and before top-k and nucleus (which would raise
    /// it) but without the forbidden token.
    pub fn plain(
        &self,
        logits: &[f32],
        workspace: &mut FilterWorkspace,
        token: Option<u32>,
    ) -> f64 {
        let (weights, _) = Weights::new(logits, 1.0, self.forbidden);
        let total = weights.sum(logits, &mut workspace.sums);
        let weight = token.map_or(1.0, |token| {
            let logit = logits.get(token as usize).copied().unwrap_or(f32::NAN);
            f64::from(weights.of_logit(logit))
        });
        if total > 0.0 { weight / total } else { 0.0 }
    }

    /// The rank from which on tokens are cut off.
    fn limit(&self, logits: &[f32], weights: &Weights, workspace: &mut FilterWorkspace) -> u64 {
        let FilterWorkspace { ranks, sums } = workspace;
        let near = weights.top - NEAR * self.temperature;
        let mut limit = u64::MAX;
        let top_k = self.top_k.filter(|&k| k < logits.len());
        if let Some(k) = top_k {
            gather(ranks, logits, weights, near);
            // Also where they are just k: those further off are still to be cut.
            if ranks.len() <= k {
                gather(ranks, logits, weights, f32::NEG_INFINITY);
            }
            if ranks.len() > k {
                limit = *ranks.select_nth_unstable(k).1;
                ranks.truncate(k);
            }
        }
        if self.nucleus_p < 1.0 {
            let mass = |ranks: &[u64]| -> f64 {
                ranks
                    .iter()
                    .map(|&rank| f64::from(weights.of_logit(logit_of(rank))))
                    .sum()
            };
            let wanted = if top_k.is_some() {
                f64::from(self.nucleus_p) * mass(ranks)
            } else {
                let wanted = f64::from(self.nucleus_p) * weights.sum(logits, sums);
                gather(ranks, logits, weights, near);
                if mass(ranks) <= wanted {
                    gather(ranks, logits, weights, f32::NEG_INFINITY);
                }
                wanted
            };
            limit = limit.min(self.nucleus(ranks, wanted, mass));
        }
        limit
    }

    /// The rank from which on `ranks` are outside the nucleus of mass `wanted`: a weighted selection in linear time. Each
    /// round splits what is left at its median and goes on in the half in which the running sum crosses `wanted`.
    fn nucleus(&self, ranks: &mut [u64], wanted: f64, mass: impl Fn(&[u64]) -> f64) -> u64 {
        let Some(&best) = ranks.iter().min() else {
            return u64::MAX;
        };
        let mut rest = ranks;
        let mut before = 0.0;
        while rest.len() > SMALL {
            let middle = rest.len() / 2;
            rest.select_nth_unstable(middle);
            let (better, worse) = rest.split_at_mut(middle);
            let through = before + mass(better);
            if through > wanted {
                rest = better;
            } else {
                before = through;
                rest = worse;
            }
        }
        rest.sort_unstable();
        for &rank in rest.iter() {
            before += mass(&[rank]);
            if before > wanted {
                return match self.crossing {
                    Crossing::Dropped => rank.max(best + 1),
                    Crossing::Kept => rank + 1,
                };
            }
        }
        u64::MAX
    }
}

/// Tokens passed over together where none is good enough.
const GROUP: usize = 32;

/// Collects the ranks of the tokens that may be drawn and whose logit is at least `floor`, by ascending id.
fn gather(ranks: &mut Vec<u64>, logits: &[f32], weights: &Weights, floor: f32) {
    ranks.clear();
    for (group, logits) in logits.chunks(GROUP).enumerate() {
        if math::max(logits) >= floor {
            let tokens = ((group * GROUP) as u32..).zip(logits);
            let allowed = tokens
                .filter(|&(token, &logit)| logit >= floor && Some(token) != weights.forbidden);
            ranks.extend(allowed.map(|(token, &logit)| rank(token, logit)));
        }
    }
}
