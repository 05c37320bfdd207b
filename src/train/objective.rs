//! The objectives of MDLM (arXiv 2406.07524) and BD3-LM (arXiv 2503.09573), where a token is masked with probability t
//! and -log p(x_0 | x_t) counts 1/t, and of Duo (arXiv 2506.10892), where it becomes any token with probability
//! 1 - alpha_t; all with the log-linear schedule.
//!
//! A *unit* is what shares one t: a block (BD3-LM) or a whole sequence (MDLM, Duo).

use super::Error;
use super::data::Contexts;
use super::noisy::{Loss, Noisy};
use crate::model::{DitConfig, TrainBatch};
use crate::rng::Stream;
use crate::sampler::schedule::LogLinear;

/// What noise makes of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Corruption {
    /// This token, the mask (the absorbing process).
    Mask(u32),
    /// Any of the first so many, all alike (the uniform process).
    Uniform(usize),
}

/// The network's process, its blocks, and the clipped schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Block size; `None` where the whole sequence is a unit.
    pub block: Option<usize>,
    pub corruption: Corruption,
    /// t is drawn from this range: BD3-LM's clipped schedule `[sampling_eps_min, sampling_eps_max]`. It lowers
    /// the variance of the gradient; evaluation always uses the whole range.
    pub clip: (f64, f64),
}

/// The smallest t of an unclipped schedule; bounds equal to it or to 1 are no bounds.
pub const SMALLEST_T: f64 = 1e-3;

impl Objective {
    pub fn new(config: &DitConfig, clip: (f64, f64)) -> Result<Self, Error> {
        if !(0.0 < clip.0 && clip.0 < clip.1 && clip.1 <= 1.0) {
            let reason = format!("{} to {} does not rise within 0 and 1", clip.0, clip.1);
            return Err(Error::Setting {
                field: "mask range",
                reason,
            });
        }
        Ok(Self {
            block: config.block(),
            corruption: match config.mask_id() {
                Some(mask) => Corruption::Mask(mask),
                None => Corruption::Uniform(config.tokens()),
            },
            clip,
        })
    }

    /// Length of a unit in sequences of `length`.
    pub fn unit(&self, length: usize) -> usize {
        self.block.unwrap_or(length)
    }

    /// Draws t for every unit, stratified over the whole batch: unit i of n in [i/n, (i+1)/n), as in the papers'
    /// antithetic sampling.
    pub fn times(&self, contexts: &Contexts, stream: &mut Stream) -> Vec<f64> {
        stratified(self.units(contexts), self.clip, stream)
    }

    /// As [`times`](Self::times), but denser early: with a density of 1 / (2 sqrt(t)), which [`early`] makes up for. A
    /// token of the uniform process changes with a chance of about t and then counts about 1/t: no other density gives
    /// the NELBO less variance.
    pub fn early_times(&self, contexts: &Contexts, stream: &mut Stream) -> Vec<f64> {
        let range = (self.clip.0.sqrt(), self.clip.1.sqrt());
        let roots = stratified(self.units(contexts), range, stream);
        roots.into_iter().map(|root| root * root).collect()
    }

    fn units(&self, contexts: &Contexts) -> usize {
        contexts.tokens.len().div_ceil(self.unit(contexts.length))
    }

    /// Corrupts each token that counts at its unit's t.
    pub fn corrupt(&self, contexts: &Contexts, stream: &mut Stream) -> Noisy {
        match self.corruption {
            Corruption::Mask(mask) => {
                self.mask(contexts, mask, &self.times(contexts, stream), stream)
            }
            Corruption::Uniform(tokens) => {
                let times = self.early_times(contexts, stream);
                early(self.uniform(contexts, tokens, &times, stream))
            }
        }
    }

