//! The block sampler of BD3-LM, and of MDLM as a sequence of one block.

use super::absorbing::{Clock, Predictor};
use super::error::{self, Error};
use super::template::Template;
use super::{Evaluation, Progress, Reason, draw_from};
use crate::ops::categorical::{Crossing, Draw, Drawn, Filter};
use crate::rng::Noise;

/// Whether the last block is as long as the others, as the network was trained, or ends with the last token wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastBlock {
    #[default]
    Whole,
    Cut,
}

/// What a request and its variant ask of the block sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSettings {
    /// Tokens denoised together; for MDLM, the length of the whole sequence.
    pub block_size: usize,
    /// Tokens to make after the prompt.
    pub max_tokens: usize,
    pub predictor: Predictor,
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1]; the token that crosses p is dropped, as in BD3-LM's sampler.
    pub nucleus_p: f32,
    pub top_k: Option<usize>,
    /// Tokens that end the sequence and are not part of it.
    pub stop_ids: Vec<u32>,
    pub mask_id: u32,
    /// Rows of the output head, the mask included.
    pub vocab_size: usize,
    /// True where the network is told the noise level; sigma is 0 otherwise.
    pub time_conditioned: bool,
    /// Prompt tokens to one evaluation, rounded down to whole blocks but at least one.
    pub prefill_chunk: usize,
    pub last_block: LastBlock,
}

/// Longest block.
pub const MAX_BLOCK: usize = 1 << 16;
/// Highest temperature.
pub const MAX_TEMPERATURE: f32 = 100.0;

impl BlockSettings {
    fn check(&self) -> Result<(), Error> {
        error::count("block_size", self.block_size, 1, MAX_BLOCK)?;
        error::count("vocab_size", self.vocab_size, 2, u32::MAX as usize)?;
        self.predictor.check()?;
        error::within(
            "temperature",
            f64::from(self.temperature),
            0.0,
            f64::from(MAX_TEMPERATURE),
        )?;
        error::share("nucleus_p", self.nucleus_p)?;
        error::count("top_k", self.top_k.unwrap_or(1), 1, usize::MAX)?;
        error::count("prefill_chunk", self.prefill_chunk, 1, usize::MAX)?;
        error::tokens("mask_id", &[self.mask_id], self.vocab_size)?;
        error::tokens("stop_ids", &self.stop_ids, self.vocab_size)
    }
}

/// One sequence of the absorbing process.
///
/// Prompt tokens are written to the cache in whole blocks; what remains of the prompt starts the first block, the rest of
/// which is masked. Clean tokens whose keys and values are not in the cache yet come first in every evaluation:
/// so a finished block is written by the next block's first step, at no evaluation of its own (unless the network is told
/// the noise level), and the last one never.
///
/// A block is over as soon as every position before `end` is final, `end` being the last wanted position or the first
/// stop token that was made. Masked positions after it may be left: they are part of the block, so they are
/// revealed in their turn as long as anything before `end` is masked (the law of the tokens wanted would change
/// otherwise), but what would be revealed after that nobody reads.
#[derive(Clone, Debug)]
pub struct BlockSampler {
    settings: BlockSettings,
    filter: Filter,
    noise: Noise,
    clock: Clock,
    template: Template,
    prompt: usize,
    /// All tokens up to the end of the current block; the mask where nothing is revealed yet.
    tokens: Vec<u32>,
    /// First position of the current block.
    block: usize,
    /// Positions below this one are in the cache: whole blocks.
    written: usize,
    /// Position after the last token of the text, as far as is known.
    end: usize,
    /// Positions of the rows that are asked for next.
    chosen: Vec<usize>,
    /// True once they are drawn, until they are revealed.
    decided: bool,
    evaluation: Evaluation,
    /// True while `evaluation` waits for what is drawn.
    offered: bool,
    revealed: Vec<(usize, u32)>,
    nfe: u32,
    prefills: u32,
    finished: Option<Reason>,
}

