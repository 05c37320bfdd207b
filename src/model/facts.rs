//! What others may know of a network, whatever its family.

use serde::{Deserialize, Serialize};

/// The corruption process a checkpoint was trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// Masked diffusion: what is not known yet is the mask.
    Absorbing,
    /// Uniform-state diffusion (Duo): there is no mask.
    Uniform,
}

/// Where a text's blocks are counted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grid {
    /// Position 0: the prompt's last tokens may begin the first block that is denoised.
    #[default]
    Start,
    /// The prompt's end: its first block may be shorter.
    PromptEnd,
}

impl Grid {
    /// Tokens before the first whole block of a text with such a prompt.
    pub fn phase(self, prompt: usize, block: usize) -> usize {
        match self {
            Grid::Start => 0,
            Grid::PromptEnd => prompt % block,
        }
    }
}

/// How a base or a variant of it is run: it belongs to the checkpoint, and a variant's may differ from its base's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regime {
    pub process: Process,
    /// Block size of a block-causal checkpoint; `None` where attention is bidirectional over the whole sequence.
    pub block: Option<usize>,
    pub grid: Grid,
    /// Whether it is told the noise level; sigma is always 0 otherwise.
    pub time_conditioned: bool,
}

/// Keys and values of one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    pub layers: usize,
    /// Heads of keys and values: fewer than queries have where these are grouped.
    pub heads: usize,
    pub head_dim: usize,
}

impl CacheShape {
    /// Numbers in one layer's key, or value, of a position.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Sizes and conventions of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    /// As the published configuration names it (`model_type`): how its samplers differ from others' goes with it.
    pub family: &'static str,
    /// Whether a text may outgrow the context: what lies further back than that is forgotten then.
    pub slides: bool,
    /// Rows of the embedding and of the output head: the length of a row of logits.
    pub rows: usize,
    /// A text is made of the ids below this one, but for the mask.
    pub tokens: usize,
    pub mask: Option<u32>,
    /// Longest context in tokens.
    pub context: usize,
    /// How the network itself is run.
    pub regime: Regime,
    /// Width of a position's activations between layers.
    pub hidden: usize,
    pub parameters: usize,
    pub cache: CacheShape,
}

impl NetworkFacts {
    /// Whether a text can have this token.
    pub fn is_token(&self, id: u32) -> bool {
        (id as usize) < self.tokens && self.mask != Some(id)
    }
}
