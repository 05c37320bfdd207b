//! What the families with a Qwen body share: pre-norm RMS, grouped queries, rotary embedding, SwiGLU.

use super::{
    Architecture, Attention, ConfigError, Head, Layer, LogitsOf, MatrixRole, Mlp, Norm,
    RotaryEmbedding, Rule, TensorSpec, Vocabulary, check_layers, check_rules, check_sizes, parse,
    refuse,
};
use crate::model::facts::{Grid, Process, Regime};
use serde::Deserialize;
use serde_json::Value;

/// What differs between bodies.
pub struct Body {
    /// Norms of queries and keys (Qwen3).
    pub qk_norm: bool,
    /// Biases of queries, keys and values (Qwen2).
    pub bias: bool,
    /// Where blocks are counted from.
    pub grid: Grid,
}

/// `config.json` of transformers' Qwen classes, with what diffusion adds.
#[derive(Debug, Deserialize)]
pub struct QwenConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    /// Where newer files keep the base.
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<Value>,
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    attention_bias: Option<bool>,
    hidden_act: Option<String>,
    #[serde(default)]
    use_sliding_window: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<Ids>,
    pub block_size: Option<usize>,
    pub mask_token_id: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

/// One id, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

/// What else transformers' classes, and those made from them, can be configured to.
const RULES: [Rule; 12] = [
    ("layer_types", |value| {
        let types = value.as_array().into_iter().flatten();
        value.is_array() && types.into_iter().all(|kind| kind == "full_attention")
    }),
    ("causal", |value| value == &Value::Bool(false)),
    ("mlp_bias", |value| value == &Value::Bool(false)),
    ("num_experts", |value| value == &Value::from(0)),
    ("num_local_experts", |value| value == &Value::from(0)),
    ("n_routed_experts", |value| value == &Value::from(0)),
    ("quantization_config", Value::is_null),
    ("partial_rotary_factor", |value| value.as_f64() == Some(1.0)),
    ("attn_logit_softcapping", Value::is_null),
    ("final_logit_softcapping", Value::is_null),
    ("logit_scale", |value| value.as_f64() == Some(1.0)),
    ("embedding_multiplier", |value| value.as_f64() == Some(1.0)),
];

/// Reads a configuration that asks for nothing else than what is computed here.
pub fn config(text: &[u8]) -> Result<QwenConfig, ConfigError> {
    check_rules(text, &RULES)?;
    parse(text)
}

impl QwenConfig {
    fn theta(&self) -> Result<f64, ConfigError> {
        let inner = self.rope_parameters.as_ref();
        let kind = inner.and_then(|inner| inner.rope_type.as_deref());
        if let Some(kind) = kind.filter(|kind| *kind != "default") {
            return refuse(
                "rope_parameters",
                format!("asks for {kind:?}, which is not served"),
            );
        }
        if self
            .rope_scaling
            .as_ref()
            .is_some_and(|scaling| !scaling.is_null())
        {
            return refuse("rope_scaling", "is not served");
        }
        match self.rope_theta.or(inner.and_then(|inner| inner.rope_theta)) {
            Some(theta) if theta.is_finite() && theta > 1.0 => Ok(theta),
            Some(theta) => refuse("rope_theta", format!("is {theta}, not above 1")),
            None => refuse("rope_theta", "is missing"),
        }
    }

