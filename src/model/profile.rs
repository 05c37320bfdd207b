//! Where an evaluation's time goes.

use std::time::{Duration, Instant};

/// A stage of an evaluation. Stages do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardStage {
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
    Up,
    Gelu,
    /// Its narrow half.
    Down,
    /// All that banks add to the layers' and the head's products.
    Banks,
    Head,
    Bias,
    /// Tokens drawn from logits, and what samplers do with them.
    Drawing,
}

impl ForwardStage {
    pub const ALL: [ForwardStage; 14] = [
        ForwardStage::Plan,
        ForwardStage::Embedding,
        ForwardStage::Norm,
        ForwardStage::Qkv,
        ForwardStage::Rotary,
        ForwardStage::Attention,
        ForwardStage::Out,
        ForwardStage::Up,
        ForwardStage::Gelu,
        ForwardStage::Down,
        ForwardStage::Banks,
        ForwardStage::Head,
        ForwardStage::Bias,
        ForwardStage::Drawing,
    ];
}

/// Is told as each stage ends, with the floating-point operations of its matrix products with weights.
pub type StageHook<'a> = dyn FnMut(ForwardStage, usize) + 'a;

/// Time and floating-point operations by stage, added up over evaluations.
#[derive(Clone, Debug)]
pub struct Profile {
    since: Instant,
    spent: [(Duration, usize); ForwardStage::ALL.len()],
}

impl Default for Profile {
    fn default() -> Self {
        Profile {
            since: Instant::now(),
            spent: Default::default(),
        }
    }
}

impl Profile {
    /// The time from now on belongs to the next stage that ends.
    pub fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// A stage has ended, the next one begins.
    pub fn ended(&mut self, stage: ForwardStage, flops: usize) {
        let (time, sum) = &mut self.spent[stage as usize];
        let now = Instant::now();
        *time += now - std::mem::replace(&mut self.since, now);
        *sum += flops;
    }

    /// Time of a stage, and its products' floating-point operations.
    pub fn of(&self, stage: ForwardStage) -> (Duration, usize) {
        self.spent[stage as usize]
    }
}
