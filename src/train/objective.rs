//! The objectives of MDLM (arXiv 2406.07524) and BD3-LM (arXiv 2503.09573): the log-linear schedule, where a
//! token is masked with probability t and -log p(x_0 | x_t) counts 1/t.
//!
//! A *unit* is what shares one t: a block (BD3-LM) or a whole sequence (MDLM).

use super::Error;
use super::data::Contexts;
use crate::model::{DitConfig, TrainBatch, Trainable};
use crate::ops;
use crate::rng::Stream;
use candle_core::Result;

/// The network's mask, its blocks, and the clipped schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Block size; `None` for MDLM.
    pub block: Option<usize>,
    pub mask: u32,
    /// t is drawn from this range: BD3-LM's clipped schedule `[sampling_eps_min, sampling_eps_max]`. It lowers
    /// the variance of the gradient; evaluation always uses the whole range.
    pub clip: (f64, f64),
}

/// The smallest t of an unclipped schedule; bounds equal to it or to 1 are no bounds.
pub const SMALLEST_T: f64 = 1e-3;

/// A masked batch: what the network reads and how its answers count.
#[derive(Clone, Debug)]
pub struct Masked {
    pub input: TrainBatch,
    /// x_0 at `input.rows`.
    pub targets: Vec<u32>,
    /// Weight of each row's negative log-likelihood: importance / t (not divided by the number of tokens).
    pub weights: Vec<f32>,
    /// Sum of the importance of all positions: divide the weighted sum by it for a loss per token.
    pub tokens: f64,
}

impl Objective {
    pub fn new(config: &DitConfig, clip: (f64, f64)) -> std::result::Result<Self, Error> {
        let refuse = |field, reason: String| Err(Error::Setting { field, reason });
        let Some(mask) = config.mask_id() else {
            return refuse(
                "model_type",
                format!("{} has no mask; bd3lm and mdlm have", config.model_type),
            );
        };
        if config.block().is_some() && config.time_conditioned() {
            return refuse("time_conditioning", "a noise level per block is not supported".into());
        }
        if !(0.0 < clip.0 && clip.0 < clip.1 && clip.1 <= 1.0) {
            return refuse("mask range", format!("{} to {} is not within 0 to 1", clip.0, clip.1));
        }
        Ok(Self {
            block: config.block(),
            mask,
            clip,
        })
    }

    /// Length of a unit in sequences of `length`.
    pub fn unit(&self, length: usize) -> usize {
        self.block.unwrap_or(length)
    }

    /// Draws t for every unit (stratified over the whole batch: unit i of n in [i/n, (i+1)/n), as in the
    /// papers' antithetic sampling), masks, and redraws units whose masked share leaves the clipped range.
    pub fn mask(&self, contexts: &Contexts, stream: &mut Stream) -> Masked {
        let unit = self.unit(contexts.length);
        let units = contexts.tokens.len().div_ceil(unit);
        let (low, high) = self.clip;
        let times = (0..units).map(|i| low + (i as f64 + stream.uniform()) / units as f64 * (high - low));
        let times: Vec<f64> = times.collect();
        let mut chosen = vec![false; contexts.tokens.len()];
        for (index, &t) in times.iter().enumerate() {
            let span = index * unit..((index + 1) * unit).min(contexts.tokens.len());
            let importance = &contexts.importance[span.clone()];
            let maskable = importance.iter().filter(|&&w| w > 0.0).count() as f64;
            // A unit with one or two maskable tokens may never meet the bounds: give up at some point.
            for _ in 0..100 {
                for (chosen, &importance) in chosen[span.clone()].iter_mut().zip(importance) {
                    *chosen = importance > 0.0 && stream.uniform() < t;
                }
                let share = chosen[span.clone()].iter().filter(|&&c| c).count() as f64 / maskable.max(1.0);
                let low_enough = high >= 1.0 || share <= high;
                let high_enough = low <= SMALLEST_T || share >= low;
                if maskable == 0.0 || (low_enough && high_enough) {
                    break;
                }
            }
        }
        let weight = |index: usize| contexts.importance[index] / times[index / unit] as f32;
        let sigma = (0..contexts.count)
            .map(|c| sigma(times[c * contexts.length / unit]))
            .collect();
        self.masked(contexts, &chosen, weight, sigma)
    }

