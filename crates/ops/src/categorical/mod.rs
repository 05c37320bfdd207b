//! From rows of logits to tokens: filters, draws by inverse CDF, and draws as data, which say what a step will draw
//! before the network has run.
//!
//! Every random number is a function of the request's seed, the step and the absolute position
//! ([`Noise`](crate::rng::Noise)), and every sum over a row runs in one fixed order: what is drawn depends on the row's own
//! logits and on nothing else in the batch.

mod distribution;
mod draw;
mod filter;
mod mixture;
#[cfg(test)]
mod tests;

pub use distribution::Distribution;
pub use draw::{Certainty, Draw, DrawKind, Drawn, anything, draw_all, drawable};
pub use filter::{Crossing, Filter, FilterWorkspace};
pub use mixture::Mixture;

/// What each of a (step, position)'s draws is for; part of what a seed means, so never renumbered.
pub mod draws {
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
