//! Samplers are state machines: they show which tokens they want evaluated and which rows of logits they need,
//! take logits, and say how it went. They never call the network.

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
