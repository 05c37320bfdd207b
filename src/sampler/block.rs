//! The block sampler of BD3-LM, and of MDLM as a sequence of one block.

use super::absorbing::{AbsorbingPredictor, Clock, StepSplit};
use super::error::{self, Error};
use super::template::TextTemplate;
use super::text::Text;
use super::{Progress, Reason};
use crate::ops::categorical::{Certainty, Crossing, Draw, Drawn, Filter};
use crate::rng::Noise;
use std::ops::Range;

/// Whether the last block is as long as the others, as the network was trained, or ends with the last token wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastBlock {
    #[default]
    Whole,
    Cut,
}

/// What the samplers of a family do each in their own way, and no request chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convention {
    pub crossing: Crossing,
    pub share: StepSplit,
    pub last_block: LastBlock,
}

impl Default for Convention {
    /// BD3-LM's and MDLM's.
    fn default() -> Self {
        Convention {
            crossing: Crossing::Dropped,
            share: StepSplit::Equal,
            last_block: LastBlock::Whole,
        }
    }
}

/// What a request and its variant ask of the block sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSettings {
    /// Tokens denoised together; for MDLM, the length of the whole sequence.
    pub block_size: usize,
    /// Length of the first block, where that is another: blocks are counted from its end. 0 where it is not.
    pub first_block: usize,
    /// Tokens of the answer that are revealed before any after them; `None` for the whole block. Only with a predictor that
    /// [has windows](Predictor::has_windows).
    pub window: Option<usize>,
    /// Tokens to make after the prompt.
    pub max_tokens: usize,
    pub predictor: AbsorbingPredictor,
    /// What a position is revealed by, where it is by certainty.
    pub certainty: Certainty,
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1].
    pub nucleus_p: f32,
    pub top_k: Option<usize>,
    /// Tokens that end the sequence and are not part of it.
    pub stop_ids: Vec<u32>,
    pub mask_id: u32,
    /// Rows of the output head, the mask included.
    pub vocab_size: usize,
    /// Of these the leading ones that stand for a text; none after them is drawn, nor the mask.
    pub tokens: usize,
    /// True where the network is told the noise level; sigma is 0 otherwise.
    pub time_conditioned: bool,
    /// Prompt tokens to one evaluation, rounded down to whole blocks but at least one.
    pub prefill_chunk: usize,
    pub convention: Convention,
}

/// Longest block.
pub const MAX_BLOCK: usize = 1 << 16;
/// Highest temperature.
pub const MAX_TEMPERATURE: f32 = 100.0;

impl BlockSettings {
    /// Plain settings: nothing is cut off, nothing ends the text before its length, every row but the mask's is a token, and
    /// the network is not told the noise level.
    pub fn new(
        block_size: usize,
        max_tokens: usize,
        predictor: AbsorbingPredictor,
        mask_id: u32,
        vocab_size: usize,
    ) -> Self {
        BlockSettings {
            block_size,
            first_block: 0,
            window: None,
            max_tokens,
            predictor,
            certainty: Certainty::Best,
            temperature: 1.0,
            nucleus_p: 1.0,
            top_k: None,
            stop_ids: Vec::new(),
            mask_id,
            vocab_size,
            tokens: vocab_size,
            time_conditioned: false,
            prefill_chunk: MAX_BLOCK,
            convention: Convention::default(),
        }
    }

    fn check(&self) -> Result<(), Error> {
        error::count("block_size", self.block_size, 1, MAX_BLOCK)?;
        error::count("vocab_size", self.vocab_size, 2, u32::MAX as usize)?;
        error::count("block_size", self.first_block, 0, self.block_size)?;
        error::count("block_size", self.window.unwrap_or(1), 1, MAX_BLOCK)?;
        error::count("tokens", self.tokens, 2, self.vocab_size)?;
        self.predictor.check()?;
        error::filter(&self.filter())?;
        error::at_least_one("prefill_chunk", self.prefill_chunk)?;
        error::tokens("mask_id", &[self.mask_id], self.vocab_size)?;
        error::tokens("stop_ids", &self.stop_ids, self.vocab_size)
    }

    fn filter(&self) -> Filter {
        Filter {
            temperature: self.temperature,
            top_k: self.top_k,
            nucleus_p: self.nucleus_p,
            crossing: self.convention.crossing,
            forbidden: Some(self.mask_id),
        }
    }
}

/// One sequence of the absorbing process.
///
/// Prompt tokens are written to the cache in whole blocks; what remains of the prompt starts the first block, the rest of
/// which is masked. Clean tokens whose keys and values are not in the cache yet come first in every evaluation:
/// so a finished block is written by the next block's first step, at no evaluation of its own (unless the network is told
/// the noise level), and the last one never.
///
/// A block is over as soon as every position before the text's end is final, that being the last wanted position or the first
/// stop token that was made. Masked positions after it may be left: they are part of the block, so they are
/// revealed in their turn as long as anything before the end is masked (the law of the tokens wanted would change
/// otherwise), but what would be revealed after that nobody reads.
#[derive(Clone, Debug)]
pub struct BlockSampler {
    settings: BlockSettings,
    filter: Filter,
    noise: Noise,
    clock: Clock,
    /// With the mask where nothing is revealed yet.
    pub(super) text: Text,
    /// Positions of the rows that are asked for next.
    chosen: Vec<usize>,
    /// True once they are drawn, until they are revealed.
    decided: bool,
}

