//! The uniform process of Duo (arXiv 2506.10892), over a whole sequence or block by block: every token that is not fixed
//! may change at every step.

use super::absorbing::MAX_STEPS;
use super::block::{LastBlock, MAX_BLOCK};
use super::error::{self, Error};
use super::psi::Psi;
use super::schedule::LogLinear;
use super::template::TextTemplate;
use super::text::Text;
use super::{Progress, Reason};
use crate::ops::categorical::{Crossing, Draw, DrawKind, Drawn, Filter, anything, draws};
use crate::rng::Noise;
use serde::{Deserialize, Serialize};

/// The last evaluation, which turns x at time eps into text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseRemoval {
    /// Draws from the posterior at alpha_s = 1.
    Ancestral,
    /// Takes the network's best token everywhere ("greedy tail").
    #[default]
    Greedy,
}

/// How noise becomes a text, or a block of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UniformPredictor {
    /// Steps before noise removal, which is one evaluation more.
    pub steps: u32,
    /// The time at which noise is removed; published: 1e-5.
    pub eps: f64,
    pub noise_removal: NoiseRemoval,
    pub psi: Psi,
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
        error::filter(&self.filter())?;
        error::at_least_one("prefill_chunk", self.prefill_chunk)?;
        error::tokens("stop_ids", &self.stop_ids, self.vocab_size)
    }

    fn filter(&self) -> Filter {
        Filter {
            temperature: self.temperature,
            top_k: self.top_k,
            nucleus_p: self.nucleus_p,
            crossing: Crossing::Kept,
            forbidden: None,
        }
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
    pub(super) text: Text,
    /// Steps taken in this block: the index of the present time, and the step index of the noise less one.
    taken: usize,
}

impl UniformSampler {
    /// `prompt` tokens are fixed, `max_tokens` after them are made.
    ///
    /// # Errors
    /// A setting or a prompt token out of its range.
    pub fn new(settings: UniformSettings, prompt: &[u32], seed: u64) -> Result<Self, Error> {
        settings.check()?;
        let template = TextTemplate::continuation(prompt, settings.max_tokens)?;
        template.check("prompt", settings.vocab_size, None)?;
        Ok(Self::start(settings, template, seed))
    }

    /// Fills the holes (`None`) of a template; `max_tokens` is not used. The text begins at the first hole and ends with
    /// the template.
    ///
    /// # Errors
    /// A setting or a token out of its range; a template without a hole.
    pub fn fill(
        settings: UniformSettings,
        template: &[Option<u32>],
        seed: u64,
    ) -> Result<Self, Error> {
        settings.check()?;
        let template = TextTemplate::new(template)?;
        template.check("template", settings.vocab_size, None)?;
        Ok(Self::start(settings, template, seed))
    }

    fn start(settings: UniformSettings, template: TextTemplate, seed: u64) -> Self {
        let UniformPredictor {
            steps, eps, psi, ..
        } = settings.predictor;
        let times = psi.times(steps as usize, eps);
        let mut sampler = Self {
            filter: settings.filter(),
            noise: Noise::new(seed),
            kappas: psi.kappas(&times, LogLinear::UNIFORM),
            times,
            text: Text::new(template),
            taken: 0,
            settings,
        };
        sampler.begin_block();
        sampler
    }

    /// Goes on to the next block with a hole, as noise; false where there is none.
    fn begin_block(&mut self) -> bool {
        let (size, last) = match self.settings.block_size {
            Some(size) => (size, LastBlock::Whole),
            None => (self.text.template.len(), LastBlock::Cut),
        };
        let (noise, vocab) = (self.noise, self.settings.vocab_size);
        let prior =
            |position: usize| anything(noise.uniform(0, position as u32, draws::TOKEN), vocab);
        self.taken = 0;
        self.text.begin_block((0, size), last, prior)
    }

    pub(super) fn prepare(&mut self) {
        let s = &self.settings;
        let (size, text) = (s.block_size.unwrap_or(1), &mut self.text);
        if !text.offer((0, size), s.prefill_chunk, s.time_conditioned) {
            return;
        }
        let free =
            (text.block..text.tokens.len()).filter(|&position| text.template.is_free(position));
        text.evaluation
            .rows
            .extend(free.map(|position| position - text.written));
        if s.time_conditioned {
            text.evaluation.sigma = LogLinear::UNIFORM.sigma(self.times[self.taken]) as f32;
        }
    }

    /// How the step that leaves the `taken`-th time draws at a position. The last one leaves no noise.
    pub(super) fn draw(&self, position: usize) -> Draw {
        let (taken, alpha) = (self.taken, |time: f64| LogLinear::UNIFORM.alpha(time));
        let next = self.times.get(taken + 1);
        let kind =
            if next.is_none() && self.settings.predictor.noise_removal == NoiseRemoval::Greedy {
                DrawKind::Best
            } else {
                let (alpha_s, kappa) = next.map_or((1.0, 1.0), |&s| (alpha(s), self.kappas[taken]));
                DrawKind::Mixture {
                    present: self.text.tokens[position],
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

    pub(super) fn reveal(&mut self, drawn: &[Drawn]) -> Progress {
        self.taken += 1;
        let text = &mut self.text;
        let first = text.evaluation.first_position;
        for (row, &Drawn { token, .. }) in text.evaluation.rows.iter().zip(drawn) {
            let position = first + row;
            if text.tokens[position] != token {
                text.tokens[position] = token;
                text.revealed.push((position, token));
            }
        }
        if self.taken < self.times.len() {
            return Progress::Continue;
        }
        let stops = |&position: &usize| {
            text.template.is_free(position)
                && self.settings.stop_ids.contains(&text.tokens[position])
        };
        if let Some(stop) = (text.block..text.tokens.len().min(text.end)).find(stops) {
            text.end = stop;
            Progress::Finished(Reason::Stop)
        } else if self.begin_block() {
            Progress::BlockDone
        } else {
            Progress::Finished(Reason::Length)
        }
    }
}
