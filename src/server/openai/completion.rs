//! `POST /v1/completions`: its fields.

use super::fields::{AnswerForm, Common, CommonFields, MOST_CHOICES};
use super::list::list;
use super::object::{self, FieldValue, Object};
use crate::server::access::Caller;
use crate::server::failure::Failure;
use crate::server::requests::{Ask, InputText, RequestInput};
use crate::server::status::BadField;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use std::fmt;

/// Tokens to make where a request does not say, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// One request: what to ask for each choice, and what stands before its text.
#[derive(Debug)]
pub struct Completion {
    pub shown: AnswerForm,
    pub asks: Vec<(Ask, Option<InputText>)>,
}

/// The fields of a body where a prompt has `most` tokens at most.
#[derive(Debug, Default)]
struct CompletionFields {
    most: usize,
    common: CommonFields,
    prompts: Option<Vec<InputText>>,
    suffix: Option<String>,
    max_tokens: Option<u32>,
    best_of: Option<usize>,
    echo: bool,
}

impl Object for CompletionFields {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        match name {
            "prompt" => {
                let prompts = ReadPrompts { most: self.most };
                self.prompts = value.read_by("prompt", prompts)?;
            }
            "suffix" => self.suffix = value.read("suffix")?,
            "max_tokens" => self.max_tokens = value.read("max_tokens")?,
            "best_of" => self.best_of = value.read("best_of")?,
            "echo" => self.echo = value.read("echo")?.unwrap_or_default(),
            _ => self.common.field(name, value)?,
        }
        Ok(())
    }
}

impl Completion {
    /// `most`: tokens of a prompt at most.
    pub fn read(body: &[u8], caller: Caller, most: usize) -> Result<Completion, Failure> {
        let fields = CompletionFields {
            most,
            ..CompletionFields::default()
        };
        let mut fields = object::read(body, fields)?;
        let common = std::mem::take(&mut fields.common).checked(caller)?;
        Ok(Self::of(fields, common)?)
    }

    fn of(fields: CompletionFields, common: Common) -> Result<Completion, BadField> {
        let CompletionFields {
            suffix,
            max_tokens,
            echo,
            ..
        } = fields;
        let n = common.shown.n;
        if fields.best_of.is_some_and(|best_of| best_of != n) {
            let reason = "choices are not ranked: it is n or nothing";
            return Err(BadField::new("best_of", reason));
        }
        if let Some(template) = &common.template {
            let instead = fields.prompts.is_some_and(
                |prompts| !matches!(&prompts[..], [InputText::Written(text)] if text.is_empty()),
            );
            if instead || suffix.is_some() || max_tokens.is_some() {
                let reason = "it stands instead of prompt, suffix and max_tokens";
                return Err(BadField::new("choir.template", reason));
            }
            let asks = common.asks(template, 0).map(|ask| (ask, None)).collect();
            return Ok(Completion {
                shown: common.shown,
                asks,
            });
        }
        let missing = || BadField::new("prompt", "it is missing");
        let prompts = fields.prompts.ok_or_else(missing)?;
        if prompts.len() * common.shown.n > MOST_CHOICES {
            return Err(BadField::new("prompt", TooMany.to_string()));
        }
        let mut asks = Vec::new();
        for prompt in prompts {
            let given = RequestInput::Prompt {
                prompt: prompt.clone(),
                suffix: suffix.clone().filter(|suffix| !suffix.is_empty()),
                max_tokens: Some(max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            };
            let before = echo.then_some(prompt);
            let choices = common.asks(&given, asks.len());
            asks.extend(choices.map(|ask| (ask, before.clone())));
        }
        Ok(Completion {
            shown: common.shown,
            asks,
        })
    }
}

/// More texts than one request may ask for.
#[derive(Debug, thiserror::Error)]
#[error("it asks for more than {MOST_CHOICES} choices")]
struct TooMany;

/// Reads prompts of so many tokens at most: a string, strings, ids of tokens, or lists of those.
#[derive(Clone, Copy, Debug)]
struct ReadPrompts {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for ReadPrompts {
    type Value = Vec<InputText>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadPrompts {
    type Value = Vec<InputText>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(vec![InputText::Written(text.to_owned())])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut prompts = Prompts {
            most: self.most,
            left: self.most.saturating_mul(2),
            whole: Vec::new(),
            tokens: Vec::new(),
        };
        while from.next_element_seed(&mut prompts)?.is_some() {}
        match (prompts.whole.is_empty(), prompts.tokens.is_empty()) {
            (true, true) => Err(A::Error::custom("it is an empty list")),
            (true, false) => Ok(vec![InputText::Tokens(prompts.tokens)]),
            (false, true) => Ok(prompts.whole),
            (false, false) => Err(A::Error::custom("it has both tokens and whole prompts")),
        }
    }
}

/// What a list of prompts has, as far as it is read.
#[derive(Debug)]
struct Prompts {
    most: usize,
    /// Tokens that all prompts together may still have.
    left: usize,
    whole: Vec<InputText>,
    /// Those of the only prompt.
    tokens: Vec<u32>,
}

impl Prompts {
    fn add<E: Error>(&mut self, prompt: InputText) -> Result<(), E> {
        if self.whole.len() == MOST_CHOICES {
            return Err(E::custom(TooMany));
        }
        self.whole.push(prompt);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Prompts {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Prompts {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or ids of tokens")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.add(InputText::Written(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<(), E> {
        let fits = u32::try_from(id);
        let id = fits.map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))?;
        if self.tokens.len() == self.most {
            let most = self.most;
            return Err(E::custom(format_args!("it has more than {most} tokens")));
        }
        self.tokens.push(id);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<(), A::Error> {
        let ids: Vec<u32> = list(self.most).visit_seq(from)?;
        let left = self.left.checked_sub(ids.len());
        self.left = left.ok_or_else(|| {
            A::Error::custom(
                "all prompts together have more than twice the tokens that one may have",
            )
        })?;
        self.add(InputText::Tokens(ids))
    }
}
