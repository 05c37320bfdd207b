//! What a checkpoint is: the published `config.json`, read and checked.

use super::facts::{CacheShape, NetworkFacts, Process, Regime};
use serde::{Deserialize, Serialize};

/// The DiT's sizes and conventions, from a published `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DitConfig {
    /// `bd3lm`, `mdlm` or `duo` (any case).
    pub model_type: String,
    /// Rows of the embedding and of the output head, the mask included.
    pub vocab_size: usize,
    /// Longest context in tokens.
    pub model_length: usize,
    pub hidden_dim: usize,
    pub cond_dim: usize,
    /// Transformer layers (the published name says blocks).
    pub n_blocks: usize,
    pub n_heads: usize,
    /// Tokens denoised together; absent in Duo's and ignored without `cross_attn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<usize>,
    /// True where the checkpoint was trained block-causally (BD3-LM).
    #[serde(default)]
    pub cross_attn: bool,
    /// False: sigma is always 0. Absent means false for BD3-LM and true for Duo.
    #[serde(default)]
    pub time_conditioning: Option<bool>,
    /// Tokens that the uniform process draws from: the first rows of the vocabulary. Absent in published files; a
    /// uniform fine-tune of an absorbing base has one less than `vocab_size`, because the mask is never a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<usize>,
}

/// Of any size: products of two, and of small numbers, do not overflow.
const LARGEST: usize = 1 << 24;

impl DitConfig {
    /// Refuses sizes that no network has; an error names the field.
    pub fn check(&self) -> candle_core::Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("model_length", self.model_length),
            ("hidden_dim", self.hidden_dim),
            ("cond_dim", self.cond_dim),
            ("n_blocks", self.n_blocks),
            ("n_heads", self.n_heads),
            ("block_size", self.block_size.unwrap_or(1)),
            ("states", self.states.unwrap_or(1)),
        ];
        if let Some((field, size)) = sizes.iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
            candle_core::bail!("config.json: {field} is {size}, not within 1 and {LARGEST}")
        }
        if !self.hidden_dim.is_multiple_of(self.n_heads) || !self.head_dim().is_multiple_of(2) {
            candle_core::bail!(
                "config.json: hidden_dim {} is not n_heads {} heads of even size",
                self.hidden_dim,
                self.n_heads
            )
        }
        if self.tokens() > self.vocab_size || self.tokens() < 2 {
            candle_core::bail!(
                "config.json: {} tokens of a vocab_size of {} are none or too many",
                self.tokens(),
                self.vocab_size
            )
        }
        if self.cross_attn
            && self
                .block_size
                .is_none_or(|block| !self.model_length.is_multiple_of(block))
        {
            candle_core::bail!(
                "config.json: model_length {} is not whole blocks",
                self.model_length
            )
        }
        Ok(())
    }

    pub fn process(&self) -> Process {
        if self.model_type.eq_ignore_ascii_case("duo") {
            Process::Uniform
        } else {
            Process::Absorbing
        }
    }

    /// Of a uniform-state fine-tune of this network: in blocks with clean ones before them, or of whole sequences.
    pub fn uniform(&self, block: Option<usize>) -> Self {
        let masked = self.mask_id().is_some();
        Self {
            model_type: "duo".to_owned(),
            states: self.states.or(masked.then(|| self.tokens())),
            cross_attn: block.is_some(),
            block_size: block,
            time_conditioning: Some(true),
            ..self.clone()
        }
    }

    /// Of a variant of this network that was tuned for `regime`.
    pub fn tuned(&self, regime: Regime) -> Self {
        match regime.process {
            Process::Absorbing => self.clone(),
            Process::Uniform => Self {
                time_conditioning: Some(regime.time_conditioned),
                ..self.uniform(regime.block)
            },
        }
    }

    pub fn time_conditioned(&self) -> bool {
        self.time_conditioning
            .unwrap_or(self.process() == Process::Uniform)
    }

    /// What others may know of it.
    pub fn facts(&self) -> NetworkFacts {
        NetworkFacts {
            family: "dit",
            slides: true,
            rows: self.vocab_size,
            tokens: self.tokens(),
            mask: self.mask_id(),
            context: self.model_length,
            regime: self.regime(),
            hidden: self.hidden_dim,
            parameters: (self.tensors().iter())
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum(),
            cache: CacheShape {
                layers: self.n_blocks,
                heads: self.n_heads,
                head_dim: self.head_dim(),
            },
        }
    }

    /// How the network itself is run.
    pub fn regime(&self) -> Regime {
        Regime {
            process: self.process(),
            block: self.block(),
            time_conditioned: self.time_conditioned(),
        }
    }

    /// Block size of a block-causal checkpoint; `None` where attention is bidirectional over the whole sequence.
    pub fn block(&self) -> Option<usize> {
        if self.cross_attn {
            self.block_size
        } else {
            None
        }
    }

    /// The mask token: the last row of the vocabulary, in the absorbing process only.
    pub fn mask_id(&self) -> Option<u32> {
        (self.process() == Process::Absorbing).then(|| self.vocab_size as u32 - 1)
    }

    /// Tokens that a text is made of, the first rows of the vocabulary: all but the mask.
    pub fn tokens(&self) -> usize {
        self.states
            .unwrap_or(self.vocab_size - usize::from(self.mask_id().is_some()))
    }

    pub fn head_dim(&self) -> usize {
        self.hidden_dim / self.n_heads
    }

    /// Sinusoidal features of sigma: 256 in every published network.
    pub fn frequency_dim(&self) -> usize {
        256
    }

    /// Every weight's internal name (without `backbone.`) and shape; linear weights are [out, in].
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, c, v) = (self.hidden_dim, self.cond_dim, self.vocab_size);
        let mut all = vec![
            ("vocab_embed.embedding".to_owned(), vec![v, h]),
            (
                "sigma_map.mlp.0.weight".to_owned(),
                vec![c, self.frequency_dim()],
            ),
            ("sigma_map.mlp.0.bias".to_owned(), vec![c]),
            ("sigma_map.mlp.2.weight".to_owned(), vec![c, c]),
            ("sigma_map.mlp.2.bias".to_owned(), vec![c]),
        ];
        for layer in 0..self.n_blocks {
            let parts = [
                ("norm1.weight", vec![h]),
                ("attn_qkv.weight", vec![3 * h, h]),
                ("attn_out.weight", vec![h, h]),
                ("norm2.weight", vec![h]),
                ("mlp.0.weight", vec![4 * h, h]),
                ("mlp.0.bias", vec![4 * h]),
                ("mlp.2.weight", vec![h, 4 * h]),
                ("mlp.2.bias", vec![h]),
                ("adaLN_modulation.weight", vec![6 * h, c]),
                ("adaLN_modulation.bias", vec![6 * h]),
            ];
            all.extend(parts.map(|(name, shape)| (format!("blocks.{layer}.{name}"), shape)));
        }
        all.extend([
            ("output_layer.norm_final.weight".to_owned(), vec![h]),
            ("output_layer.linear.weight".to_owned(), vec![v, h]),
            ("output_layer.linear.bias".to_owned(), vec![v]),
            (
                "output_layer.adaLN_modulation.weight".to_owned(),
                vec![2 * h, c],
            ),
            ("output_layer.adaLN_modulation.bias".to_owned(), vec![2 * h]),
        ]);
        all
    }
}
