//! `POST /v1/chat/completions`: its fields.

use super::fields::{AnswerForm, CommonFields};
use super::list::list_of;
use super::object::{self, FieldValue, Object, Reading};
use super::skim::Skimmed;
use crate::model::tokenizer::{ChatRole, Message};
use crate::server::access::Caller;
use crate::server::failure::Failure;
use crate::server::requests::{Ask, MOST_MESSAGES, RequestInput};
use crate::server::status::BadField;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, Visitor};
use std::fmt;

const MESSAGES: &str = "messages";
/// Parts of one message at most.
const MOST_PARTS: usize = 1024;

/// What to ask for each choice, and how to show it.
pub fn read(body: &[u8], caller: Caller) -> Result<(AnswerForm, Vec<Ask>), Failure> {
    let fields = object::read(body, ChatFields::default())?;
    let common = fields.common.checked(caller)?;
    if common.template.is_some() {
        return Err(BadField::new("choir.template", "a chat has none").into());
    }
    if fields.format.kind.is_some_and(|kind| kind != "text") {
        return Err(BadField::new("response_format", "a text has no other format").into());
    }
    let missing = || BadField::new(MESSAGES, "they are missing");
    let messages = fields.messages.ok_or_else(missing)?;
    let messages = messages.into_iter().enumerate();
    let given = RequestInput::Conversation {
        messages: messages.map(message).collect::<Result<_, _>>()?,
        enable_thinking: fields.enable_thinking,
        max_tokens: fields.max_completion_tokens.or(fields.max_tokens),
    };
    let asks = common.asks(&given, 0).collect();
    Ok((common.shown, asks))
}

#[derive(Debug, Default)]
struct ChatFields {
    common: CommonFields,
    messages: Option<Vec<MessageFields>>,
    enable_thinking: Option<bool>,
    max_completion_tokens: Option<u32>,
    max_tokens: Option<u32>,
    format: Format,
}

impl Object for ChatFields {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        let none = Skimmed::Empty;
        match name {
            "messages" => {
                let message = value.reading.object(MessageFields::default());
                self.messages = value.read_by(MESSAGES, list_of(MOST_MESSAGES, message))?;
            }
            "chat_template_kwargs" => {
                let options = value.reading.object(TemplateOptions::default());
                let options = value.read_by("chat_template_kwargs", options)?;
                self.enable_thinking = options.unwrap_or_default().enable_thinking;
            }
            "max_completion_tokens" => {
                self.max_completion_tokens = value.read("max_completion_tokens")?;
            }
            "max_tokens" => self.max_tokens = value.read("max_tokens")?,
            "tools" => value.refuse("tools", "there are no tools", none)?,
            "functions" => value.refuse("functions", "there are no functions", none)?,
            "response_format" => {
                let format = value.reading.object(Format::default());
                self.format = value
                    .read_by("response_format", format)?
                    .unwrap_or_default();
            }
            _ => self.common.field(name, value)?,
        }
        Ok(())
    }
}

/// Of what form an answer is to be.
#[derive(Debug, Default)]
struct Format {
    kind: Option<String>,
}

impl Object for Format {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        match name {
            "type" => self.kind = value.read("response_format")?,
            _ => value.skip()?,
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct TemplateOptions {
    enable_thinking: Option<bool>,
}

impl Object for TemplateOptions {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        match name {
            "enable_thinking" => {
                self.enable_thinking = value.read("chat_template_kwargs.enable_thinking")?;
            }
            _ => value.skip()?,
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct MessageFields {
    role: Option<String>,
    content: Option<Vec<Part>>,
}

impl Object for MessageFields {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        match name {
            "role" => self.role = value.read(MESSAGES)?,
            "content" => {
                let part = ReadPart(value.reading);
                self.content = value.read_by(MESSAGES, list_of(MOST_PARTS, part).or_one())?;
            }
            _ => value.skip()?,
        }
        Ok(())
    }
}

/// One message: of a role that templates know, and nothing but text.
fn message((at, fields): (usize, MessageFields)) -> Result<Message, BadField> {
    let bad = |reason: &str| BadField::new(MESSAGES, format!("message {at} {reason}"));
    let role = match fields.role.as_deref() {
        Some("system" | "developer") => ChatRole::System,
        Some("user") => ChatRole::User,
        Some("assistant") => ChatRole::Assistant,
        Some(_) => {
            return Err(bad(
                "is of a role that is neither system, user nor assistant",
            ));
        }
        None => return Err(bad("has no role")),
    };
    let parts = fields.content.ok_or_else(|| bad("has no text"))?;
    let content = parts.into_iter().map(Part::text).collect::<Option<_>>();
    Ok(Message {
        role,
        content: content.ok_or_else(|| bad("has parts that are no text"))?,
    })
}

/// A part of a message: a string, or an object that says it is text.
#[derive(Clone, Debug, Default)]
struct Part {
    kind: Option<String>,
    text: Option<String>,
}

impl Part {
    fn text(self) -> Option<String> {
        self.text.filter(|_| self.kind.as_deref() == Some("text"))
    }
}

impl Object for Part {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        match name {
            "type" => self.kind = value.read(MESSAGES)?,
            "text" => self.text = value.read(MESSAGES)?,
            _ => value.skip()?,
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct ReadPart<'a>(&'a Reading);

impl<'de> DeserializeSeed<'de> for ReadPart<'_> {
    type Value = Part;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Part, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadPart<'_> {
    type Value = Part;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or a part that is text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Part, E> {
        Ok(Part {
            kind: Some("text".to_owned()),
            text: Some(text.to_owned()),
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, from: A) -> Result<Part, A::Error> {
        self.0.object(Part::default()).visit_map(from)
    }
}
