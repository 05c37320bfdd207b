//! `POST /v1/chat/completions`: its fields.

use super::completion::{AnswerForm, CommonFields};
use super::fields::Fields;
use super::list::list;
use crate::model::tokenizer::{ChatRole, Message};
use crate::server::access::Caller;
use crate::server::failure::Failure;
use crate::server::requests::{Ask, MOST_MESSAGES, RequestInput};
use crate::server::status::BadField;
use serde::Deserialize;
use serde_json::Value;

const MESSAGES: &str = "messages";
/// Parts of one message at most.
const MOST_PARTS: usize = 1024;

/// What to ask for each choice, and how to show it.
pub fn read(body: &[u8], caller: Caller) -> Result<(AnswerForm, Vec<Ask>), Failure> {
    let mut fields = Fields::read(body)?;
    let shared = CommonFields::read(&mut fields, caller)?;
    if shared.template.is_some() {
        return Err(BadField::new("choir.template", "a chat has none").into());
    }
    let given = given(&mut fields)?;
    let asks = shared.asks(&given, 0).collect();
    Ok((shared.shown, asks))
}

fn given(fields: &mut Fields) -> Result<RequestInput, BadField> {
    let nothing = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    fields.refuse("tools", "there are no tools", nothing)?;
    fields.refuse("functions", "there are no functions", nothing)?;
    let off = |value: &Value| value == &Value::Bool(false);
    let told = "probabilities are not told: a text is not made token by token";
    fields.refuse("logprobs", told, off)?;
    let text = |value: &Value| value["type"] == "text";
    fields.refuse("response_format", "a text has no other format", text)?;
    let mut options: Fields = fields.take("chat_template_kwargs")?.unwrap_or_default();
    let messages = fields.take_by(list(MOST_MESSAGES), MESSAGES, MESSAGES)?;
    let messages = messages.ok_or_else(|| BadField::new(MESSAGES, "they are missing"))?;
    let most: Option<u32> = fields.take("max_completion_tokens")?;
    Ok(RequestInput::Conversation {
        messages: messages
            .into_iter()
            .enumerate()
            .map(message)
            .collect::<Result<_, _>>()?,
        enable_thinking: options.take("enable_thinking")?,
        max_tokens: most.or(fields.take("max_tokens")?),
    })
}

/// One message: of a role that templates know, and nothing but text.
fn message((at, mut fields): (usize, Fields)) -> Result<Message, BadField> {
    let bad = |reason: &str| BadField::new(MESSAGES, format!("message {at} {reason}"));
    let role: Option<String> = fields.take("role").map_err(|_| bad("has no role"))?;
    let role = match role.as_deref() {
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
    let content = fields.take_by(list(MOST_PARTS).or_one(), "content", MESSAGES);
    let parts: Vec<Part> = content
        .map_err(|_| bad("has parts that are no text"))?
        .ok_or_else(|| bad("has no text"))?;
    Ok(Message {
        role,
        content: parts.into_iter().map(|part| part.0).collect(),
    })
}

/// A part of a message: a string, or an object that says it is text.
#[derive(Deserialize)]
#[serde(from = "WrittenPart")]
struct Part(String);

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenPart {
    Plain(String),
    Typed(TypedPart),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TypedPart {
    Text { text: String },
}

impl From<WrittenPart> for Part {
    fn from(part: WrittenPart) -> Self {
        match part {
            WrittenPart::Plain(text) | WrittenPart::Typed(TypedPart::Text { text }) => Part(text),
        }
    }
}
