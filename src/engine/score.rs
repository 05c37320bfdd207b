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

use super::error::Error;
use crate::model::{NetworkFacts, Process, Regime};
use crate::ops::UniformTerm;
use crate::rng::Noise;
use crate::sampler::Evaluation;
use crate::sampler::schedule::{LogLinear, absorbing_sigma};

/// Most noise levels to a block.
pub const MAX_SAMPLES: usize = 4096;

/// A draw for each token's rank, one for a block's numbers of masked tokens or its times, and one for what replaces a token.
const RANK: u32 = 0;
const COUNT: u32 = 1;
const TOKEN: u32 = 2;

/// The process of the text's noise.
#[derive(Clone, Copy, Debug)]
enum Law {
    /// A token is one of the first `tokens` of the vocabulary, and not the mask.
    Absorbing { mask_id: u32, tokens: usize },
    /// Draws from the first `tokens` of the vocabulary.
    Uniform { tokens: usize },
}

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
    law: Law,
    time_conditioned: bool,
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
    /// The first `given` of `tokens` are context and not scored. `chunk`: clean tokens to one evaluation, at least a block.
    ///
    /// # Errors
    /// `BadField` for no tokens to score, tokens outside the vocabulary, the mask among them, a text that does not fit a
    /// variant without blocks, or `samples` outside 1 ..= 4096.
    pub fn new(
        facts: &NetworkFacts,
        regime: Regime,
        tokens: Vec<u32>,
        given: usize,
        samples: usize,
        chunk: usize,
        seed: u64,
    ) -> Result<Self, Error> {
        let bad = |field, reason: String| Err(Error::BadField { field, reason });
        let states = facts.tokens;
        let law = match (regime.process, facts.mask) {
            (Process::Uniform, _) => Law::Uniform { tokens: states },
            (Process::Absorbing, Some(mask_id)) => Law::Absorbing {
                mask_id,
                tokens: states,
            },
            (Process::Absorbing, None) => return bad("process", "the network has no mask".into()),
        };
        if tokens.len() <= given {
            return bad("tokens", "there are none".into());
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= states) {
            return bad(
                "tokens",
                format!("token {token} is none of the vocabulary's {states}"),
            );
        }
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return bad(
                "samples",
                format!("{samples} is not within 1 and {MAX_SAMPLES}"),
            );
        }
        if regime.block.is_none() && tokens.len() > facts.context {
            return bad(
                "tokens",
                format!(
                    "{} of them, and at most {} fit",
                    tokens.len(),
                    facts.context
                ),
            );
        }
        let block_size = regime.block.unwrap_or(tokens.len());
        Ok(Scorer {
            block_size,
            time_conditioned: regime.time_conditioned,
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
            given,
            samples,
            chunk,
            law,
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

    /// Noisy copies that are evaluated in all.
    pub fn most_evaluations(&self) -> u32 {
        let blocks = (self.tokens.len() - self.block).div_ceil(self.block_size);
        u32::try_from(blocks.saturating_mul(self.samples)).unwrap_or(u32::MAX)
    }

    /// Tokens still to be evaluated, noisy and clean, but for those that are offered.
    pub fn tokens_left(&self) -> usize {
        let noisy = (self.tokens.len() - self.block) * self.samples - self.sample * self.least();
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
                match self.law {
                    Law::Absorbing { mask_id, tokens } => {
                        let logits = logits.get(..tokens).unwrap_or(logits);
                        nats(logits, text[row], mask_id)
                    }
                    Law::Uniform { tokens } => {
                        let logits = logits.get(..tokens).unwrap_or(logits);
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
        let first = self.given.saturating_sub(block);
        let scored = length - first;
        // One offset for the block's samples spreads them evenly over 1 ..= scored, or over the times.
        let offset = self.noise.uniform(0, block as u32, COUNT);
        let share = (sample as f64 + offset) / self.samples as f64;
        let draw = |row: usize, draw| {
            self.noise
                .uniform(sample as u32, (block + row) as u32, draw)
        };
        let mut rows: Vec<usize> = (first..length).collect();
        let mut tokens = self.tokens[block..block + length].to_vec();
        let (t, factor, sigma) = match self.law {
            Law::Absorbing { mask_id, .. } => {
                let masked = ((scored as f64 * share) as usize + 1).min(scored);
                rows.sort_by_cached_key(|&row| draw(row, RANK).to_bits()); // of positive numbers: in their order
                let t = draw(rows[masked - 1], RANK);
                rows.truncate(masked);
                rows.sort_unstable();
                rows.iter().for_each(|&row| tokens[row] = mask_id);
                (t, scored as f64 / masked as f64, absorbing_sigma(t))
            }
            Law::Uniform { tokens: states } => {
                let t = share * share;
                let moved = LogLinear::UNIFORM.move_chance(t);
                for &row in rows.iter().filter(|&&row| draw(row, RANK) < moved) {
                    tokens[row] = (draw(row, TOKEN) * states as f64) as u32;
                }
                (t, 2.0 * share, LogLinear::UNIFORM.sigma(t))
            }
        };
        self.offered.push(Evaluation {
            first_position: block,
            tokens,
            clean: 0,
            rows,
            sigma: if self.time_conditioned {
                sigma as f32
            } else {
                0.0
            },
        });
        self.factors.push((t, factor / self.samples as f64));
        self.sample += 1;
        if self.sample == self.samples {
            (self.block, self.sample) = (block + length, 0);
        }
    }

    /// Where the last block begins, which none comes after.
    fn last_block(&self) -> usize {
        (self.tokens.len() - 1) / self.block_size * self.block_size
    }

    /// Writes ahead what the blocks still to come will see, unless a block that is cached is not done with.
    fn offer_clean(&mut self, budget: usize) {
        let blocks = (budget.min(self.chunk) / self.block_size).max(1);
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
