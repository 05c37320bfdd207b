//! The NELBO of a text, as a state machine like a sampler: it shows what it wants evaluated, takes logits, and never
//! calls the network. A variant without blocks sees the whole text as one block.
//!
//! Under the absorbing process, for a block of b tokens the bound is (BD3-LM, arXiv 2503.09573, with alpha_t = 1 - t)
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
//!
//! Under the uniform process each token is replaced by any one with probability 1 - alpha_t, and every position counts with
//! [`UniformTerm::nelbo`]. That of a replaced token grows as 1/t, at a chance of t: for t drawn evenly the estimate would have no
//! finite variance. So t = u² for u drawn evenly, and what is found counts dt/du = 2u.

use super::Evaluation;
use super::error::{self, Error};
use super::schedule::{LogLinear, absorbing_sigma};
use crate::ops::UniformTerm;
use crate::rng::Noise;

/// Most noise levels to a block.
pub const MAX_SAMPLES: usize = 4096;

/// A draw for each token's rank, one for a block's numbers of masked tokens or its times, and one for what replaces a token.
const RANK: u32 = 0;
const COUNT: u32 = 1;
const TOKEN: u32 = 2;

/// What a text is scored under.
#[derive(Clone, Copy, Debug)]
pub struct ScoreSettings {
    /// The absorbing process's mask; `None` is the uniform process.
    pub mask: Option<u32>,
    /// A token is one of so many, and not the mask.
    pub tokens: usize,
    /// Tokens denoised together; `None` for whole texts, of `context` tokens at most.
    pub block: Option<usize>,
    pub context: usize,
    /// Whether evaluations are told their noise level.
    pub time_conditioned: bool,
    /// Leading tokens of the text that are context and never masked.
    pub given: usize,
    /// Noise levels to a block.
    pub samples: usize,
    /// Clean tokens to one evaluation, at least a block.
    pub chunk: usize,
}

/// The bound of one text, under way.
///
/// Blocks are visited in order. For each, `samples` noisy copies are evaluated after the clean blocks before it,
/// whose keys and values are in the cache; clean blocks are written ahead, `chunk` tokens at most.
#[derive(Debug)]
pub struct Scorer {
    settings: ScoreSettings,
    tokens: Vec<u32>,
    block_size: usize,
    noise: Noise,
    /// Positions below this one are in the cache.
    written: usize,
    /// The next noisy copy: its block's first position, and its number in the block.
    block: usize,
    sample: usize,
    offered: Vec<Evaluation>,
    /// The next noisy copy before those offered.
    before: (usize, usize),
    /// For each noisy copy offered, in order: its time, and the factor of its sum.
    factors: Vec<(f64, f64)>,
    nats: f64,
    nfe: u32,
}

impl Scorer {
    /// # Errors
    /// No tokens to score, tokens outside the vocabulary, a text that does not fit a variant without blocks, or `samples` outside
    /// 1 ..= 4096.
    pub fn new(settings: ScoreSettings, tokens: Vec<u32>, seed: u64) -> Result<Self, Error> {
        let ScoreSettings { given, context, .. } = settings;
        if tokens.len() <= given {
            return Err(Error::Nothing { field: "tokens" });
        }
        error::tokens("tokens", &tokens, settings.tokens)?;
        error::count("samples", settings.samples, 1, MAX_SAMPLES)?;
        if settings.block.is_none() && tokens.len() > context {
            return Err(Error::TooLong {
                field: "tokens",
                end: tokens.len(),
                limit: context,
            });
        }
        let block_size = settings.block.unwrap_or(tokens.len());
        Ok(Scorer {
            block_size,
            noise: Noise::new(seed),
            written: 0,
            block: given / block_size * block_size,
            sample: 0,
            offered: Vec::new(),
            before: (0, 0),
            factors: Vec::new(),
            nats: 0.0,
            nfe: 0,
            tokens,
            settings,
        })
    }

    /// Tokens scored.
    pub fn scored(&self) -> usize {
        self.tokens.len() - self.settings.given
    }

    /// Noisy copies evaluated so far.
    pub fn nfe(&self) -> u32 {
        self.nfe
    }

    /// Noisy copies that are evaluated in all.
    pub fn most_evaluations(&self) -> u32 {
        let blocks = (self.tokens.len() - self.block).div_ceil(self.block_size);
        u32::try_from(blocks.saturating_mul(self.settings.samples)).unwrap_or(u32::MAX)
    }

