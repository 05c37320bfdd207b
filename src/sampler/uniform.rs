//! The uniform process of Duo (arXiv 2506.10892): a whole sequence, every token of which may change at every step.

use rayon::prelude::*;

use super::absorbing::MAX_STEPS;
use super::block::MAX_TEMPERATURE;
use super::error::{self, Error};
use super::filter::{Crossing, Filter, Workspace};
use super::psi::Psi;
use super::schedule::LogLinear;
use super::{Evaluation, Progress, Reason, draws};
use crate::rng::Noise;

/// A step's distribution at one position, as a mixture of three: keep the token, draw from x̂0, draw from all tokens alike.
/// So no posterior over the vocabulary is ever written down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    pub keep: f64,
    pub predicted: f64,
    pub uniform: f64,
}

impl Mixture {
    /// kappa q(x_s | x_t, x̂0) + (1 - kappa) q(x_s | x_0 ~ q(x_0 | x_t, x̂0)): the posterior of Duo (its equation for
    /// `_posterior_from_x0`) and the corrector of the Psi-samplers.
    ///
    /// `p`: what x̂0 gives the present token; `vocab`: size of the vocabulary; 0 < alpha_t <= alpha_s <= 1.
    pub fn new(alpha_t: f64, alpha_s: f64, kappa: f64, p: f64, vocab: usize) -> Self {
        let own = alpha_t * vocab as f64 * p;
        let z = own + 1.0 - alpha_t;
        if z <= 0.0 {
            // alpha_t = 1 and p = 0: no noise, and a token that the network rules out.
            return Self {
                keep: 0.0,
                predicted: alpha_s,
                uniform: 1.0 - alpha_s,
            };
        }
        let alpha_ts = alpha_t / alpha_s;
        let corrector = 1.0 - kappa;
        Self {
            keep: (kappa * (own + alpha_ts - alpha_t) + corrector * alpha_s * own) / z,
            predicted: (kappa * (alpha_s - alpha_t) + corrector * alpha_s * (1.0 - alpha_t)) / z,
            uniform: kappa * (1.0 - alpha_ts) * (1.0 - alpha_s) / z + corrector * (1.0 - alpha_s),
        }
    }
}

/// The last evaluation, which turns x at time eps into text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoiseRemoval {
    /// Draws from the posterior at alpha_s = 1.
    Ancestral,
    /// Takes the network's best token everywhere ("greedy tail").
    #[default]
    Greedy,
}

/// What a request and its variant ask of the uniform sampler.
#[derive(Clone, Debug, PartialEq)]
pub struct UniformSettings {
    /// Tokens to make after the prompt.
    pub max_tokens: usize,
    /// Steps before noise removal, which is one evaluation more.
    pub steps: u32,
    /// The time at which noise is removed; published: 1e-5.
    pub eps: f64,
    pub predictor: Psi,
    pub noise_removal: NoiseRemoval,
    /// Of x̂0; 0 puts everything on the best token.
    pub temperature: f32,
    /// In (0, 1]; the token that crosses p is kept, as in Duo's sampler.
    pub nucleus_p: f32,
    pub top_k: Option<usize>,
    /// Tokens that end the text and are not part of it.
    pub stop_ids: Vec<u32>,
    pub vocab_size: usize,
    /// False where the network is not told the noise level; sigma is 0 then.
    pub time_conditioned: bool,
}

impl UniformSettings {
    fn check(&self) -> Result<(), Error> {
        error::count("vocab_size", self.vocab_size, 2, u32::MAX as usize)?;
        error::within("max_tokens", self.max_tokens as f64, 1.0, f64::INFINITY)?;
        error::count("steps", self.steps as usize, 1, MAX_STEPS as usize)?;
        error::within("eps", self.eps, 1e-9, 0.5)?;
        self.predictor.check(self.eps)?;
        error::within(
            "temperature",
            f64::from(self.temperature),
            0.0,
            f64::from(MAX_TEMPERATURE),
        )?;
        error::share("nucleus_p", self.nucleus_p)?;
        error::count("top_k", self.top_k.unwrap_or(1), 1, usize::MAX)?;
        error::tokens("stop_ids", &self.stop_ids, self.vocab_size)
    }
}

