//! Conversations as the checkpoint's own template writes them: Jinja, as `transformers` runs it.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};
use serde::{Deserialize, Serialize};

use super::TokenizerError;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatRole {
    System,
    User,
    Assistant,
}

impl ChatRole {
    /// As templates know it.
    fn name(self) -> &'static str {
        match self {
            ChatRole::System => "system",
            ChatRole::User => "user",
            ChatRole::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: ChatRole,
    pub content: String,
}

/// Why a conversation cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error("this model has no chat template")]
    NoTemplate,
    #[error("the model's chat template cannot be read: {0}")]
    Template(String),
    #[error("the model's chat template does not come to an end")]
    Endless,
    #[error("the model's chat template refuses them: {0}")]
    Refused(String),
    #[error("they have every character that is kept for the program")]
    NotText,
    #[error(transparent)]
    Encoding(#[from] TokenizerError),
}

/// Instructions that a template may run, each also for so many bytes that it writes: a long conversation takes some thousands.
const FUEL: u64 = 2_000_000;
const NAME: &str = "chat_template";

/// A template's source and what it knows of the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatTemplate {
    pub source: String,
    pub bos_token: String,
    pub eos_token: String,
}

impl ChatTemplate {
    pub fn render(
        &self,
        messages: &[Message],
        enable_thinking: Option<bool>,
    ) -> Result<String, ChatError> {
        let environment = self.environment().map_err(told)?;
        let template = environment.get_template(NAME).map_err(told)?;
        let turns = messages.iter().map(|message| {
            context! { role => message.role.name(), content => message.content.as_str() }
        });
        let thinking = enable_thinking.map(|enable_thinking| context! { enable_thinking });
        template
            .render(context! {
                messages => turns.collect::<Vec<Value>>(),
                add_generation_prompt => true,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
                ..thinking.unwrap_or_default()
            })
            .map_err(told)
    }

    fn environment(&self) -> Result<Environment<'_>, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function(
            "raise_exception",
            |reason: String| -> Result<String, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, reason))
            },
        );
        environment.add_template(NAME, &self.source)?;
        Ok(environment)
    }
}

fn told(error: Error) -> ChatError {
    let line = error
        .line()
        .map_or(String::new(), |line| format!(" (line {line})"));
    let reason = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.kind() {
        ErrorKind::OutOfFuel => ChatError::Endless,
        ErrorKind::InvalidOperation => ChatError::Refused(reason),
        _ => ChatError::Template(reason + &line),
    }
}
