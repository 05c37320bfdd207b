//! The NELBO of a text under the absorbing process, as a state machine like a sampler: it shows what it wants
//! evaluated, takes logits, and never calls the network.
//!
//! For a block of b tokens the bound is (BD3-LM, arXiv 2503.09573, with alpha_t = 1 - t)
//!
//! ```text
//! -log p(x) <= E over t in (0, 1] of  1/t  sum over masked i of  -log p(x_i | x_t, blocks before)
//! ```
//!
//! where each token is masked with probability t. The number n of masked tokens, rather than t, is drawn here: the
//! weight 1/t integrates to the same chance 1/n for every n in 1 ..= b, so the estimate is (b/n) times the sum for n
//! drawn evenly. It is the same expectation, without the draws that mask nothing and without weights that
//! grow beyond b. Given n, t is distributed like the n-th smallest of b uniform numbers: mask the tokens that
//! hold the n smallest and take the n-th for t, and the pair has exactly the law of the bound.

use super::Error;
use crate::model::{DitConfig, Process};
use crate::rng::Noise;
use crate::sampler::Evaluation;
use crate::sampler::schedule::absorbing_sigma;

/// Most noise levels to a block.
pub const MAX_SAMPLES: usize = 4096;

/// A draw for each token's rank, and one for a block's numbers of masked tokens.
const RANK: u32 = 0;
const COUNT: u32 = 1;

/// The bound of one text, under way.
///
/// Blocks are visited in order. For each, `samples` noisy copies are evaluated after the clean blocks before it,
/// whose keys and values are in the cache; clean blocks are written ahead, `chunk` tokens at most.
#[derive(Debug)]
pub struct Scorer {
    tokens: Vec<u32>,
    /// Leading tokens that are context and never masked.
    given: usize,
    block_size: usize,
    samples: usize,
    chunk: usize,
    mask_id: u32,
    time_conditioned: bool,
    noise: Noise,
    /// Positions below this one are in the cache.
    written: usize,
    /// The next noisy copy: its block's first position, and its number in the block.
    block: usize,
    sample: usize,
    offered: Vec<Evaluation>,
    /// For each noisy copy offered, in order: the factor of its sum.
    factors: Vec<f64>,
    nats: f64,
    nfe: u32,
}

