//! The uniform process of Duo (arXiv 2506.10892), over a whole sequence or block by block: every token that is not fixed
//! may change at every step.

use super::absorbing::MAX_STEPS;
use super::block::{LastBlock, MAX_BLOCK, MAX_TEMPERATURE};
use super::error::{self, Error};
use super::psi::Psi;
use super::schedule::LogLinear;
use super::template::Template;
use super::{Evaluation, Progress, Reason, draw_from};
use crate::ops::categorical::{Crossing, Draw, Drawn, Filter, Kind, anything, draws};
use crate::rng::Noise;

/// The last evaluation, which turns x at time eps into text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoiseRemoval {
    /// Draws from the posterior at alpha_s = 1.
    Ancestral,
    /// Takes the network's best token everywhere ("greedy tail").
    #[default]
    Greedy,
}

/// How noise becomes a text, or a block of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UniformPredictor {
    /// Steps before noise removal, which is one evaluation more.
    pub steps: u32,
    /// The time at which noise is removed; published: 1e-5.
    pub eps: f64,
    pub psi: Psi,
    pub noise_removal: NoiseRemoval,
}

impl Default for UniformPredictor {
    fn default() -> Self {
        Self {
            steps: 64,
            eps: 1e-5,
            psi: Psi::ANCESTRAL,
            noise_removal: NoiseRemoval::Greedy,
        }
    }
}

impl UniformPredictor {
    fn check(&self) -> Result<(), Error> {
        error::count("steps", self.steps as usize, 1, MAX_STEPS as usize)?;
        error::within("eps", self.eps, 1e-9, 0.5)?;
        self.psi.check(self.eps)
    }
}

/// What a request and its variant ask of the uniform sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct UniformSettings {
    /// Tokens denoised together; `None` for the whole sequence.
    pub block_size: Option<usize>,
    /// Tokens to make after the prompt.
    pub max_tokens: usize,
    pub predictor: UniformPredictor,
    /// Of x̂0; 0 puts everything on the best token.
    pub temperature: f32,
    /// In (0, 1]; the token that crosses p is kept, as in Duo's sampler.
    pub nucleus_p: f32,
    pub top_k: Option<usize>,
    /// Tokens that end the text and are not part of it.
    pub stop_ids: Vec<u32>,
    /// How many tokens the process draws from. Rows of logits may be longer: what comes after is not looked at.
    pub vocab_size: usize,
    /// False where the network is not told the noise level; sigma is 0 then.
    pub time_conditioned: bool,
    /// Tokens of clean blocks to one evaluation, rounded down to whole blocks but at least one.
    pub prefill_chunk: usize,
}

impl UniformSettings {
    fn check(&self) -> Result<(), Error> {
        error::count("block_size", self.block_size.unwrap_or(1), 1, MAX_BLOCK)?;
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
        error::tokens("stop_ids", &self.stop_ids, self.vocab_size)
    }
}

/// One sequence of the uniform process, of which the whole (without a block size) or one block after the other goes from
/// noise to text. Fixed tokens are in the network's view at every step and never change.
///
/// Every evaluation asks for the rows of all positions of the block that are not fixed. Blocks before it are clean and
/// in the cache; where the network is told the noise level, writing them takes evaluations of their own, at sigma 0,
/// else they come first in the next block's evaluation.
#[derive(Clone, Debug)]
pub struct UniformSampler {
    settings: UniformSettings,
    filter: Filter,
    noise: Noise,
    /// The grid, `steps` + 1 times, and kappa for the step that leaves each.
    times: Vec<f64>,
    kappas: Vec<f64>,
    template: Template,
    prompt: usize,
    end: usize,
    /// All tokens up to the end of the current block.
    tokens: Vec<u32>,
    /// First position of the current block.
    block: usize,
    /// Positions below this one are in the cache: whole blocks.
    written: usize,
    /// Steps taken in this block: the index of the present time, and the step index of the noise less one.
    taken: usize,
    evaluation: Evaluation,
    /// True while `evaluation` waits for what is drawn.
    offered: bool,
    revealed: Vec<(usize, u32)>,
    nfe: u32,
    prefills: u32,
    finished: Option<Reason>,
}

impl UniformSampler {
    /// `prompt` tokens are fixed, `max_tokens` after them are made.
    ///
    /// # Errors
    /// A setting or a prompt token out of its range.
    pub fn new(settings: UniformSettings, prompt: &[u32], seed: u64) -> Result<Self, Error> {
        settings.check()?;
        let template = Template::continuation(prompt, settings.max_tokens)?;
        template.check("prompt", settings.vocab_size, None)?;
        Ok(Self::start(settings, template, seed))
    }

    /// Fills the holes (`None`) of a template; `max_tokens` is not used. The text begins at the first hole and ends with
    /// the template.
    ///
    /// # Errors
    /// A setting or a token out of its range; a template without a hole.
    pub fn fill(settings: UniformSettings, template: &[Option<u32>], seed: u64) -> Result<Self, Error> {
        settings.check()?;
        let template = Template::new(template)?;
        template.check("template", settings.vocab_size, None)?;
        Ok(Self::start(settings, template, seed))
    }

