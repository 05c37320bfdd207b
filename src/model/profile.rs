//! Where an evaluation's time goes.

use std::time::{Duration, Instant};

/// A part of an evaluation. Parts do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Checks, lists of rows, modulation tables looked up or made.
    Plan,
    Embedding,
    /// Residual gates, norms and modulation.
    Norm,
    /// Queries, keys and values: the base's matrix.
    Qkv,
    /// Rotary embedding; new keys and values written to the cache.
    Rotary,
    Attention,
    /// Attention's output.
    Out,
    /// The wide half of the MLP.
    Expand,
    Gelu,
    /// Its narrow half.
    Contract,
    /// All that banks add to the layers' and the head's products.
    Banks,
    Head,
    Bias,
    /// Tokens drawn from logits, and what samplers do with them.
    Drawing,
}

impl Part {
    pub const ALL: [Part; 14] = [
        Part::Plan,
        Part::Embedding,
        Part::Norm,
        Part::Qkv,
        Part::Rotary,
        Part::Attention,
        Part::Out,
        Part::Expand,
        Part::Gelu,
        Part::Contract,
        Part::Banks,
        Part::Head,
        Part::Bias,
        Part::Drawing,
    ];
}

/// Watches an evaluation go by: `()` does not look, and costs nothing.
pub trait Meter {
    /// Does `work`, which is this part of the evaluation and takes so many floating-point operations of matrix products.
    fn part<T>(&mut self, part: Part, flops: usize, work: impl FnOnce() -> T) -> T;
}

impl Meter for () {
    #[inline(always)]
    fn part<T>(&mut self, _part: Part, _flops: usize, work: impl FnOnce() -> T) -> T {
        work()
    }
}

/// Time and floating-point operations by part, added up over evaluations.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    spent: [(Duration, usize); Part::ALL.len()],
}

impl Profile {
    /// Time of a part, and its products' floating-point operations.
    pub fn of(&self, part: Part) -> (Duration, usize) {
        self.spent[part as usize]
    }
}

impl Meter for Profile {
    fn part<T>(&mut self, part: Part, flops: usize, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        let (time, sum) = &mut self.spent[part as usize];
        *time += start.elapsed();
        *sum += flops;
        done
    }
}
