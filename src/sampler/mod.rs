//! Samplers are state machines: they show which tokens they want evaluated and what they want drawn from which rows of
//! logits, take what was drawn, and say how it went. They never call the network.
//!
//! Every random number is a function of the request's seed, the step and the absolute position
//! ([`Noise`](crate::rng::Noise)): the text of a request depends on its own logits and on nothing else in the batch.

mod absorbing;
mod block;
mod error;
mod nelbo;
mod notation;
mod psi;
pub mod schedule;
mod template;
mod uniform;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

pub use absorbing::{MAX_STEPS, Predictor};
pub use block::{BlockSampler, BlockSettings, LastBlock, MAX_BLOCK, MAX_TEMPERATURE};
pub use error::Error;
pub use nelbo::uniform_rate;
pub use psi::{Kappa, Psi, TimeProfile};
pub use uniform::{NoiseRemoval, UniformPredictor, UniformSampler, UniformSettings};

pub use crate::ops::categorical::{Crossing, Distribution, Filter, Mixture, Workspace};
use crate::ops::categorical::{Draw, Drawn, draw_all};

/// What a sampler wants evaluated next. See `model::Segment` for the visibility rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Absolute position of `tokens[0]`.
    pub first_position: usize,
    pub tokens: Vec<u32>,
    /// How many leading tokens are clean (their keys and values are to be kept).
    pub clean: usize,
    /// Indices into `tokens`, ascending, whose logits are needed; empty for a prefill.
    pub rows: Vec<usize>,
    /// The noise level of this evaluation.
    pub sigma: f32,
}

/// What became of a sequence after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Continue,
    /// The block's tokens are final: they may be delivered.
    BlockDone,
    Finished(Reason),
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The requested number of tokens was made.
    Length,
    /// A stop id was made; it and what follows it are not part of the text.
    Stop,
}

/// A sampler of either process.
#[derive(Clone, Debug)]
pub enum Sampler {
    Block(BlockSampler),
    Uniform(UniformSampler),
}

impl Sampler {
    /// What is to be evaluated next: the same until [`take`](Self::take) has taken what was drawn.
    #[expect(
        clippy::should_implement_trait,
        reason = "no iterator: what comes next depends on `take`"
    )]
    pub fn next(&mut self) -> &Evaluation {
        match self {
            Self::Block(sampler) => sampler.next(),
            Self::Uniform(sampler) => sampler.next(),
        }
    }

    /// What is to be drawn of each of `next`'s rows, in their order. Nothing before `next` was asked.
    pub fn draws(&self) -> Vec<Draw> {
        match self {
            Self::Block(sampler) => sampler.draws(),
            Self::Uniform(sampler) => sampler.draws(),
        }
    }

    /// Takes what became of [`draws`](Self::draws).
    pub fn take(&mut self, drawn: &[Drawn]) -> Progress {
        match self {
            Self::Block(sampler) => sampler.take(drawn),
            Self::Uniform(sampler) => sampler.take(drawn),
        }
    }

    /// Draws from the logits of `next`'s rows, in their order, each [vocab], and takes that.
    pub fn accept(&mut self, logits: &[&[f32]]) -> Progress {
        let drawn = draw_from(&self.draws(), logits);
        self.take(&drawn)
    }

    /// Final tokens so far, without the prompt.
    pub fn generated(&self) -> &[u32] {
        match self {
            Self::Block(sampler) => sampler.generated(),
            Self::Uniform(sampler) => sampler.generated(),
        }
    }

    /// What the last `take` revealed or changed: absolute positions, ascending, and tokens.
    pub fn revealed(&self) -> &[(usize, u32)] {
        match self {
            Self::Block(sampler) => sampler.revealed(),
            Self::Uniform(sampler) => sampler.revealed(),
        }
    }

    /// Denoising evaluations so far.
    pub fn nfe(&self) -> u32 {
        match self {
            Self::Block(sampler) => sampler.nfe(),
            Self::Uniform(sampler) => sampler.nfe(),
        }
    }

    /// Evaluations so far that only wrote clean tokens to the cache.
    pub fn prefills(&self) -> u32 {
        match self {
            Self::Block(sampler) => sampler.prefills(),
            Self::Uniform(sampler) => sampler.prefills(),
        }
    }

    /// The whole blocks before the current one, of which the first [`cached`](Self::cached) are in the cache.
    pub fn clean(&self) -> &[u32] {
        match self {
            Self::Block(sampler) => sampler.clean(),
            Self::Uniform(sampler) => sampler.clean(),
        }
    }

    pub fn cached(&self) -> usize {
        match self {
            Self::Block(sampler) => sampler.cached(),
            Self::Uniform(sampler) => sampler.cached(),
        }
    }

    /// Takes it that the first `cached` positions are in the cache and no others, whole blocks of [`clean`](Self::clean). The
    /// text does not change by it, only what is evaluated on the way.
    pub fn resume(&mut self, cached: usize) {
        match self {
            Self::Block(sampler) => sampler.resume(cached),
            Self::Uniform(sampler) => sampler.resume(cached),
        }
    }

    /// Why the sequence ended, if it did.
    pub fn finished(&self) -> Option<Reason> {
        match self {
            Self::Block(sampler) => sampler.finished(),
            Self::Uniform(sampler) => sampler.finished(),
        }
    }
}

/// What becomes of draws, given each one's logits: rows of one sequence, several to a thread.
fn draw_from(draws: &[Draw], logits: &[&[f32]]) -> Vec<Drawn> {
    draw_all(draws.par_iter().zip(logits.par_iter().copied()).with_min_len(16))
}