/// One sequence of the uniform process. Every evaluation covers the whole of it and asks for the rows of all positions
/// that are not fixed; the fixed ones are in the network's view at every step and never change.
#[derive(Clone, Debug)]
pub struct UniformSampler {
    settings: UniformSettings,
    filter: Filter,
    noise: Noise,
    /// The grid, `steps` + 1 times, and kappa for the step that leaves each.
    times: Vec<f64>,
    kappas: Vec<f64>,
    prompt: usize,
    end: usize,
    /// Steps taken: the index of the present time, and the step index of the noise less one.
    taken: usize,
    evaluation: Evaluation,
    revealed: Vec<(usize, u32)>,
    nfe: u32,
    finished: Option<Reason>,
}

impl UniformSampler {
    /// `prompt` tokens are fixed, `max_tokens` after them are made.
    ///
    /// # Errors
    /// A setting or a prompt token out of its range.
    pub fn new(settings: UniformSettings, prompt: &[u32], seed: u64) -> Result<Self, Error> {
        settings.check()?;
        error::length("max_tokens", prompt.len(), settings.max_tokens)?;
        error::tokens("prompt", prompt, settings.vocab_size)?;
        let holes = std::iter::repeat_n(None, settings.max_tokens);
        let template: Vec<Option<u32>> = prompt.iter().copied().map(Some).chain(holes).collect();
        Ok(Self::start(settings, &template, seed))
    }

    /// Fills the holes (`None`) of a template; `max_tokens` is not used. The text begins at the first hole.
    ///
    /// # Errors
    /// A setting or a token out of its range; a template without a hole.
    pub fn fill(settings: UniformSettings, template: &[Option<u32>], seed: u64) -> Result<Self, Error> {
        settings.check()?;
        error::length("template", template.len(), 0)?;
        let holes = template.iter().filter(|token| token.is_none()).count();
        error::count("template", holes, 1, template.len())?;
        let tokens: Vec<u32> = template.iter().map(|token| token.unwrap_or(0)).collect();
        error::tokens("template", &tokens, settings.vocab_size)?;
        Ok(Self::start(settings, template, seed))
    }

    fn start(settings: UniformSettings, template: &[Option<u32>], seed: u64) -> Self {
        let noise = Noise::new(seed);
        let vocab = settings.vocab_size;
        let prior = |position: usize| anything(noise.uniform(0, position as u32, draws::TOKEN), vocab);
        let tokens = template
            .iter()
            .enumerate()
            .map(|(position, token)| token.unwrap_or_else(|| prior(position)));
        let rows: Vec<usize> = (0..template.len())
            .filter(|&position| template[position].is_none())
            .collect();
        let times = settings.predictor.times(settings.steps as usize, settings.eps);
        let filter = Filter {
            temperature: settings.temperature,
            top_k: settings.top_k,
            nucleus_p: settings.nucleus_p,
            crossing: Crossing::Kept,
            forbidden: None,
        };
        let mut sampler = Self {
            filter,
            noise,
            kappas: settings.predictor.kappas(&times, LogLinear::UNIFORM),
            times,
            prompt: rows.first().copied().unwrap_or(0),
            end: template.len(),
            taken: 0,
            evaluation: Evaluation {
                first_position: 0,
                tokens: tokens.collect(),
                clean: 0,
                rows,
                sigma: 0.0,
            },
            revealed: Vec::new(),
            nfe: 0,
            finished: None,
            settings,
        };
        sampler.set_sigma();
        sampler
    }

