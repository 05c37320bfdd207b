//! Samplers are state machines: they show which tokens they want evaluated and which rows of logits they need,
//! take logits, and say how it went. They never call the network.
//!
//! Every random number is a function of the request's seed, the step and the absolute position
//! ([`Noise`](crate::rng::Noise)), and every sum over a row of logits runs in one fixed order: the text of a request
//! depends on its own logits and on nothing else in the batch.

mod absorbing;
mod block;
mod categorical;
mod error;
mod filter;
mod mixture;
mod nelbo;
mod notation;
mod psi;
pub mod schedule;
mod template;
mod uniform;
#[cfg(test)]
mod tests;

pub use absorbing::{MAX_STEPS, Predictor};
pub use block::{BlockSampler, BlockSettings, LastBlock, MAX_BLOCK, MAX_TEMPERATURE};
pub use categorical::Distribution;
pub use error::Error;
pub use filter::{Crossing, Filter, Workspace};
pub use mixture::Mixture;
pub use nelbo::uniform_rate;
pub use psi::{Kappa, Psi, TimeProfile};
pub use uniform::{NoiseRemoval, UniformPredictor, UniformSampler, UniformSettings};

/// What each of a (step, position)'s draws is for; part of what a seed means, so never renumbered.
mod draws {
    /// The token.
    pub const TOKEN: u32 = 0;
    /// Whether the position is revealed (ancestral).
    pub const REVEAL: u32 = 1;
    /// Which of the masked positions is revealed (first-hitting; drawn at the block's first position).
    pub const PLACE: u32 = 2;
    /// How long until then (first-hitting; drawn at the block's first position).
    pub const TIME: u32 = 3;
    /// Whether the token is kept, guessed anew or replaced (uniform).
    pub const BRANCH: u32 = 4;
}

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
    /// What is to be evaluated next: the same until [`accept`](Self::accept) has taken its logits.
    #[expect(
        clippy::should_implement_trait,
        reason = "no iterator: what comes next depends on `accept`"
    )]
    pub fn next(&mut self) -> &Evaluation {
        match self {
            Self::Block(sampler) => sampler.next(),
            Self::Uniform(sampler) => sampler.next(),
        }
    }

    /// Takes the logits of `next`'s rows, in their order, each [vocab].
    pub fn accept(&mut self, logits: &[&[f32]]) -> Progress {
        match self {
            Self::Block(sampler) => sampler.accept(logits),
            Self::Uniform(sampler) => sampler.accept(logits),
        }
    }

    /// Final tokens so far, without the prompt.
    pub fn generated(&self) -> &[u32] {
        match self {
            Self::Block(sampler) => sampler.generated(),
            Self::Uniform(sampler) => sampler.generated(),
        }
    }

    /// What the last `accept` revealed or changed: absolute positions, ascending, and tokens.
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

    /// Why the sequence ended, if it did.
    pub fn finished(&self) -> Option<Reason> {
        match self {
            Self::Block(sampler) => sampler.finished(),
            Self::Uniform(sampler) => sampler.finished(),
        }
    }
}
