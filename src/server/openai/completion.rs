//! `POST /v1/completions`: its fields.

use super::fields::{Fields, Ours};
use super::list::{list, list_of};
use crate::engine::SamplingParams;
use crate::server::access::Caller;
use crate::server::failure::Failure;
use crate::server::metrics::Protocol;
use crate::server::mix;
use crate::server::requests::{Ask, InputText, RequestInput};
use crate::server::status::BadField;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, SeqAccess, Unexpected, Visitor};
use serde_json::Value;
use std::fmt;

/// Texts that one request may ask for, over all its prompts.
const MOST_CHOICES: usize = 128;
/// Tokens to make where a request does not say, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// How answers are to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerForm {
    pub model: String,
    pub stream: bool,
    /// A last chunk with the usage, where it streams.
    pub include_usage: bool,
    /// Choices of each prompt.
    pub n: usize,
}

/// One request: what to ask for each choice, and what stands before its text.
#[derive(Debug)]
pub struct Completion {
    pub shown: AnswerForm,
    pub asks: Vec<(Ask, Option<InputText>)>,
}

/// What completions and chats have in common.
pub struct CommonFields {
    pub shown: AnswerForm,
    /// Everything but what is given.
    pub ask: Ask,
    pub template: Option<RequestInput>,
}

impl CommonFields {
    pub fn read(fields: &mut Fields, caller: Caller) -> Result<CommonFields, BadField> {
        let model: Option<String> = fields.take("model")?;
        let model = model.ok_or_else(|| BadField::new("model", "it is missing"))?;
        for penalty in ["presence_penalty", "frequency_penalty"] {
            let zero = |value: &Value| value.as_f64() == Some(0.0);
            fields.refuse(penalty, "there are no penalties", zero)?;
        }
        let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
        fields.refuse("logit_bias", "logits have no bias", empty)?;
        let n: usize = fields.take("n")?.unwrap_or(1);
        if !(1..=MOST_CHOICES).contains(&n) {
            let reason = format!("it is {n}, not within 1 and {MOST_CHOICES}");
            return Err(BadField::new("n", reason));
        }
        let ours = Ours::read(fields)?;
        let mut options: Fields = fields.take("stream_options")?.unwrap_or_default();
        let shown = AnswerForm {
            model,
            stream: fields.flag("stream")?,
            include_usage: options.flag("include_usage")?,
            n,
        };
        let ask = Ask {
            protocol: Protocol::openai,
            mix: mix::named("model", &shown.model)?,
            choice: SamplingParams {
                temperature: fields.take("temperature")?,
                nucleus_p: fields.take("top_p")?,
                ..ours.choice
            },
            stop: fields.stop()?,
            stop_ids: fields.stop_ids()?,
            seed: fields.seed()?,
            want_steps: ours.want_steps,
            control_tokens: ours.control_tokens,
            deadline: ours.deadline,
            priority: ours.priority,
            caller,
            given: RequestInput::default(),
        };
        let template = ours.template.map(RequestInput::Template);
        Ok(CommonFields {
            shown,
            ask,
            template,
        })
    }

    /// One request for each choice. Each of several has a seed of its own: the one given and those after it.
    pub fn asks(&self, given: &RequestInput, first: usize) -> impl Iterator<Item = Ask> {
        (0..self.shown.n).map(move |index| {
            let seed = |seed: u64| seed.wrapping_add((first + index) as u64);
            Ask {
                seed: self.ask.seed.map(seed),
                given: given.clone(),
                ..self.ask.clone()
            }
        })
    }
}

impl Completion {
    /// `most`: tokens of a prompt at most.
    pub fn read(body: &[u8], caller: Caller, most: usize) -> Result<Completion, Failure> {
        let mut fields = Fields::read(body)?;
        let shared = CommonFields::read(&mut fields, caller)?;
        Ok(Self::of(fields, shared, most)?)
    }

    fn of(mut fields: Fields, shared: CommonFields, most: usize) -> Result<Completion, BadField> {
        let off = |value: &Value| value == &Value::Bool(false);
        fields.refuse(
            "logprobs",
            "probabilities are not told: a text is not made token by token",
            off,
        )?;
        let as_n = |value: &Value| value.as_u64() == Some(shared.shown.n as u64);
        fields.refuse(
            "best_of",
            "choices are not ranked: it is n or nothing",
            as_n,
        )?;
        let (suffix, max_tokens) = (fields.take::<String>("suffix")?, fields.take("max_tokens")?);
        let echo = fields.flag("echo")?;
        if let Some(template) = &shared.template {
            let prompt = fields.written("prompt");
            let instead = prompt.is_some_and(|prompt| prompt.get() != "\"\"");
            if instead || suffix.is_some() || max_tokens.is_some() {
                let reason = "it stands instead of prompt, suffix and max_tokens";
                return Err(BadField::new("choir.template", reason));
            }
            let asks = shared.asks(template, 0).map(|ask| (ask, None)).collect();
            return Ok(Completion {
                shown: shared.shown,
                asks,
            });
        }
        let given = list_of(most.max(MOST_CHOICES), ReadGiven { most }).or_one();
        let prompts = prompts(fields.take_by(given, "prompt", "prompt")?)?;
        if prompts.len() * shared.shown.n > MOST_CHOICES {
            let reason = format!("it asks for more than {MOST_CHOICES} choices");
            return Err(BadField::new("prompt", reason));
        }
        let mut asks = Vec::new();
        for prompt in prompts {
            let given = RequestInput::Prompt {
                prompt: prompt.clone(),
                suffix: suffix.clone().filter(|suffix| !suffix.is_empty()),
                max_tokens: Some(max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            };
            let before = echo.then_some(prompt);
            let choices = shared.asks(&given, asks.len());
            asks.extend(choices.map(|ask| (ask, before.clone())));
        }
        Ok(Completion {
            shown: shared.shown,
            asks,
        })
    }
}

/// What stands in the list of prompts.
#[derive(Debug)]
enum PromptElement {
    Whole(InputText),
    /// One token of the only prompt.
    Token(u32),
}

/// A string, strings, ids of tokens, or lists of those.
fn prompts(given: Option<Vec<PromptElement>>) -> Result<Vec<InputText>, BadField> {
    let bad = |reason: &str| BadField::new("prompt", reason);
    let (mut texts, mut tokens) = (Vec::new(), Vec::new());
    for one in given.ok_or_else(|| bad("it is missing"))? {
        match one {
            PromptElement::Whole(text) => texts.push(text),
            PromptElement::Token(token) => tokens.push(token),
        }
    }
    match (texts.is_empty(), tokens.is_empty()) {
        (true, true) => Err(bad("it is an empty list")),
        (true, false) => Ok(vec![InputText::Tokens(tokens)]),
        (false, true) => Ok(texts),
        (false, false) => Err(bad("it has both tokens and whole prompts")),
    }
}

/// Reads a [`PromptElement`] of so many tokens at most.
#[derive(Clone, Copy, Debug)]
struct ReadGiven {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for ReadGiven {
    type Value = PromptElement;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<PromptElement, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadGiven {
    type Value = PromptElement;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or ids of tokens")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PromptElement, E> {
        Ok(PromptElement::Whole(InputText::Written(text.to_owned())))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<PromptElement, E> {
        let fits = u32::try_from(id).map(PromptElement::Token);
        fits.map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<PromptElement, A::Error> {
        let ids = list(self.most).visit_seq(from)?;
        Ok(PromptElement::Whole(InputText::Tokens(ids)))
    }
}
