//! The DiT of BD3-LM, MDLM and Duo: LayerNorm modulated by the noise level, GELU, rotary embedding of base 10000.

use super::{
    Architecture, Attention, Conditioning, ConfigError, Head, Layer, LogitsOf, MatrixRole, Mlp,
    Norm, RotaryEmbedding, Rule, TensorSpec, Vocabulary, check_layers, check_rules, check_sizes,
    parse, refuse,
};
use crate::model::facts::{Grid, NetworkFacts, Process, Regime};
use serde::{Deserialize, Serialize};
use serde_json::Value;

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

impl DitConfig {
    /// Refuses sizes that no network has; an error names the field.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_layers("n_blocks", self.n_blocks)?;
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("model_length", self.model_length),
            ("hidden_dim", self.hidden_dim),
            ("cond_dim", self.cond_dim),
            ("n_heads", self.n_heads),
            ("block_size", self.block_size.unwrap_or(1)),
            ("states", self.states.unwrap_or(1)),
        ])?;
        let (heads, rows) = (self.n_heads, self.vocab_size);
        if !self.hidden_dim.is_multiple_of(heads) || !self.head_dim().is_multiple_of(2) {
            return refuse(
                "hidden_dim",
                format!(
                    "{} is not n_heads {heads} heads of even size",
                    self.hidden_dim
                ),
            );
        }
        if self.tokens() > rows || self.tokens() < 2 {
            let reason = format!("{rows} has {} tokens: none or too many", self.tokens());
            return refuse("vocab_size", reason);
        }
        let whole = |block| self.model_length.is_multiple_of(block);
        if self.cross_attn && !self.block_size.is_some_and(whole) {
            return refuse(
                "model_length",
                format!("{} is not whole blocks", self.model_length),
            );
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

    /// What others may know of a checked one.
    pub fn facts(&self) -> NetworkFacts {
        self.described().facts()
    }

    pub fn conditioning(&self) -> Conditioning {
        Conditioning {
            width: self.cond_dim,
            frequencies: self.frequency_dim(),
        }
    }

    /// The network.
    pub fn architecture(&self) -> Result<Architecture, ConfigError> {
        self.check()?;
        Ok(self.described())
    }

    /// The network, unchecked.
    pub fn described(&self) -> Architecture {
        let (width, norm) = (self.hidden_dim, Norm::DIT);
        let layer = Layer {
            norm,
            attention: Attention {
                heads: self.n_heads,
                kv_heads: self.n_heads,
                head_dim: self.head_dim(),
                qk_norm: None,
                bias: false,
                rotary: RotaryEmbedding { theta: 10000.0 },
            },
            mlp: Mlp::Gelu { width: 4 * width },
        };
        Architecture {
            family: match self.process() {
                Process::Uniform => "duo",
                Process::Absorbing if self.cross_attn => "bd3lm",
                Process::Absorbing => "mdlm",
            },
            vocabulary: Vocabulary {
                rows: self.vocab_size,
                tokens: self.tokens(),
                mask: self.mask_id(),
                begin: None,
                ends: Vec::new(),
            },
            hidden: width,
            layers: vec![layer; self.n_blocks],
            norm,
            head: Head {
                tied: false,
                bias: true,
            },
            conditioning: Some(self.conditioning()),
            logits: LogitsOf::Here,
            regime: self.regime(),
            context: self.model_length,
            tensors: self.specs(),
        }
    }

    /// How the network itself is run.
    pub fn regime(&self) -> Regime {
        Regime {
            process: self.process(),
            block: self.block(),
            grid: Grid::Start,
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
        let specs = self.specs().into_iter();
        specs.map(|spec| (spec.name, spec.shape)).collect()
    }

    fn specs(&self) -> Vec<TensorSpec> {
        use MatrixRole::{
            AttentionNorm, AttentionOut, Down, DownBias, Embedding, FinalNorm, HeadBias, MlpNorm,
            Qkv, Up, UpBias,
        };
        let (h, c, v) = (self.hidden_dim, self.cond_dim, self.vocab_size);
        let spec = |layer: Option<usize>, name: &str, role, shape: &[usize]| {
            let name = match layer {
                Some(layer) => format!("blocks.{layer}.{name}"),
                None => name.to_owned(),
            };
            TensorSpec {
                parts: vec![(format!("backbone.{name}"), shape[0])],
                name,
                role,
                layer,
                shape: shape.to_vec(),
            }
        };
        let mut all = vec![
            spec(None, "vocab_embed.embedding", Embedding, &[v, h]),
            spec(
                None,
                "sigma_map.mlp.0.weight",
                MatrixRole::Conditioning,
                &[c, self.frequency_dim()],
            ),
            spec(None, "sigma_map.mlp.0.bias", MatrixRole::Conditioning, &[c]),
            spec(
                None,
                "sigma_map.mlp.2.weight",
                MatrixRole::Conditioning,
                &[c, c],
            ),
            spec(None, "sigma_map.mlp.2.bias", MatrixRole::Conditioning, &[c]),
        ];
        for layer in 0..self.n_blocks {
            let own = |name: &str, role, shape: &[usize]| spec(Some(layer), name, role, shape);
            all.extend([
                own("norm1.weight", AttentionNorm, &[h]),
                own("attn_qkv.weight", Qkv, &[3 * h, h]),
                own("attn_out.weight", AttentionOut, &[h, h]),
                own("norm2.weight", MlpNorm, &[h]),
                own("mlp.0.weight", Up, &[4 * h, h]),
                own("mlp.0.bias", UpBias, &[4 * h]),
                own("mlp.2.weight", Down, &[h, 4 * h]),
                own("mlp.2.bias", DownBias, &[h]),
                own(
                    "adaLN_modulation.weight",
                    MatrixRole::Conditioning,
                    &[6 * h, c],
                ),
                own("adaLN_modulation.bias", MatrixRole::Conditioning, &[6 * h]),
            ]);
        }
        let last = |name: &str, role, shape: &[usize]| {
            spec(None, &format!("output_layer.{name}"), role, shape)
        };
        all.extend([
            last("norm_final.weight", FinalNorm, &[h]),
            last("linear.weight", MatrixRole::Head, &[v, h]),
            last("linear.bias", HeadBias, &[v]),
            last(
                "adaLN_modulation.weight",
                MatrixRole::Conditioning,
                &[2 * h, c],
            ),
            last("adaLN_modulation.bias", MatrixRole::Conditioning, &[2 * h]),
        ]);
        all
    }
}

/// The output head's matrix.
pub const HEAD: &str = "output_layer.linear.weight";
/// The embedding.
pub const EMBEDDING: &str = "vocab_embed.embedding";

/// A layer's matrices: queries, keys and values; attention's output; the wide and the narrow half of the MLP.
pub fn layer_products(layer: usize) -> [String; 4] {
    ["attn_qkv", "attn_out", "mlp.0", "mlp.2"]
        .map(|matrix| format!("blocks.{layer}.{matrix}.weight"))
}

/// The matrices that serve as products of rows; all other tensors are looked up or turned into tables.
pub fn is_product(name: &str) -> bool {
    let layer = name.starts_with("blocks.") && !name.contains("adaLN") && !name.contains("norm");
    (layer || name.starts_with("output_layer.linear")) && name.ends_with(".weight")
}

/// What else the published classes can be configured to.
const RULES: [Rule; 3] = [
    ("adaln", |value| value == &Value::Bool(true)),
    ("causal", |value| value == &Value::Bool(false)),
    ("quantization_config", Value::is_null),
];

pub fn read(config: &[u8]) -> Result<Architecture, ConfigError> {
    check_rules(config, &RULES)?;
    parse::<DitConfig>(config)?.architecture()
}
