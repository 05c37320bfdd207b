//! The files that a checkpoint's tokenizer is published in.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::ChatTemplate;
use super::{Manner, Tokenizer, TokenizerError};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";
const MODEL: &str = "config.json";

/// `generation_config.json`, as far as it says how tokens are drawn.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    eos_token_id: Ids,
}

impl GenerationConfig {
    /// # Errors
    /// Where it is no such file.
    pub fn parse(text: &[u8]) -> Result<Self, TokenizerError> {
        parse(GENERATION, text)
    }
}

/// One id, several, or none.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(untagged)]
enum Ids {
    #[default]
    None,
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn all(self) -> Vec<u32> {
        match self {
            Ids::None => Vec::new(),
            Ids::One(id) => vec![id],
            Ids::Many(ids) => ids,
        }
    }
}

/// A special token in `tokenizer_config.json`: its text, or an object with it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Named {
    Text(String),
    Object { content: String },
}

impl Named {
    fn text(self) -> String {
        match self {
            Named::Text(text) | Named::Object { content: text } => text,
        }
    }
}

/// The template, or several by name, of which `default` is the one for conversations.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Many(Vec<NamedTemplate>),
}

#[derive(Clone, Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    tokenizer_class: Option<String>,
    add_bos_token: Option<bool>,
    bos_token: Option<Named>,
    eos_token: Option<Named>,
    mask_token: Option<Named>,
    chat_template: Option<Templates>,
    added_tokens_decoder: BTreeMap<u32, Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ModelConfig {
    eos_token_id: Ids,
}

fn optional<T: Default + serde::de::DeserializeOwned>(
    file: &'static str,
    text: Option<Vec<u8>>,
) -> Result<Option<T>, TokenizerError> {
    text.map(|text| parse(file, &text)).transpose()
}