    /// Masks, and redraws units whose masked share leaves the clipped range.
    fn mask(&self, contexts: &Contexts, mask: u32, times: &[f64], stream: &mut Stream) -> Noisy {
        let unit = self.unit(contexts.length);
        let (low, high) = self.clip;
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
                let share =
                    chosen[span.clone()].iter().filter(|&&c| c).count() as f64 / maskable.max(1.0);
                let low_enough = high >= 1.0 || share <= high;
                let high_enough = low <= SMALLEST_T || share >= low;
                if maskable == 0.0 || (low_enough && high_enough) {
                    break;
                }
            }
        }
        let weight = |index: usize| contexts.importance[index] / times[index / unit] as f32;
        self.masked(contexts, mask, &chosen, weight, times)
    }

    /// Masks exactly the `chosen` positions and weighs each with `weight(position)`; `times` are the units'.
    pub fn masked(
        &self,
        contexts: &Contexts,
        mask: u32,
        chosen: &[bool],
        weight: impl Fn(usize) -> f32,
        times: &[f64],
    ) -> Noisy {
        let noise = |(&token, &chosen): (&u32, &bool)| if chosen { mask } else { token };
        let xt = contexts.tokens.iter().zip(chosen).map(noise).collect();
        let rows = (0..chosen.len()).filter(|&i| chosen[i]);
        self.noisy(
            contexts,
            xt,
            rows,
            weight,
            times,
            Loss::CrossEntropy { mask },
        )
    }

    /// Replaces each token that counts, with probability 1 - alpha_t, by one of the first `tokens`. `times` are the units'.
    pub fn uniform(
        &self,
        contexts: &Contexts,
        tokens: usize,
        times: &[f64],
        stream: &mut Stream,
    ) -> Noisy {
        let unit = self.unit(contexts.length);
        let xt = contexts.tokens.iter().enumerate().map(|(i, &token)| {
            let noisy = stream.uniform() < LogLinear::UNIFORM.move_chance(times[i / unit]);
            let random = stream.below(tokens) as u32;
            if noisy && contexts.importance[i] > 0.0 {
                random
            } else {
                token
            }
        });
        self.uniform_noise(contexts, xt.collect(), times, tokens)
    }

    /// x_t of the uniform process over `tokens`: all tokens that count are scored. `times` are the units'.
    pub fn uniform_noise(
        &self,
        contexts: &Contexts,
        xt: Vec<u32>,
        times: &[f64],
        tokens: usize,
    ) -> Noisy {
        let rows = (0..contexts.tokens.len()).filter(|&i| contexts.importance[i] > 0.0);
        let weight = |i: usize| contexts.importance[i];
        self.noisy(contexts, xt, rows, weight, times, Loss::Uniform { tokens })
    }

    fn noisy(
        &self,
        contexts: &Contexts,
        xt: Vec<u32>,
        rows: impl Iterator<Item = usize>,
        weight: impl Fn(usize) -> f32,
        times: &[f64],
        loss: Loss,
    ) -> Noisy {
        let rows: Vec<usize> = rows.collect();
        Noisy {
            targets: rows.iter().map(|&row| contexts.tokens[row]).collect(),
            weights: rows.iter().map(|&row| weight(row)).collect(),
            tokens: contexts.importance.iter().map(|&w| f64::from(w)).sum(),
            loss,
            teacher: None,
            input: TrainBatch {
                batch: contexts.count,
                length: contexts.length,
                block: self.block,
                xt,
                soft: None,
                x0: self.block.map(|_| contexts.tokens.clone()),
                sigma: times
                    .iter()
                    .map(|&t| LogLinear::UNIFORM.sigma(t) as f32)
                    .collect(),
                rows: rows.iter().map(|&row| row as u32).collect(),
            },
        }
    }
}

fn stratified(count: usize, (low, high): (f64, f64), stream: &mut Stream) -> Vec<f64> {
    let one = |i| low + (i as f64 + stream.uniform()) / count as f64 * (high - low);
    (0..count).map(one).collect()
}

/// Weighs what was noised at times of a density of 1 / (2 sqrt(t)).
pub fn early(mut noisy: Noisy) -> Noisy {
    for (weight, &row) in noisy.weights.iter_mut().zip(&noisy.input.rows) {
        let sigma = noisy.input.sigma[noisy.input.noise_line(row as usize)];
        let t = -(-sigma).exp_m1() / LogLinear::UNIFORM.move_chance(1.0) as f32;
        *weight *= 2.0 * t.sqrt();
    }
    noisy
}
