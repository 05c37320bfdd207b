//! Samplers are state machines: they show which tokens they want evaluated and what they want drawn from which rows of
//! logits, take what was drawn, and say how it went. They never call the network.
//!
//! Every random number is a function of the request's seed, the step and the absolute position
//! ([`Noise`](crate::rng::Noise)): the text of a request depends on its own logits and on nothing else in the batch.

mod absorbing;
mod block;
pub mod choice;
mod error;
mod family;
mod notation;
mod psi;
pub mod schedule;
mod score;
pub mod settings;
mod template;
#[cfg(test)]
mod tests;
mod text;
mod uniform;

use rayon::prelude::*;

pub use absorbing::{AbsorbingPredictor, MAX_STEPS, StepSplit};
pub use block::{BlockSampler, BlockSettings, Convention, LastBlock, MAX_BLOCK, MAX_TEMPERATURE};
pub use choice::{PredictorKind, PsiParams, SamplingParams};
pub use error::Error;
pub use psi::{Kappa, Psi, TimeProfile};
pub use score::{MAX_SAMPLES, ScoreSettings, Scorer};
pub use settings::Sampling;
use text::Text;
pub use uniform::{NoiseRemoval, UniformPredictor, UniformSampler, UniformSettings};

pub use crate::ops::categorical::{
    Certainty, Crossing, Distribution, Filter, FilterWorkspace, Mixture,
};
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
    fn text(&self) -> &Text {
        match self {
            Self::Block(sampler) => &sampler.text,
            Self::Uniform(sampler) => &sampler.text,
        }
    }

    fn text_mut(&mut self) -> &mut Text {
        match self {
            Self::Block(sampler) => &mut sampler.text,
            Self::Uniform(sampler) => &mut sampler.text,
        }
    }

    /// What is to be evaluated next: the same until [`take`](Self::take) has taken what was drawn. Means nothing
    /// once the sequence is finished.
    #[expect(
        clippy::should_implement_trait,
        reason = "no iterator: what comes next depends on `take`"
    )]
    pub fn next(&mut self) -> &Evaluation {
        let text = self.text_mut();
        if !text.offered && text.finished.is_none() {
            text.offered = true;
            match self {
                Self::Block(sampler) => sampler.prepare(),
                Self::Uniform(sampler) => sampler.prepare(),
            }
        }
        &self.text().evaluation
    }

    /// What is to be drawn of each of `next`'s rows, in their order. Nothing before `next` was asked.
    pub fn draws(&self) -> Vec<Draw> {
        let text = self.text();
        let rows = text.evaluation.rows.iter().filter(|_| text.offered);
        let positions = rows.map(|row| text.evaluation.first_position + row);
        positions
            .map(|position| match self {
                Self::Block(sampler) => sampler.draw(position),
                Self::Uniform(sampler) => sampler.draw(position),
            })
            .collect()
    }

    /// Takes what became of [`draws`](Self::draws).
    pub fn take(&mut self, drawn: &[Drawn]) -> Progress {
        let text = self.text_mut();
        text.revealed.clear();
        if let Some(reason) = text.finished {
            return Progress::Finished(reason);
        }
        if !std::mem::take(&mut text.offered) {
            return Progress::Continue;
        }
        text.written += text.evaluation.clean;
        if text.evaluation.rows.is_empty() {
            text.prefills += 1;
            return Progress::Continue;
        }
        debug_assert_eq!(drawn.len(), text.evaluation.rows.len());
        text.nfe += 1;
        let progress = match self {
            Self::Block(sampler) => sampler.reveal(drawn),
            Self::Uniform(sampler) => sampler.reveal(drawn),
        };
        let text = self.text_mut();
        let end = text.end;
        text.revealed.retain(|&(position, _)| position < end);
        if let Progress::Finished(reason) = progress {
            text.finished = Some(reason);
        }
        progress
    }

    /// Draws from the logits of `next`'s rows, in their order, each [at least the vocabulary], and takes that.
    pub fn accept(&mut self, logits: &[&[f32]]) -> Progress {
        let drawn = draw_from(&self.draws(), logits);
        self.take(&drawn)
    }

    /// The tokens of finished blocks, without the prompt, the stop token and what follows it, and without what a last
    /// block has beyond the text's length.
    pub fn generated(&self) -> &[u32] {
        self.text().generated()
    }

    /// What the last [`take`](Self::take) revealed or changed: absolute positions, ascending, and tokens; nothing past the
    /// text's end.
    pub fn revealed(&self) -> &[(usize, u32)] {
        &self.text().revealed
    }

    /// Denoising evaluations so far, noise removal included.
    pub fn nfe(&self) -> u32 {
        self.text().nfe
    }

    /// Evaluations so far that only wrote clean blocks to the cache.
    pub fn prefills(&self) -> u32 {
        self.text().prefills
    }

    /// The whole blocks before the current one: what is in the cache, or is going to be, of which the first
    /// [`cached`](Self::cached) are.
    pub fn clean(&self) -> &[u32] {
        let text = self.text();
        &text.tokens[..text.block]
    }

    pub fn cached(&self) -> usize {
        self.text().written
    }

    /// Takes it that the first `cached` positions are in the cache and no others, whole blocks of [`clean`](Self::clean). The
    /// text does not change by it, only what is evaluated on the way.
    pub fn resume(&mut self, cached: usize) {
        let text = self.text_mut();
        text.written = cached.min(text.block);
        text.offered = false;
    }

    /// Why the sequence ended, if it did.
    pub fn finished(&self) -> Option<Reason> {
        self.text().finished
    }
}

/// What becomes of draws, given each one's logits: rows of one sequence, several to a thread.
fn draw_from(draws: &[Draw], logits: &[&[f32]]) -> Vec<Drawn> {
    draw_all(
        draws
            .par_iter()
            .zip(logits.par_iter().copied())
            .with_min_len(16),
    )
}