    /// Masks exactly the `chosen` positions and weighs each with `weight(position)`.
    pub fn masked(
        &self,
        contexts: &Contexts,
        chosen: &[bool],
        weight: impl Fn(usize) -> f32,
        sigma: Vec<f32>,
    ) -> Masked {
        let rows: Vec<u32> = (0..chosen.len()).filter(|&i| chosen[i]).map(|i| i as u32).collect();
        let xt = contexts
            .tokens
            .iter()
            .zip(chosen)
            .map(|(&token, &chosen)| if chosen { self.mask } else { token });
        Masked {
            targets: rows.iter().map(|&row| contexts.tokens[row as usize]).collect(),
            weights: rows.iter().map(|&row| weight(row as usize)).collect(),
            tokens: contexts.importance.iter().map(|&w| f64::from(w)).sum(),
            input: TrainBatch {
                batch: contexts.count,
                length: contexts.length,
                block: self.block,
                xt: xt.collect(),
                x0: self.block.map(|_| contexts.tokens.clone()),
                sigma,
                rows,
            },
        }
    }
}

/// Total noise of the log-linear schedule, -log(1 - (1 - 1e-3) t).
pub fn sigma(t: f64) -> f32 {
    (-(-(1.0 - SMALLEST_T) * t).ln_1p()) as f32
}

impl Masked {
    /// Cuts the batch into at most `parts` parts of whole contexts; all keep the whole batch's `tokens`.
    pub fn split(self, parts: usize) -> Vec<Masked> {
        let per_part = self.input.batch.div_ceil(parts.max(1)).max(1);
        let length = self.input.length;
        let part = |first: usize| {
            let batch = per_part.min(self.input.batch - first);
            let span = first * length..(first + batch) * length;
            let rows = &self.input.rows;
            let from = rows.partition_point(|&row| (row as usize) < span.start);
            let to = rows.partition_point(|&row| (row as usize) < span.end);
            Masked {
                input: TrainBatch {
                    batch,
                    length,
                    block: self.input.block,
                    xt: self.input.xt[span.clone()].to_vec(),
                    x0: self.input.x0.as_ref().map(|x0| x0[span.clone()].to_vec()),
                    sigma: self.input.sigma[first..first + batch].to_vec(),
                    rows: rows[from..to].iter().map(|&row| row - span.start as u32).collect(),
                },
                targets: self.targets[from..to].to_vec(),
                weights: self.weights[from..to].to_vec(),
                tokens: self.tokens,
            }
        };
        (0..self.input.batch).step_by(per_part).map(part).collect()
    }

    /// -log p(x_0 | x_t) in nats at every masked row, the mask itself ruled out.
    pub fn nll(&self, model: &Trainable, mask: u32) -> Result<Vec<f32>> {
        if self.targets.is_empty() {
            return Ok(Vec::new());
        }
        ops::cross_entropy(&model.forward(&self.input)?, &self.targets, Some(mask))?.to_vec1()
    }

    /// Weighted sum of row values over tokens: nats per token.
    pub fn per_token(&self, nll: &[f32]) -> f64 {
        let sum: f64 = nll
            .iter()
            .zip(&self.weights)
            .map(|(&n, &w)| f64::from(n) * f64::from(w))
            .sum();
        sum / self.tokens.max(1.0)
    }

    /// The loss in nats per token, and its gradient by weight.
    pub fn gradients(
        &self,
        model: &Trainable,
        mask: u32,
    ) -> Result<(f64, std::collections::BTreeMap<String, candle_core::Tensor>)> {
        let share: Vec<f32> = self.weights.iter().map(|&w| w / self.tokens as f32).collect();
        model.gradients(&self.input, |logits| {
            let nll: Vec<f32> = ops::cross_entropy(logits, &self.targets, Some(mask))?.to_vec1()?;
            let gradient = ops::cross_entropy_backward(logits, &self.targets, Some(mask), &share)?;
            Ok((self.per_token(&nll), gradient))
        })
    }
}