    fn check(&self, body: &Body) -> Result<(), ConfigError> {
        check_layers("num_hidden_layers", self.num_hidden_layers)?;
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads.unwrap_or(1)),
            ("head_dim", self.head_dim.unwrap_or(2)),
            ("max_position_embeddings", self.max_position_embeddings),
            ("block_size", self.block_size.unwrap_or(1)),
        ])?;
        let (heads, kv_heads) = (self.num_attention_heads, self.kv_heads());
        if !heads.is_multiple_of(kv_heads) {
            return refuse(
                "num_key_value_heads",
                format!("is {kv_heads}, which does not divide {heads} heads"),
            );
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            return refuse(
                "head_dim",
                format!("is missing, and {} is not {heads} heads", self.hidden_size),
            );
        }
        if !self.head_dim().is_multiple_of(2) {
            return refuse("head_dim", format!("is {}, which is odd", self.head_dim()));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return refuse("rms_norm_eps", format!("is {}", self.rms_norm_eps));
        }
        if self.attention_bias.is_some_and(|bias| bias != body.bias) {
            let (is, family) = (!body.bias, body.bias);
            return refuse(
                "attention_bias",
                format!("is {is}, the family's is {family}"),
            );
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return refuse("hidden_act", format!("is {other:?}, not \"silu\""));
        }
        if self.use_sliding_window {
            return refuse("use_sliding_window", "is true, which is not served");
        }
        if let Some(block) = self
            .block_size
            .filter(|block| *block > self.max_position_embeddings)
        {
            return refuse("block_size", format!("is {block}, more than all positions"));
        }
        let rows = self.vocab_size;
        let outside = |id: &u32| *id as usize >= rows;
        if let Some(mask) = self.mask_token_id.filter(outside) {
            return refuse("mask_token_id", format!("is {mask} of {rows} rows"));
        }
        if let Some(id) = self.ends().into_iter().find(outside) {
            return refuse("eos_token_id", format!("is {id} of {rows} rows"));
        }
        Ok(())
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn ends(&self) -> Vec<u32> {
        match &self.eos_token_id {
            None => Vec::new(),
            Some(Ids::One(id)) => vec![*id],
            Some(Ids::Many(ids)) => ids.clone(),
        }
    }

    /// The network.
    pub fn network(&self, body: &Body) -> Result<Architecture, ConfigError> {
        let rotary = RotaryEmbedding {
            theta: self.theta()?,
        };
        self.check(body)?;
        let norm = Norm::Rms {
            eps: self.rms_norm_eps,
        };
        let layer = Layer {
            norm,
            attention: Attention {
                heads: self.num_attention_heads,
                kv_heads: self.kv_heads(),
                head_dim: self.head_dim(),
                qk_norm: body.qk_norm.then_some(norm),
                bias: body.bias,
                rotary,
            },
            mlp: Mlp::SwiGlu {
                width: self.intermediate_size,
            },
        };
        Ok(Architecture {
            family: "",
            vocabulary: Vocabulary {
                rows: self.vocab_size,
                tokens: self.vocab_size,
                mask: self.mask_token_id,
                begin: self.bos_token_id,
                ends: self.ends(),
            },
            hidden: self.hidden_size,
            layers: vec![layer; self.num_hidden_layers],
            norm,
            head: Head {
                tied: self.tie_word_embeddings,
                bias: false,
            },
            conditioning: None,
            logits: LogitsOf::Here,
            regime: Regime {
                process: Process::Absorbing,
                block: self.block_size,
                grid: body.grid,
                time_conditioned: false,
            },
            context: self.max_position_embeddings,
            tensors: self.tensors(&layer),
        })
    }

    fn tensors(&self, layer: &Layer) -> Vec<TensorSpec> {
        let (hidden, rows, attention) = (self.hidden_size, self.vocab_size, layer.attention);
        let (width, dim) = (self.intermediate_size, attention.head_dim);
        let (queries, keys) = (attention.heads * dim, attention.kv_heads * dim);
        let mut all = vec![whole(
            "embedding.weight",
            MatrixRole::Embedding,
            "model.embed_tokens.weight",
            &[rows, hidden],
        )];
        for number in 0..self.num_hidden_layers {
            let mut add =
                |name: &str, role: MatrixRole, parts: &[(String, usize)], input: Option<usize>| {
                    let published = |(part, rows): &(String, usize)| {
                        (format!("model.layers.{number}.{part}"), *rows)
                    };
                    let out: usize = parts.iter().map(|(_, rows)| rows).sum();
                    all.push(TensorSpec {
                        name: format!("layers.{number}.{name}"),
                        role,
                        layer: Some(number),
                        shape: [out].into_iter().chain(input).collect(),
                        parts: parts.iter().map(published).collect(),
                    });
                };
            let one = |name: &str, rows: usize| [(name.to_owned(), rows)];
            let sides = [("q", queries), ("k", keys), ("v", keys)];
            let qkv = |end: &str| {
                sides.map(|(side, rows)| (format!("self_attn.{side}_proj.{end}"), rows))
            };
            add(
                "norm1.weight",
                MatrixRole::AttentionNorm,
                &one("input_layernorm.weight", hidden),
                None,
            );
            add("qkv.weight", MatrixRole::Qkv, &qkv("weight"), Some(hidden));
            if attention.bias {
                add("qkv.bias", MatrixRole::QkvBias, &qkv("bias"), None);
            }
            if attention.qk_norm.is_some() {
                add(
                    "q_norm.weight",
                    MatrixRole::QueryNorm,
                    &one("self_attn.q_norm.weight", dim),
                    None,
                );
                add(
                    "k_norm.weight",
                    MatrixRole::KeyNorm,
                    &one("self_attn.k_norm.weight", dim),
                    None,
                );
            }
            add(
                "out.weight",
                MatrixRole::AttentionOut,
                &one("self_attn.o_proj.weight", hidden),
                Some(queries),
            );
            add(
                "norm2.weight",
                MatrixRole::MlpNorm,
                &one("post_attention_layernorm.weight", hidden),
                None,
            );
            add(
                "gate_up.weight",
                MatrixRole::Up,
                &[
                    one("mlp.gate_proj.weight", width),
                    one("mlp.up_proj.weight", width),
                ]
                .concat(),
                Some(hidden),
            );
            add(
                "down.weight",
                MatrixRole::Down,
                &one("mlp.down_proj.weight", hidden),
                Some(width),
            );
        }
        all.push(whole(
            "norm.weight",
            MatrixRole::FinalNorm,
            "model.norm.weight",
            &[hidden],
        ));
        if !self.tie_word_embeddings {
            all.push(whole(
                "head.weight",
                MatrixRole::Head,
                "lm_head.weight",
                &[rows, hidden],
            ));
        }
        all
    }
}

/// A tensor that is published as it is.
fn whole(name: &str, role: MatrixRole, published: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        role,
        layer: None,
        shape: shape.to_vec(),
        parts: vec![(published.to_owned(), shape[0])],
    }
}