    /// What is to be evaluated next: the whole sequence. Means nothing once the sequence is finished.
    #[expect(
        clippy::should_implement_trait,
        reason = "no iterator: what comes next depends on `accept`"
    )]
    pub fn next(&mut self) -> &Evaluation {
        &self.evaluation
    }

    /// Takes the logits of `next`'s rows, in their order, each [vocab_size].
    pub fn accept(&mut self, logits: &[&[f32]]) -> Progress {
        self.revealed.clear();
        if let Some(reason) = self.finished {
            return Progress::Finished(reason);
        }
        debug_assert_eq!(logits.len(), self.evaluation.rows.len());
        self.nfe += 1;
        self.taken += 1;
        let drawn: Vec<u32> = (self.evaluation.rows.par_iter().zip(logits))
            .with_min_len(16)
            .map_init(Workspace::default, |workspace, (&position, row)| {
                self.draw(position, row, workspace)
            })
            .collect();
        for (&position, token) in self.evaluation.rows.iter().zip(drawn) {
            let present = &mut self.evaluation.tokens[position];
            if *present != token {
                *present = token;
                self.revealed.push((position, token));
            }
        }
        if self.taken < self.times.len() {
            self.set_sigma();
            return Progress::Continue;
        }
        let made = &self.evaluation.tokens[self.prompt..];
        let stop = made.iter().position(|token| self.settings.stop_ids.contains(token));
        let reason = stop.map_or(Reason::Length, |_| Reason::Stop);
        self.end = stop.map_or(self.end, |stop| self.prompt + stop);
        self.finished = Some(reason);
        Progress::Finished(reason)
    }

    /// The text, once the sequence is finished: nothing is final before.
    pub fn generated(&self) -> &[u32] {
        match self.finished {
            Some(_) => &self.evaluation.tokens[self.prompt..self.end],
            None => &[],
        }
    }

    /// What the last [`accept`](Self::accept) changed: absolute positions, ascending, and tokens.
    pub fn revealed(&self) -> &[(usize, u32)] {
        &self.revealed
    }

    /// Evaluations so far, noise removal included.
    pub fn nfe(&self) -> u32 {
        self.nfe
    }

    pub fn finished(&self) -> Option<Reason> {
        self.finished
    }

    fn set_sigma(&mut self) {
        if self.settings.time_conditioned {
            self.evaluation.sigma = LogLinear::UNIFORM.sigma(self.times[self.taken]) as f32;
        }
    }

    /// The token of a position after the step that ends at the `taken`-th time (or at no noise, after the last).
    fn draw(&self, position: usize, logits: &[f32], workspace: &mut Workspace) -> u32 {
        let last = self.taken == self.times.len();
        if last && self.settings.noise_removal == NoiseRemoval::Greedy {
            return self.filter.best(logits);
        }
        let predicted = self.filter.distribution(logits, workspace);
        let present = self.evaluation.tokens[position];
        let alpha_t = LogLinear::UNIFORM.alpha(self.times[self.taken - 1]);
        let (alpha_s, kappa) = match self.times.get(self.taken) {
            Some(&s) => (LogLinear::UNIFORM.alpha(s), self.kappas[self.taken - 1]),
            None => (1.0, 1.0),
        };
        let mixture = Mixture::new(
            alpha_t,
            alpha_s,
            kappa,
            predicted.probability(present),
            self.settings.vocab_size,
        );
        let uniform = |draw| self.noise.uniform(self.taken as u32, position as u32, draw);
        let branch = uniform(draws::BRANCH);
        if branch < mixture.keep {
            present
        } else if branch < mixture.keep + mixture.uniform {
            anything(uniform(draws::TOKEN), self.settings.vocab_size)
        } else {
            predicted.draw(uniform(draws::TOKEN))
        }
    }
}

/// Any token, all alike.
fn anything(uniform: f64, vocab: usize) -> u32 {
    (uniform * vocab as f64) as u32
}