impl BlockSampler {
    /// The prompt may be empty and of any length; a token that begins every text is the caller's to add.
    ///
    /// # Errors
    /// A setting or a prompt token out of its range.
    pub fn new(settings: BlockSettings, prompt: &[u32], seed: u64) -> Result<Self, Error> {
        settings.check()?;
        let template = Template::continuation(prompt, settings.max_tokens)?;
        template.check("prompt", settings.vocab_size, Some(settings.mask_id))?;
        Ok(Self::start(settings, template, seed))
    }

    /// Fills the holes (`None`) of a template; `max_tokens` is not used. The text begins at the first hole and ends with
    /// the template. A hole sees the fixed tokens after it as far as its own block goes.
    ///
    /// # Errors
    /// A setting or a token out of its range; a template without a hole.
    pub fn fill(settings: BlockSettings, template: &[Option<u32>], seed: u64) -> Result<Self, Error> {
        settings.check()?;
        let template = Template::new(template)?;
        template.check("template", settings.vocab_size, Some(settings.mask_id))?;
        Ok(Self::start(settings, template, seed))
    }

    fn start(settings: BlockSettings, template: Template, seed: u64) -> Self {
        let filter = Filter {
            temperature: settings.temperature,
            top_k: settings.top_k,
            nucleus_p: settings.nucleus_p,
            crossing: Crossing::Dropped,
            forbidden: Some(settings.mask_id),
        };
        let mut sampler = Self {
            filter,
            noise: Noise::new(seed),
            clock: Clock::new(settings.predictor),
            prompt: template.first_hole(),
            end: template.len(),
            template,
            tokens: Vec::new(),
            block: 0,
            written: 0,
            chosen: Vec::new(),
            decided: false,
            evaluation: Evaluation {
                first_position: 0,
                tokens: Vec::new(),
                clean: 0,
                rows: Vec::new(),
                sigma: 0.0,
            },
            offered: false,
            revealed: Vec::new(),
            nfe: 0,
            prefills: 0,
            finished: None,
            settings,
        };
        sampler.mask_block();
        sampler
    }