    fn start(settings: UniformSettings, template: Template, seed: u64) -> Self {
        let UniformPredictor { steps, eps, psi, .. } = settings.predictor;
        let times = psi.times(steps as usize, eps);
        let filter = Filter {
            temperature: settings.temperature,
            top_k: settings.top_k,
            nucleus_p: settings.nucleus_p,
            crossing: Crossing::Kept,
            forbidden: None,
        };
        let mut sampler = Self {
            filter,
            noise: Noise::new(seed),
            kappas: psi.kappas(&times, LogLinear::UNIFORM),
            times,
            prompt: template.first_hole(),
            end: template.len(),
            template,
            tokens: Vec::new(),
            block: 0,
            written: 0,
            taken: 0,
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
        sampler.begin_block();
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

    /// What is to be drawn of each of `next`'s rows, in their order. Nothing before `next` was asked.
    pub fn draws(&self) -> Vec<Draw> {
        let first = self.evaluation.first_position;
        let rows = self.evaluation.rows.iter().filter(|_| self.offered);
        rows.map(|row| self.draw(first + row)).collect()
    }

    /// Draws from the logits of `next`'s rows, in their order, each at least [vocab_size], and takes that.
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
        self.taken += 1;
        let first = self.evaluation.first_position;
        for (row, &Drawn { token, .. }) in self.evaluation.rows.iter().zip(drawn) {
            let position = first + row;
            if self.tokens[position] != token {
                self.tokens[position] = token;
                self.revealed.push((position, token));
            }
        }
        self.revealed.retain(|&(position, _)| position < self.end);
        if self.taken < self.times.len() {
            return Progress::Continue;
        }
        self.finish_block()
    }

    /// The tokens of finished blocks, without the prompt, the stop token and what follows it, and without what a last
    /// block has beyond the text: nothing of a block is final before its last step.
    pub fn generated(&self) -> &[u32] {
        let final_end = if self.finished.is_some() {
            self.end
        } else {
            self.block.max(self.prompt)
        };
        &self.tokens[self.prompt..final_end]
    }

    /// What the last [`take`](Self::take) changed: absolute positions, ascending, and tokens.
    pub fn revealed(&self) -> &[(usize, u32)] {
        &self.revealed
    }

    /// Denoising evaluations so far, noise removal included.
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

    /// Goes on to the next block with a hole, as noise; false where there is none.
    fn begin_block(&mut self) -> bool {
        let (size, last) = match self.settings.block_size {
            Some(size) => (size, LastBlock::Whole),
            None => (self.template.len(), LastBlock::Cut),
        };
        let (noise, vocab) = (self.noise, self.settings.vocab_size);
        let prior = |position: usize| anything(noise.uniform(0, position as u32, draws::TOKEN), vocab);
        let block = self.template.next_block(&mut self.tokens, size, last, prior);
        self.taken = 0;
        self.block = block.unwrap_or(self.block);
        block.is_some()
    }

    fn prepare(&mut self) {
        let blocks = self.settings.prefill_chunk / self.settings.block_size.unwrap_or(1);
        let chunk = blocks.max(1) * self.settings.block_size.unwrap_or(1);
        let clean = (self.block - self.written).min(chunk);
        let evaluation = &mut self.evaluation;
        evaluation.first_position = self.written;
        evaluation.clean = clean;
        evaluation.sigma = 0.0;
        evaluation.rows.clear();
        evaluation.tokens.clear();
        let conditioned = self.settings.time_conditioned;
        if self.written + clean < self.block || (clean > 0 && conditioned) {
            let clean = self.written..self.written + clean;
            evaluation.tokens.extend(&self.tokens[clean]);
            return;
        }
        evaluation.tokens.extend(&self.tokens[self.written..]);
        let free = (self.block..self.tokens.len()).filter(|&position| self.template.is_free(position));
        evaluation.rows.extend(free.map(|position| position - self.written));
        if conditioned {
            evaluation.sigma = LogLinear::UNIFORM.sigma(self.times[self.taken]) as f32;
        }
    }

    fn finish_block(&mut self) -> Progress {
        let mut made = self.block..self.tokens.len().min(self.end);
        let stops = |&position: &usize| {
            self.template.is_free(position) && self.settings.stop_ids.contains(&self.tokens[position])
        };
        let reason = if let Some(stop) = made.find(stops) {
            self.end = stop;
            Reason::Stop
        } else if self.begin_block() {
            return Progress::BlockDone;
        } else {
            Reason::Length
        };
        self.finished = Some(reason);
        Progress::Finished(reason)
    }

    /// How the step that leaves the `taken`-th time draws at a position. The last one leaves no noise.
    fn draw(&self, position: usize) -> Draw {
        let (taken, alpha) = (self.taken, |time: f64| LogLinear::UNIFORM.alpha(time));
        let next = self.times.get(taken + 1);
        let kind = if next.is_none() && self.settings.predictor.noise_removal == NoiseRemoval::Greedy {
            Kind::Best
        } else {
            let (alpha_s, kappa) = next.map_or((1.0, 1.0), |&s| (alpha(s), self.kappas[taken]));
            Kind::Mixture {
                present: self.tokens[position],
                alpha_t: alpha(self.times[taken]),
                alpha_s,
                kappa,
            }
        };
        Draw {
            filter: self.filter,
            tokens: self.settings.vocab_size,
            noise: self.noise,
            step: taken as u32 + 1, // step 0 drew the prior
            position: position as u32,
            kind,
        }
    }
}