/// Reads what is there.
pub(super) fn read(read: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Tokenizer, TokenizerError> {
    let mut tokenizer = match read(TOKENIZER) {
        Some(text) => Tokenizer::from_bytes(&text)?,
        None => {
            let (Some(vocab), Some(merges)) = (read("vocab.json"), read("merges.txt")) else {
                return Err(TokenizerError::Missing);
            };
            let added = optional("added_tokens.json", read("added_tokens.json"))?;
            let config = optional(CONFIG, read(CONFIG))?;
            Tokenizer::from_bytes(&written(
                &vocab,
                &merges,
                added.unwrap_or_default(),
                &config.unwrap_or_default(),
            )?)?
        }
    };
    let said = said(&tokenizer.inner, read)?;
    if said.config || !said.manner.ends.is_empty() {
        tokenizer.mask = said.mask;
        tokenizer.manner = said.manner;
    } // else what the tokenizer itself says
    Ok(tokenizer)
}

/// What files say of how texts begin and end.
pub(super) struct Said {
    /// Whether `tokenizer_config.json` is there: what it does not name, there is not.
    config: bool,
    mask: Option<u32>,
    manner: Manner,
}

impl Said {
    /// With what is not said as in `usual`.
    pub fn over(self, usual: &Manner) -> Manner {
        let Manner {
            begin,
            ends,
            template,
        } = self.manner;
        Manner {
            begin: if self.config { begin } else { usual.begin },
            ends: if ends.is_empty() {
                usual.ends.clone()
            } else {
                ends
            },
            template: template.or_else(|| usual.template.clone()),
        }
    }
}

/// Reads what the files say, in the ids of `inner`.
pub(super) fn said(
    inner: &tokenizers::Tokenizer,
    read: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<Said, TokenizerError> {
    let config: Option<TokenizerConfig> = optional(CONFIG, read(CONFIG))?;
    let generation: Option<GenerationConfig> = optional(GENERATION, read(GENERATION))?;
    let model: Option<ModelConfig> = optional(MODEL, read(MODEL))?;
    let mut ends = generation.unwrap_or_default().eos_token_id.all();
    ends.extend(model.unwrap_or_default().eos_token_id.all());
    let there = config.is_some();
    let config = config.unwrap_or_default();
    let id = |token: &Option<Named>| {
        let text = token.clone().map(Named::text)?;
        inner.token_to_id(&text)
    };
    let (begin, mask) = (id(&config.bos_token), id(&config.mask_token));
    ends.extend(id(&config.eos_token));
    let mut seen = BTreeSet::new();
    ends.retain(|&id| inner.id_to_token(id).is_some() && seen.insert(id));
    let text = |token: Option<Named>| token.map(Named::text).unwrap_or_default();
    let source = match read("chat_template.jinja") {
        Some(text) => Some(
            String::from_utf8(text).map_err(|error| TokenizerError::File {
                file: "chat_template.jinja",
                reason: error.to_string(),
            })?,
        ),
        None => config.chat_template.and_then(|templates| match templates {
            Templates::One(source) => Some(source),
            Templates::Many(many) => {
                let default = many.into_iter().find(|one| one.name == "default");
                default.map(|one| one.template)
            }
        }),
    };
    let template = source.map(|source| ChatTemplate {
        source,
        bos_token: text(config.bos_token),
        eos_token: text(config.eos_token),
    });
    Ok(Said {
        config: there,
        mask,
        manner: Manner {
            begin: begin.filter(|_| config.add_bos_token == Some(true)),
            ends,
            template,
        },
    })
}

fn parse<T: serde::de::DeserializeOwned>(
    file: &'static str,
    text: &[u8],
) -> Result<T, TokenizerError> {
    serde_json::from_slice(text).map_err(|error| TokenizerError::File {
        file,
        reason: error.to_string(),
    })
}

/// How Qwen's tokenizers cut text before they look for pieces.
const QWEN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The `tokenizer.json` of a byte-level BPE that is published as pieces and merges.
fn written(
    vocab: &[u8],
    merges: &[u8],
    added: BTreeMap<String, u32>,
    config: &TokenizerConfig,
) -> Result<Vec<u8>, TokenizerError> {
    let refuse = |file, reason: String| Err(TokenizerError::File { file, reason });
    let class = config.tokenizer_class.as_deref().unwrap_or_default();
    let cut = |own: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": own});
    let (normalizer, cut) = match class.trim_end_matches("Fast") {
        "Qwen2Tokenizer" => {
            let split = json!({"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": false});
            let both = json!({"type": "Sequence", "pretokenizers": [split, cut(false)]});
            (json!({"type": "NFC"}), both)
        }
        "GPT2Tokenizer" => (Value::Null, cut(true)),
        other => {
            let reason =
                format!("of a {other:?} without {TOKENIZER} it is not known how it cuts text");
            return refuse(CONFIG, reason);
        }
    };
    let vocab: Value = parse("vocab.json", vocab)?;
    let merges = match std::str::from_utf8(merges) {
        Ok(text) => text,
        Err(error) => return refuse("merges.txt", error.to_string()),
    };
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .collect();
    let mut tokens: BTreeMap<u32, Value> = added
        .into_iter()
        .map(|(text, id)| (id, json!({"content": text, "special": true})))
        .collect();
    tokens.extend(config.added_tokens_decoder.clone());
    let flag = |token: &Value, name: &str| token[name].as_bool().unwrap_or(false);
    let tokens: Vec<Value> = tokens
        .iter()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token["content"], "special": flag(token, "special"), "normalized": flag(token, "normalized"),
                "single_word": flag(token, "single_word"), "lstrip": flag(token, "lstrip"), "rstrip": flag(token, "rstrip"),
            })
        })
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens, "normalizer": normalizer,
        "pre_tokenizer": cut, "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": false, "use_regex": false}, "model": {"type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": false, "vocab": vocab, "merges": merges},
    });
    Ok(file.to_string().into_bytes())
}