    /// What is to be evaluated next: the same until [`take`](Self::take) has taken what was drawn. Means nothing
    /// once the sequence is finished.
    #[expect(
        clippy::should_implement_trait,
        reason = "no iterator: what comes next depends on `take`"
    )]
    pub fn next(&mut self) -> &Evaluation {
        if !self.offered && self.finished.is_none() {
            self.offered = true;
            self.prepare();
        }
        &self.evaluation
    }

    /// What is to be drawn of each of `next`'s rows, in their order: under a confidence threshold of every candidate.
    /// Nothing before `next` was asked.
    pub fn draws(&self) -> Vec<Draw> {
        let draw = |row: &usize| Draw {
            filter: self.filter,
            tokens: self.settings.vocab_size,
            noise: self.noise,
            step: self.clock.step,
            position: (self.evaluation.first_position + row) as u32,
            kind: self.clock.kind(),
        };
        let rows = self.evaluation.rows.iter().filter(|_| self.offered);
        rows.map(draw).collect()
    }

    /// Draws from the logits of `next`'s rows, in their order, each [vocab_size], and takes that.
    pub fn accept(&mut self, logits: &[&[f32]]) -> Progress {
        let drawn = draw_from(&self.draws(), logits);
        self.take(&drawn)
    }

    /// Takes what became of [`draws`](Self::draws).
    pub fn take(&mut self, drawn: &[Drawn]) -> Progress {
        self.revealed.clear();
        if let Some(reason) = self.finished {
            return Progress::Finished(reason);
        }
        if !self.offered {
            return Progress::Continue;
        }
        self.offered = false;
        self.written += self.evaluation.clean;
        if self.evaluation.rows.is_empty() {
            self.prefills += 1;
            return Progress::Continue;
        }
        debug_assert_eq!(drawn.len(), self.evaluation.rows.len());
        self.nfe += 1;
        self.decided = false;
        self.reveal(drawn);
        self.progress()
    }

    /// The tokens of finished blocks, without the prompt, the stop token and what follows it, and without what a last
    /// block has beyond `max_tokens`.
    pub fn generated(&self) -> &[u32] {
        let final_end = if self.finished.is_some() {
            self.end
        } else {
            self.block.max(self.prompt)
        };
        &self.tokens[self.prompt..final_end]
    }

    /// What the last [`take`](Self::take) revealed: absolute positions, ascending, and tokens; nothing past the text's end.
    pub fn revealed(&self) -> &[(usize, u32)] {
        &self.revealed
    }

    /// Evaluations that revealed tokens, so far.
    pub fn nfe(&self) -> u32 {
        self.nfe
    }

    /// Evaluations that only wrote clean blocks to the cache, so far.
    pub fn prefills(&self) -> u32 {
        self.prefills
    }

    /// The whole blocks before the current one: what is in the cache, or is going to be, of which the first
    /// [`cached`](Self::cached) are.
    pub fn clean(&self) -> &[u32] {
        &self.tokens[..self.block]
    }

    pub fn cached(&self) -> usize {
        self.written
    }

    /// Takes it that the first `cached` positions are in the cache and no others, whole blocks of [`clean`](Self::clean). The
    /// text does not change by it, only what is evaluated on the way.
    pub fn resume(&mut self, cached: usize) {
        self.written = cached.min(self.block);
        self.offered = false;
    }

    pub fn finished(&self) -> Option<Reason> {
        self.finished
    }

    /// Goes on to the next block with a hole, masked; false where there is none.
    fn mask_block(&mut self) -> bool {
        let BlockSettings {
            block_size,
            last_block,
            mask_id,
            ..
        } = self.settings;
        let block = self
            .template
            .next_block(&mut self.tokens, block_size, last_block, |_| mask_id);
        self.clock.restart();
        self.block = block.unwrap_or(self.block);
        block.is_some()
    }

    fn is_masked(&self, position: usize) -> bool {
        self.tokens[position] == self.settings.mask_id
    }

    fn prepare(&mut self) {
        let blocks = (self.settings.prefill_chunk / self.settings.block_size).max(1);
        let clean = (self.block - self.written).min(blocks * self.settings.block_size);
        let evaluation = &mut self.evaluation;
        evaluation.first_position = self.written;
        evaluation.clean = clean;
        evaluation.rows.clear();
        evaluation.tokens.clear();
        evaluation.sigma = 0.0;
        // Clean tokens have sigma 0, so a network that is told sigma cannot share their run with a masked block.
        if self.written + clean < self.block || (clean > 0 && self.settings.time_conditioned) {
            evaluation
                .tokens
                .extend(&self.tokens[self.written..self.written + clean]);
            return;
        }
        evaluation.tokens.extend(&self.tokens[self.written..]);
        let block = self.block..self.tokens.len();
        if !self.decided {
            let masked: Vec<usize> = block.clone().filter(|&position| self.is_masked(position)).collect();
            self.clock.advance(&masked, block, &self.noise, &mut self.chosen);
            self.decided = true;
        }
        self.evaluation
            .rows
            .extend(self.chosen.iter().map(|position| position - self.written));
        if self.settings.time_conditioned {
            self.evaluation.sigma = self.clock.sigma();
        }
    }

    fn reveal(&mut self, drawn: &[Drawn]) {
        for index in self.clock.sure(drawn) {
            let (Some(&position), Some(&Drawn { token, .. })) = (self.chosen.get(index), drawn.get(index)) else {
                continue;
            };
            self.tokens[position] = token;
            if self.settings.stop_ids.contains(&token) {
                self.end = self.end.min(position);
            }
            self.revealed.push((position, token));
        }
        self.revealed.retain(|&(position, _)| position < self.end);
    }

    fn progress(&mut self) -> Progress {
        let block_end = self.tokens.len();
        if (self.block..block_end.min(self.end)).any(|position| self.is_masked(position)) {
            return Progress::Continue;
        }
        let reason = if self.end < self.template.len() {
            Reason::Stop
        } else if self.mask_block() {
            return Progress::BlockDone;
        } else {
            Reason::Length
        };
        self.finished = Some(reason);
        Progress::Finished(reason)
    }
}
