//! How large what is measured is.

use choir::model::{Architecture, DitConfig};

#[derive(Clone, Debug)]
pub struct Sizes {
    /// Bytes that a copy reads.
    pub copy: usize,
    /// Bytes that no cache of the device holds a useful part of.
    pub cold: usize,
    /// Rows, outputs and inputs of a large product.
    pub gemm: usize,
    /// Outputs and inputs of products of few rows.
    pub skinny: usize,
    /// Of matrices that are retrieved: outputs, inputs.
    pub retrieve: [usize; 2],
    /// Of banks that rows go through: outputs, inputs.
    pub banks: Vec<[usize; 2]>,
    /// Rows and vocabulary of logits.
    pub sampling: Vec<[usize; 2]>,
    /// Networks in blocks.
    pub small: DitConfig,
    pub large: DitConfig,
    /// Decoder bodies, by the names of their shapes.
    pub decoders: Vec<(String, Architecture)>,
    /// Positions before a step's block.
    pub cached: usize,
    /// Tokens that one sequence makes.
    pub tokens: usize,
    /// Numbers of whole sequences in a batch.
    pub sequences: Vec<usize>,
}

fn blocks(layers: usize, hidden: usize, heads: usize) -> DitConfig {
    DitConfig {
        model_type: "bd3lm".into(),
        vocab_size: 50_258,
        model_length: 1024,
        hidden_dim: hidden,
        cond_dim: 128,
        n_blocks: layers,
        n_heads: heads,
        block_size: Some(16),
        cross_attn: true,
        time_conditioning: None,
        states: None,
    }
}

impl Sizes {
    /// For a device of 80 GB: matrices of gibibytes, the published small network, and one of four billion parameters.
    pub fn full() -> Self {
        Self {
            copy: 1 << 30,
            cold: 200 << 20,
            gemm: 8192,
            skinny: 4096,
            retrieve: [16_384, 32_768],
            banks: vec![[4096, 4096], [12_288, 4096], [4096, 16_384], [50_258, 768]],
            sampling: vec![[64, 50_258], [1024, 50_258]],
            small: blocks(12, 768, 12),
            large: blocks(20, 4096, 32),
            decoders: super::shape("sdar-4b").into_iter().collect(),
            cached: 256,
            tokens: 128,
            sequences: vec![1, 4, 16],
        }
    }
}