impl BlockSampler {
    /// The prompt may be empty and of any length; a token that begins every text is the caller's to add.
    ///
    /// # Errors
    /// A setting or a prompt token out of its range.
    pub fn new(settings: BlockSettings, prompt: &[u32], seed: u64) -> Result<Self, Error> {
        settings.check()?;
        let template = TextTemplate::continuation(prompt, settings.max_tokens)?;
        template.check("prompt", settings.vocab_size, Some(settings.mask_id))?;
        Ok(Self::start(settings, template, seed))
    }

    /// Fills the holes (`None`) of a template; `max_tokens` is not used. The text begins at the first hole and ends with
    /// the template. A hole sees the fixed tokens after it as far as its own block goes.
    ///
    /// # Errors
    /// A setting or a token out of its range; a template without a hole.
    pub fn fill(
        settings: BlockSettings,
        template: &[Option<u32>],
        seed: u64,
    ) -> Result<Self, Error> {
        settings.check()?;
        let template = TextTemplate::new(template)?;
        template.check("template", settings.vocab_size, Some(settings.mask_id))?;
        Ok(Self::start(settings, template, seed))
    }

    fn start(settings: BlockSettings, template: TextTemplate, seed: u64) -> Self {
        let mut sampler = Self {
            filter: settings.filter(),
            noise: Noise::new(seed),
            clock: Clock::new(
                settings.predictor,
                settings.convention.share,
                settings.certainty,
            ),
            text: Text::new(template),
            chosen: Vec::new(),
            decided: false,
            settings,
        };
        sampler.mask_block();
        sampler
    }

    /// Goes on to the next block with a hole, masked; false where there is none.
    fn mask_block(&mut self) -> bool {
        let s = &self.settings;
        self.clock.restart();
        let sizes = (s.first_block, s.block_size);
        self.text
            .begin_block(sizes, s.convention.last_block, |_| s.mask_id)
    }

    /// The part of the block that is revealed first: the answer's first window with a mask, or all of it.
    fn window(&self) -> Range<usize> {
        let block = self.text.block..self.text.tokens.len();
        let Some(size) = self.settings.window else {
            return block;
        };
        let first = self.masked(block.clone()).next().unwrap_or(block.start);
        let begin = self.text.prompt();
        let start = begin + (first.saturating_sub(begin)) / size * size;
        start.max(block.start)..(start + size).min(block.end)
    }

    fn masked(&self, positions: Range<usize>) -> impl Iterator<Item = usize> {
        positions.filter(|&position| self.text.tokens[position] == self.settings.mask_id)
    }

    pub(super) fn prepare(&mut self) {
        let s = &self.settings;
        if !self.text.offer(
            (s.first_block, s.block_size),
            s.prefill_chunk,
            s.time_conditioned,
        ) {
            return;
        }
        if !self.decided {
            let window = self.window();
            let masked: Vec<usize> = self.masked(window.clone()).collect();
            let size = s.window.unwrap_or(s.block_size);
            self.clock
                .advance(&masked, window.start, size, &self.noise, &mut self.chosen);
            self.decided = true;
        }
        let first = self.text.written;
        let rows = self.chosen.iter().map(|position| position - first);
        self.text.evaluation.rows.extend(rows);
        if self.settings.time_conditioned {
            self.text.evaluation.sigma = self.clock.sigma();
        }
    }

    /// What is drawn at a position: under a confidence threshold, of every candidate.
    pub(super) fn draw(&self, position: usize) -> Draw {
        Draw {
            filter: self.filter,
            tokens: self.settings.tokens,
            noise: self.noise,
            step: self.clock.step,
            position: position as u32,
            kind: self.clock.kind(),
        }
    }

    pub(super) fn reveal(&mut self, drawn: &[Drawn]) -> Progress {
        self.decided = false;
        let window = self.window();
        for index in self.clock.sure(drawn) {
            let (Some(&position), Some(&Drawn { token, .. })) =
                (self.chosen.get(index), drawn.get(index))
            else {
                continue;
            };
            self.text.tokens[position] = token;
            if self.settings.stop_ids.contains(&token) {
                self.text.end = self.text.end.min(position);
            }
            self.text.revealed.push((position, token));
        }
        let wanted = self.text.block..self.text.tokens.len().min(self.text.end);
        let next = self.masked(wanted).next();
        if let Some(next) = next {
            if next < window.end {
                return Progress::Continue;
            }
            // The next window's turn: what lies before it is final.
            self.clock.restart();
            self.text.settled = next;
            Progress::BlockDone
        } else if self.text.end < self.text.template.len() {
            Progress::Finished(Reason::Stop)
        } else if self.mask_block() {
            Progress::BlockDone
        } else {
            Progress::Finished(Reason::Length)
        }
    }
}