impl Scorer {
    /// The first `given` of `tokens` are context and not scored. `chunk`: clean tokens to one evaluation, at least a block.
    ///
    /// # Errors
    /// `BadField` for no tokens to score, tokens outside the vocabulary, the mask among them, a text that does not fit a network
    /// without blocks, `samples` outside 1 ..= 4096, or a network of the uniform process.
    pub fn new(
        config: &DitConfig,
        tokens: Vec<u32>,
        given: usize,
        samples: usize,
        chunk: usize,
        seed: u64,
    ) -> Result<Self, Error> {
        let bad = |field, reason: String| Err(Error::BadField { field, reason });
        let (Process::Absorbing, Some(mask_id)) = (config.process(), config.mask_id()) else {
            return bad("process", "only the absorbing process has a score".into());
        };
        if tokens.len() <= given {
            return bad("tokens", "there are none".into());
        }
        if let Some(token) = tokens.iter().find(|&&token| token >= mask_id) {
            return bad("tokens", format!("token {token} is none of the vocabulary's {mask_id}"));
        }
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return bad("samples", format!("{samples} is not within 1 and {MAX_SAMPLES}"));
        }
        if config.block().is_none() && tokens.len() > config.model_length {
            return bad(
                "tokens",
                format!("{} of them, and at most {} fit", tokens.len(), config.model_length),
            );
        }
        let block_size = config.block().unwrap_or(tokens.len());
        Ok(Scorer {
            block_size,
            time_conditioned: config.time_conditioned(),
            noise: Noise::new(seed),
            written: 0,
            block: given / block_size * block_size,
            sample: 0,
            offered: Vec::new(),
            factors: Vec::new(),
            nats: 0.0,
            nfe: 0,
            tokens,
            given,
            samples,
            chunk,
            mask_id,
        })
    }

    /// Tokens scored.
    pub fn scored(&self) -> usize {
        self.tokens.len() - self.given
    }

    /// Noisy copies evaluated so far.
    pub fn nfe(&self) -> u32 {
        self.nfe
    }

    /// The fewest tokens that `next` can offer now.
    pub fn least(&self) -> usize {
        self.block_size.min(self.tokens.len() - self.block)
    }

    /// What is to be evaluated next, in about `budget` tokens and at least one evaluation: noisy copies, of blocks whose
    /// context is in the cache, then clean tokens. The same until [`accept`](Self::accept) has taken the logits.
    pub fn next(&mut self, budget: usize) -> &[Evaluation] {
        if self.offered.is_empty() {
            self.factors.clear();
            let mut left = budget;
            while self.block < self.tokens.len() && self.block <= self.written {
                let length = self.least();
                if length > left && !self.offered.is_empty() {
                    return &self.offered;
                }
                left = left.saturating_sub(length);
                self.offer_noisy(length);
            }
            self.offer_clean(left);
        }
        &self.offered
    }

    /// Takes the logits of every row of `next`'s evaluations, in their order, each [vocab_size]. Returns the bound in nats
    /// per token once the text is done.
    pub fn accept(&mut self, logits: &[&[f32]]) -> Option<f64> {
        let mut rows = logits.iter();
        let mut factors = self.factors.iter();
        for evaluation in self.offered.drain(..) {
            self.written += evaluation.clean;
            if evaluation.rows.is_empty() {
                continue;
            }
            let text = &self.tokens[evaluation.first_position..];
            let surprise = |&row: &usize| rows.next().map_or(0.0, |logits| nats(logits, text[row], self.mask_id));
            let sum: f64 = evaluation.rows.iter().map(surprise).sum();
            self.nats += factors.next().unwrap_or(&0.0) * sum;
            self.nfe += 1;
        }
        (self.block >= self.tokens.len()).then(|| self.nats / self.scored() as f64)
    }

    fn offer_noisy(&mut self, length: usize) {
        let (block, sample) = (self.block, self.sample);
        let first = self.given.saturating_sub(block);
        let scored = length - first;
        // One offset for the block's samples spreads them evenly over 1 ..= scored.
        let offset = self.noise.uniform(0, block as u32, COUNT);
        let masked = (scored as f64 * (sample as f64 + offset) / self.samples as f64) as usize + 1;
        let masked = masked.min(scored);
        let rank = |i: usize| self.noise.uniform(sample as u32, (block + i) as u32, RANK);
        let ranks: Vec<f64> = (0..length).map(rank).collect();
        let mut rows: Vec<usize> = (first..length).collect();
        rows.sort_by(|&a, &b| ranks[a].total_cmp(&ranks[b]));
        let t = ranks[rows[masked - 1]];
        rows.truncate(masked);
        rows.sort_unstable();

        let mut tokens = self.tokens[block..block + length].to_vec();
        for &row in &rows {
            tokens[row] = self.mask_id;
        }
        let sigma = if self.time_conditioned {
            absorbing_sigma(t) as f32
        } else {
            0.0
        };
        self.offered.push(Evaluation {
            first_position: block,
            tokens,
            clean: 0,
            rows,
            sigma,
        });
        self.factors.push(scored as f64 / (masked * self.samples) as f64);
        self.sample += 1;
        if self.sample == self.samples {
            (self.block, self.sample) = (block + length, 0);
        }
    }

    /// Writes ahead what the blocks still to come will see, unless a block that is cached is not done with.
    fn offer_clean(&mut self, budget: usize) {
        let last_block = (self.tokens.len() - 1) / self.block_size * self.block_size;
        let blocks = (budget.min(self.chunk) / self.block_size).max(1);
        let end = (self.written + blocks * self.block_size).min(last_block);
        if end > self.written && (budget >= self.block_size || self.offered.is_empty()) {
            let tokens = self.tokens[self.written..end].to_vec();
            let clean = tokens.len();
            self.offered.push(Evaluation {
                first_position: self.written,
                tokens,
                clean,
                rows: Vec::new(),
                sigma: 0.0,
            });
        }
    }
}

/// -log of the probability of `token`, the mask being impossible.
fn nats(logits: &[f32], token: u32, mask_id: u32) -> f64 {
    let allowed = || {
        logits
            .iter()
            .enumerate()
            .filter(|(id, _)| *id != mask_id as usize)
            .map(|(_, &logit)| logit)
    };
    let top = allowed().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = allowed().map(|logit| f64::from(logit - top).exp()).sum();
    sum.ln() + f64::from(top)
        - logits
            .get(token as usize)
            .map_or(f64::NEG_INFINITY, |&logit| f64::from(logit))
}
