//! What a tensor is to its network, whatever its name: how it is kept, coded and multiplied follows from this.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatrixRole {
    /// A row for every token: looked up, and where the head is tied multiplied by, too.
    Embedding,
    /// From the last activations to logits.
    Head,
    /// Queries, keys and values, one below the other.
    Qkv,
    AttentionOut,
    /// The wide half of an MLP; of a gated one the gate, and up below it.
    Up,
    /// The narrow half.
    Down,
    /// Before attention.
    AttentionNorm,
    /// Before the MLP.
    MlpNorm,
    /// Of each head's query.
    QueryNorm,
    /// Of each head's key.
    KeyNorm,
    /// Behind the last layer.
    FinalNorm,
    QkvBias,
    UpBias,
    DownBias,
    HeadBias,
    /// From the noise level to what modulates the layers.
    Conditioning,
}

impl MatrixRole {
    /// Whether rows of activations are multiplied by it, or looked up in it.
    pub fn is_matrix(self) -> bool {
        use MatrixRole::*;
        matches!(self, Embedding | Head | Qkv | AttentionOut | Up | Down)
    }
}

/// As a file has it.
impl fmt::Display for MatrixRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
