//! What a network is, as data: a family reads it from the published `config.json`, the executors interpret it.

pub mod a2d;
pub mod adapter;
pub mod dit;
pub mod published;
mod qwen;
pub mod sdar;
#[cfg(test)]
mod tests;

use super::facts::{CacheShape, NetworkFacts, Regime};
pub use crate::ops::norm::Norm;
use crate::ops::quantized::Quantisation;
pub use crate::superposition::MatrixRole;
use serde::Deserialize;
use serde_json::Value;

/// A network.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// As `model_type` says it.
    pub family: &'static str,
    pub vocabulary: Vocabulary,
    /// Width of the activations between layers.
    pub hidden: usize,
    pub layers: Vec<Layer>,
    /// Behind the last layer.
    pub norm: Norm,
    pub head: Head,
    /// How the layers are told the noise level, where they are.
    pub conditioning: Option<Conditioning>,
    pub logits: LogitsOf,
    pub regime: Regime,
    /// Positions, at most.
    pub context: usize,
    /// All of its tensors.
    pub tensors: Vec<TensorSpec>,
}

/// Tokens, as far as the configuration knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Rows of the embedding and of the head.
    pub rows: usize,
    /// A text is made of the ids below this one, but for the mask. A tokenizer with fewer pieces makes it less.
    pub tokens: usize,
    pub mask: Option<u32>,
    pub begin: Option<u32>,
    /// Any of these ends a text.
    pub ends: Vec<u32>,
}

/// x += attention(norm(x)); x += mlp(norm(x)); both norms of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer {
    pub norm: Norm,
    pub attention: Attention,
    pub mlp: Mlp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    /// Heads of keys and values: a divisor of `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Of each head's queries and keys, before rotary embedding.
    pub qk_norm: Option<Norm>,
    /// Of queries, keys and values.
    pub bias: bool,
    pub rotary: RotaryEmbedding,
}

impl Attention {
    /// Numbers in a row's queries, keys and values.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Rotary position embedding of whole heads, halves side by side: angle of pair i at position p is p θ^(-2i / head_dim).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryEmbedding {
    pub theta: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// down(gelu(up(x))), each with a bias.
    Gelu { width: usize },
    /// down(silu(gate(x)) up(x)), without.
    SwiGlu { width: usize },
}

impl Mlp {
    /// Numbers that the wide half gives to a row.
    pub fn intermediate(self) -> usize {
        match self {
            Mlp::Gelu { width } => width,
            Mlp::SwiGlu { width } => 2 * width,
        }
    }

    /// Numbers that the narrow half takes.
    pub fn width(self) -> usize {
        match self {
            Mlp::Gelu { width } | Mlp::SwiGlu { width } => width,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The embedding is its matrix.
    pub tied: bool,
    pub bias: bool,
}

/// adaLN: norms and residual branches of all layers are modulated by a function of the noise level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditioning {
    pub width: usize,
    /// Sinusoidal features of sigma.
    pub frequencies: usize,
}

/// Which token a position's logits are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsOf {
    /// The one at that position.
    Here,
}

/// One tensor, and what it is made of in a published checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name inside, which seeds and stores know it by.
    pub name: String,
    pub role: MatrixRole,
    pub layer: Option<usize>,
    /// Matrices are [out, in].
    pub shape: Vec<usize>,
    /// Published names, and how many rows each brings, one below the other.
    pub parts: Vec<(String, usize)>,
}