    /// Tokens still to be evaluated, noisy and clean, but for those that are offered.
    pub fn tokens_left(&self) -> usize {
        let noisy =
            (self.tokens.len() - self.block) * self.settings.samples - self.sample * self.least();
        noisy + self.last_block().saturating_sub(self.written)
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
            self.before = (self.block, self.sample);
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

    /// Takes it that nothing is in the cache any more.
    pub fn restart(&mut self) {
        if !self.offered.is_empty() {
            (self.block, self.sample) = self.before;
            self.offered.clear();
        }
        self.written = 0;
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
            let (time, factor) = factors.next().copied().unwrap_or_default();
            let count = |&row: &usize| {
                let Some(logits) = rows.next() else {
                    return 0.0;
                };
                let logits = logits.get(..self.settings.tokens).unwrap_or(logits);
                match self.settings.mask {
                    Some(mask) => nats(logits, text[row], mask),
                    None => {
                        let schedule = LogLinear::UNIFORM;
                        let term = UniformTerm {
                            x0: text[row],
                            xt: evaluation.tokens[row],
                            move_chance: schedule.move_chance(time),
                            rate: schedule.alpha_rate(),
                        };
                        term.nelbo(logits)
                    }
                }
            };
            self.nats += factor * evaluation.rows.iter().map(count).sum::<f64>();
            self.nfe += 1;
        }
        (self.block >= self.tokens.len()).then(|| self.nats / self.scored() as f64)
    }

    fn offer_noisy(&mut self, length: usize) {
        let (block, sample) = (self.block, self.sample);
        let first = self.settings.given.saturating_sub(block);
        let scored = length - first;
        // One offset for the block's samples spreads them evenly over 1 ..= scored, or over the times.
        let offset = self.noise.uniform(0, block as u32, COUNT);
        let share = (sample as f64 + offset) / self.settings.samples as f64;
        let draw = |row: usize, draw| {
            self.noise
                .uniform(sample as u32, (block + row) as u32, draw)
        };
        let mut rows: Vec<usize> = (first..length).collect();
        let mut tokens = self.tokens[block..block + length].to_vec();
        let (t, factor, sigma) = match self.settings.mask {
            Some(mask) => {
                let masked = ((scored as f64 * share) as usize + 1).min(scored);
                rows.sort_by_cached_key(|&row| draw(row, RANK).to_bits()); // of positive numbers: in their order
                let t = draw(rows[masked - 1], RANK);
                rows.truncate(masked);
                rows.sort_unstable();
                rows.iter().for_each(|&row| tokens[row] = mask);
                (t, scored as f64 / masked as f64, absorbing_sigma(t))
            }
            None => {
                let t = share * share;
                let moved = LogLinear::UNIFORM.move_chance(t);
                for &row in rows.iter().filter(|&&row| draw(row, RANK) < moved) {
                    tokens[row] = (draw(row, TOKEN) * self.settings.tokens as f64) as u32;
                }
                (t, 2.0 * share, LogLinear::UNIFORM.sigma(t))
            }
        };
        self.offered.push(Evaluation {
            first_position: block,
            tokens,
            clean: 0,
            rows,
            sigma: if self.settings.time_conditioned {
                sigma as f32
            } else {
                0.0
            },
        });
        self.factors
            .push((t, factor / self.settings.samples as f64));
        self.sample += 1;
        if self.sample == self.settings.samples {
            (self.block, self.sample) = (block + length, 0);
        }
    }

    /// Where the last block begins, which none comes after.
    fn last_block(&self) -> usize {
        (self.tokens.len() - 1) / self.block_size * self.block_size
    }

    /// Writes ahead what the blocks still to come will see, unless a block that is cached is not done with.
    fn offer_clean(&mut self, budget: usize) {
        let blocks = (budget.min(self.settings.chunk) / self.block_size).max(1);
        let end = (self.written + blocks * self.block_size).min(self.last_block());
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
fn nats(logits: &[f32], token: u32, mask: u32) -> f64 {
    let allowed = || {
        logits
            .iter()
            .enumerate()
            .filter(|(id, _)| *id != mask as usize)
            .map(|(_, &logit)| logit)
    };
    let top = allowed().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = allowed().map(|logit| f64::from(logit - top).exp()).sum();
    sum.ln() + f64::from(top)
        - logits
            .get(token as usize)
            .map_or(f64::NEG_INFINITY, |&logit| f64::from(logit))
}
