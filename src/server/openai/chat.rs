//! `POST /v1/chat/completions`: its fields.

use super::completion::{Shared, Shown};
use super::fields::Fields;
use crate::model::tokenizer::{Message, Role};
use crate::server::access::Caller;
use crate::server::failure::Failure;
use crate::server::requests::{Ask, Given};
use crate::server::status::BadField;
use serde_json::{Map, Value};

const MESSAGES: &str = "messages";

/// What to ask for each choice, and how to show it.
pub fn read(body: &[u8], caller: Caller) -> Result<(Shown, Vec<Ask>), Failure> {
    let mut fields = Fields::read(body)?;
    let shared = Shared::read(&mut fields, caller)?;
    if shared.template.is_some() {
        return Err(BadField::new("choir.template", "a chat has none").into());
    }
    let given = given(&mut fields)?;
    let asks = shared.asks(&given, 0).collect();
    Ok((shared.shown, asks))
}

fn given(fields: &mut Fields) -> Result<Given, BadField> {
    let nothing = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    fields.refuse("tools", "there are no tools", nothing)?;
    fields.refuse("functions", "there are no functions", nothing)?;
    let off = |value: &Value| value == &Value::Bool(false);
    let told = "probabilities are not told: a text is not made token by token";
    fields.refuse("logprobs", told, off)?;
    let text = |value: &Value| value["type"] == "text";
    fields.refuse("response_format", "a text has no other format", text)?;
    let options: Map<String, Value> = fields.take("chat_template_kwargs")?.unwrap_or_default();
    let messages: Option<Vec<Value>> = fields.take(MESSAGES)?;
    let messages = messages.ok_or_else(|| BadField::new(MESSAGES, "they are missing"))?;
    let most: Option<u32> = fields.take("max_completion_tokens")?;
    Ok(Given::Conversation {
        messages: messages
            .into_iter()
            .enumerate()
            .map(message)
            .collect::<Result<_, _>>()?,
        enable_thinking: Fields::of(options).take("enable_thinking")?,
        max_tokens: most.or(fields.take("max_tokens")?),
    })
}

/// One message: of a role that templates know, and nothing but text.
fn message((at, value): (usize, Value)) -> Result<Message, BadField> {
    let bad = |reason: &str| BadField::new(MESSAGES, format!("message {at} {reason}"));
    let role = match value["role"].as_str() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(_) => {
            return Err(bad(
                "is of a role that is neither system, user nor assistant",
            ));
        }
        None => return Err(bad("has no role")),
    };
    let content = match &value["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part["text"].as_str().filter(|_| part["type"] == "text"))
            .collect::<Option<String>>()
            .ok_or_else(|| bad("has parts that are no text"))?,
        _ => return Err(bad("has no text")),
    };
    Ok(Message { role, content })
}