impl Architecture {
    /// Of a published `config.json`.
    ///
    /// # Errors
    /// A `model_type` that no family here has, a field that is missing, and one that contradicts another or asks for what the
    /// family does not do; each by its name.
    pub fn read(config: &[u8]) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Typed {
            model_type: String,
        }
        let typed: Typed = parse(config)?;
        let family = FAMILIES
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(&typed.model_type));
        let Some((name, read)) = family else {
            return Err(ConfigError::Family {
                found: typed.model_type,
            });
        };
        let mut read = read(config)?;
        read.family = name;
        Ok(read)
    }

    /// The attention that all layers share.
    pub fn attention(&self) -> Attention {
        self.layers[0].attention
    }

    /// The tensor with this role; of a layer where it is a layer's.
    pub fn tensor(&self, role: MatrixRole, layer: Option<usize>) -> Option<&TensorSpec> {
        let found = |spec: &&TensorSpec| spec.role == role && spec.layer == layer;
        self.tensors.iter().find(found)
    }

    /// Its tensors' names and roles.
    pub fn roles(&self) -> impl Iterator<Item = (&str, MatrixRole)> + Clone {
        self.tensors.iter().map(|spec| (&spec.name[..], spec.role))
    }

    /// Numbers in all its matrices: what bits a weight are counted by.
    pub fn weights(&self) -> usize {
        let matrices = self.tensors.iter().filter(|spec| spec.shape.len() == 2);
        matrices
            .map(|spec| spec.shape.iter().product::<usize>())
            .sum()
    }

    /// What others may know of it.
    pub fn facts(&self) -> NetworkFacts {
        let attention = self.attention();
        let elements = |spec: &TensorSpec| spec.shape.iter().product::<usize>();
        NetworkFacts {
            family: self.family,
            slides: self.conditioning.is_some(),
            rows: self.vocabulary.rows,
            tokens: self.vocabulary.tokens,
            mask: self.vocabulary.mask,
            context: self.context,
            regime: self.regime,
            hidden: self.hidden,
            parameters: self.tensors.iter().map(elements).sum(),
            cache: CacheShape {
                layers: self.layers.len(),
                heads: attention.kv_heads,
                head_dim: attention.head_dim,
            },
        }
    }

    /// Bytes of all tensors with the matrices in `form`.
    pub fn bytes(&self, form: Quantisation) -> usize {
        let tensor = |spec: &TensorSpec| match spec.shape[..] {
            [out, input] if spec.role.is_matrix() => form.bytes(out, input),
            [out, input] if form != Quantisation::F32 => 2 * out * input,
            _ => 4 * spec.shape.iter().product::<usize>(),
        };
        self.tensors.iter().map(tensor).sum()
    }

    /// Bytes that loading takes beside them: the largest tensor as it is published and in f32.
    pub fn loading_bytes(&self) -> usize {
        let tensor = |spec: &TensorSpec| 8 * spec.shape.iter().product::<usize>();
        self.tensors.iter().map(tensor).max().unwrap_or_default()
    }

    /// What the matrices are kept in where nobody says it: f32 while that is little of the memory there is, and else four bits.
    pub fn usual_form(&self, memory: Option<u64>) -> Quantisation {
        match memory {
            Some(memory) if self.bytes(Quantisation::F32) as u64 > memory / 16 => Quantisation::Q4K,
            _ => Quantisation::F32,
        }
    }

    /// The first thing, by its name in config.json, in which a network of this one's tensors computes something else.
    pub fn differs(&self, other: &Architecture) -> Option<&'static str> {
        let (ours, theirs) = (self.attention(), other.attention());
        // Of the DiT a checkpoint may be of another process, and is then called something else.
        let (heads, family) = match self.conditioning {
            Some(_) => ("n_heads", false),
            None => ("num_attention_heads", self.family != other.family),
        };
        let different = [
            ("model_type", family),
            ("vocab_size", self.vocabulary.rows != other.vocabulary.rows),
            ("hidden_size", self.hidden != other.hidden),
            ("num_hidden_layers", self.layers.len() != other.layers.len()),
            (heads, ours.heads != theirs.heads),
            ("num_key_value_heads", ours.kv_heads != theirs.kv_heads),
            ("head_dim", ours.head_dim != theirs.head_dim),
            ("rope_theta", ours.rotary != theirs.rotary),
            (
                "intermediate_size",
                self.layers[0].mlp != other.layers[0].mlp,
            ),
            ("rms_norm_eps", self.norm != other.norm),
            ("tie_word_embeddings", self.head != other.head),
            ("states", self.vocabulary.tokens != other.vocabulary.tokens),
            (
                "model_type",
                self.layers != other.layers || self.tensors != other.tensors,
            ),
        ];
        different
            .into_iter()
            .find_map(|(field, differs)| differs.then_some(field))
    }
}

/// Names and shapes of all tensors.
pub fn shapes(architecture: &Architecture) -> impl Iterator<Item = (String, Vec<usize>)> {
    let specs = architecture.tensors.iter();
    specs.map(|spec| (spec.name.clone(), spec.shape.clone()))
}

type Read = fn(&[u8]) -> Result<Architecture, ConfigError>;

/// The families, by `model_type`.
const FAMILIES: [(&str, Read); 6] = [
    ("bd3lm", dit::read),
    ("mdlm", dit::read),
    ("duo", dit::read),
    ("sdar", sdar::read),
    ("a2d-qwen3", a2d::qwen3),
    ("a2d-qwen2", a2d::qwen2),
];

/// Why a `config.json` describes no network that can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("config.json: model_type {found:?} is none of {}", known())]
    Family { found: String },
    /// Not JSON, a field missing or of another type.
    #[error("config.json: {detail}")]
    Malformed { detail: String },
    /// A value that contradicts another, or that no network of the family has.
    #[error("config.json: {field} {reason}")]
    Field { field: &'static str, reason: String },
}

fn known() -> String {
    FAMILIES.map(|(name, _)| name).join(", ")
}

fn parse<'a, T: Deserialize<'a>>(config: &'a [u8]) -> Result<T, ConfigError> {
    serde_json::from_slice(config).map_err(|error| ConfigError::Malformed {
        detail: error.to_string(),
    })
}

fn refuse<T>(field: &'static str, reason: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Field {
        field,
        reason: reason.into(),
    })
}

/// What a key of `config.json` may say where it is there: anything else asks for what is not computed here.
type Rule = (&'static str, fn(&Value) -> bool);

/// Refuses what a configuration asks for and `rules` do not allow.
fn check_rules(config: &[u8], rules: &[Rule]) -> Result<(), ConfigError> {
    let fields: serde_json::Map<String, Value> = parse(config)?;
    for (field, allowed) in rules {
        let found = fields.get(*field).filter(|value| !value.is_null());
        if let Some(value) = found.filter(|value| !allowed(value)) {
            let shown: String = value.to_string().chars().take(64).collect();
            return refuse(field, format!("is {shown}, which is not served"));
        }
    }
    Ok(())
}

/// Of any size: products of two, and of small numbers, do not overflow.
const LARGEST: usize = 1 << 24;

/// Layers of a network at most: each has names and shapes of its own, which a number alone must not make many of.
const MOST_LAYERS: usize = 1024;

/// Refuses more layers than any network has.
fn check_layers(field: &'static str, layers: usize) -> Result<(), ConfigError> {
    check_size(field, layers, MOST_LAYERS)
}

/// Refuses sizes that no network has.
fn check_sizes(sizes: &[(&'static str, usize)]) -> Result<(), ConfigError> {
    let mut sizes = sizes.iter();
    sizes.try_for_each(|&(field, size)| check_size(field, size, LARGEST))
}

fn check_size(field: &'static str, size: usize, most: usize) -> Result<(), ConfigError> {
    match (1..=most).contains(&size) {
        true => Ok(()),
        false => refuse(field, format!("is {size}, not within 1 and {most}")),
    }
}
