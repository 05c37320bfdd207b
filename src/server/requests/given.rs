//! What a request gives, as the engine takes it: tokens before the first hole, its length, and what stands after it.

use super::prepared::PreparedRequest;
use super::{DEFAULT_MAX_TOKENS, Refusal, Requests};
use crate::engine::{self, LONG_TEXT};
use crate::model::tokenizer::{ChatRole, Message, TokenizerError};
use crate::server::status::BadField;

/// Pieces of a template at most.
pub const MAX_PIECES: usize = 1024;
const TEMPLATE: &str = "template";
/// Messages of a conversation at most.
pub const MOST_MESSAGES: usize = 1024;
const MESSAGES: &str = "messages";

/// Text as a client gives it.
#[derive(Clone, Debug)]
pub enum InputText {
    Written(String),
    /// Ids of the served vocabulary.
    Tokens(Vec<u32>),
}

/// What is given and what is to be made.
#[derive(Clone, Debug)]
pub enum RequestInput {
    /// A text to continue, or a hole between two texts.
    Prompt {
        prompt: InputText,
        suffix: Option<String>,
        max_tokens: Option<u32>,
    },
    /// Text with holes.
    Template(Vec<Piece>),
    /// Turns that somebody is to answer, written as the model's own chat template does.
    Conversation {
        messages: Vec<Message>,
        enable_thinking: Option<bool>,
        max_tokens: Option<u32>,
    },
}

/// A piece of a template.
#[derive(Clone, Debug)]
pub enum Piece {
    Text(String),
    /// Tokens to make.
    Hole(u32),
}

impl Default for RequestInput {
    fn default() -> Self {
        RequestInput::Prompt {
            prompt: InputText::Written(String::new()),
            suffix: None,
            max_tokens: None,
        }
    }
}

/// As the engine takes it.
pub(super) struct LaidOut {
    pub prompt: Vec<u32>,
    pub max_tokens: usize,
    pub after: Vec<Option<u32>>,
}

impl LaidOut {
    /// Tokens to make at most.
    pub fn asked(&self) -> usize {
        let holes = self.after.iter().filter(|token| token.is_none()).count();
        self.max_tokens.saturating_add(holes)
    }
}

/// Refuses more bytes of text than a request may have.
pub(super) fn check_bytes(field: &'static str, bytes: usize, limit: usize) -> Result<(), BadField> {
    match bytes <= limit {
        true => Ok(()),
        false => {
            let reason = format!("it has {bytes} bytes and at most {limit} are allowed");
            Err(BadField::new(field, reason))
        }
    }
}

impl InputText {
    fn bytes(&self) -> usize {
        match self {
            InputText::Written(text) => text.len(),
            InputText::Tokens(_) => 0, // they are there already
        }
    }
}

impl RequestInput {
    /// Bytes of its text, which are refused where they are more than the limit: all of it counts, whatever field it stands in.
    pub(super) fn bytes(&self, limit: usize) -> Result<usize, BadField> {
        let (first, more) = match self {
            RequestInput::Prompt { prompt, suffix, .. } => (
                ("prompt", prompt.bytes()),
                Some(("suffix", suffix.as_ref().map_or(0, String::len))),
            ),
            RequestInput::Template(pieces) => {
                let bytes = pieces.iter().map(|piece| match piece {
                    Piece::Text(text) => text.len(),
                    Piece::Hole(_) => 0,
                });
                ((TEMPLATE, bytes.sum()), None)
            }
            RequestInput::Conversation { messages, .. } => {
                let bytes = messages.iter().map(|message| message.content.len());
                ((MESSAGES, bytes.sum()), None)
            }
        };
        check_bytes(first.0, first.1, limit)?;
        let Some((field, more)) = more else {
            return Ok(first.1);
        };
        check_bytes(field, first.1 + more, limit)?;
        Ok(first.1 + more)
    }

    /// Which of the request's fields the engine means, who knows tokens before and after a hole.
    pub(super) fn names(&self) -> fn(&'static str) -> &'static str {
        match self {
            RequestInput::Prompt { .. } => |field| match field {
                TEMPLATE => "suffix",
                field => field,
            },
            RequestInput::Template(_) => |field| match field {
                "prompt" | "max_tokens" => TEMPLATE,
                field => field,
            },
            RequestInput::Conversation { .. } => |field| match field {
                "prompt" => MESSAGES,
                field => field,
            },
        }
    }
}

impl Requests {
    /// A text as it is shown.
    pub fn written(&self, text: InputText) -> String {
        match text {
            InputText::Written(text) => text,
            InputText::Tokens(tokens) => self.engine.generation().tokenizer.decode(&tokens),
        }
    }

    /// The tokens of a text, at least one; `control`: whether control tokens may be written in it. With those `before` it they are
    /// `most` at most.
    pub(super) async fn encode(
        &self,
        prepared: &PreparedRequest,
        field: &'static str,
        text: InputText,
        control: bool,
        (before, most): (usize, usize),
    ) -> Result<Vec<u32>, Refusal> {
        let text = match text {
            InputText::Tokens(tokens) if tokens.is_empty() => {
                return Err(BadField::new(field, "it is empty").into());
            }
            InputText::Tokens(tokens) => return Ok(tokens),
            InputText::Written(text) => text,
        };
        if text.is_empty() {
            return Err(BadField::new(field, "it is empty").into());
        }
        let tokenizer = prepared.target.tokenizer().clone();
        let bound = prepared.bound(most.saturating_sub(before));
        let long = text.len() > LONG_TEXT;
        let encode = move || match control {
            true => tokenizer.encode_control(&text, &bound),
            false => tokenizer.encode_within(&text, &bound),
        };
        let tokens = match long {
            true => prepared.beside(encode).await?,
            false => encode(),
        };
        let reason = match tokens {
            Ok(tokens) if !tokens.is_empty() => return Ok(tokens),
            Ok(_) => "the tokenizer makes no token of it".to_owned(),
            Err(TokenizerError::GivenUp) => return Err(engine::Error::Cancelled.into()),
            Err(TokenizerError::TooLong { .. }) => {
                TokenizerError::TooLong { limit: most }.to_string()
            }
            Err(error) => error.to_string(),
        };
        Err(BadField::new(field, reason).into())
    }

    /// The tokens of a conversation, up to where its answer begins.
    async fn conversation(
        &self,
        prepared: &PreparedRequest,
        messages: Vec<Message>,
        enable_thinking: Option<bool>,
    ) -> Result<Vec<u32>, Refusal> {
        let bad = |reason: String| Err(BadField::new(MESSAGES, reason).into());
        if messages.is_empty() {
            return bad("there are none".to_owned());
        }
        if messages.len() > MOST_MESSAGES {
            return bad(format!("there are more than {MOST_MESSAGES}"));
        }
        if let Some(at) = messages.iter().position(|one| one.content.is_empty()) {
            return bad(format!("message {at} is empty"));
        }
        if messages.last().map(|last| last.role) == Some(ChatRole::Assistant) {
            return bad("the last one is the assistant's: there is nothing to answer".to_owned());
        }
        let tokenizer = prepared.target.tokenizer().clone();
        let bound = prepared.bound(self.engine.config().max_prompt);
        let render = move || tokenizer.chat(&messages, enable_thinking, &bound);
        Ok(prepared.beside(render).await??)
    }

    pub(super) async fn lay_out(
        &self,
        prepared: &PreparedRequest,
        given: RequestInput,
        control: bool,
    ) -> Result<LaidOut, Refusal> {
        let length = |most: Option<u32>| most.unwrap_or(DEFAULT_MAX_TOKENS) as usize;
        match given {
            RequestInput::Conversation {
                messages,
                enable_thinking,
                max_tokens,
            } => Ok(LaidOut {
                prompt: self
                    .conversation(prepared, messages, enable_thinking)
                    .await?,
                max_tokens: length(max_tokens),
                after: Vec::new(),
            }),
            RequestInput::Prompt {
                prompt: text,
                suffix,
                max_tokens,
            } => {
                let mut prompt = prepared.beginning();
                let most = self.engine.config().max_prompt;
                let bound = (prompt.len(), most);
                let text = self.encode(prepared, "prompt", text, control, bound);
                prompt.extend(text.await?);
                let after = match suffix {
                    Some(suffix) => {
                        let (text, bound) = (InputText::Written(suffix), (prompt.len(), most));
                        self.encode(prepared, "suffix", text, control, bound)
                            .await?
                    }
                    None => Vec::new(),
                };
                Ok(LaidOut {
                    prompt,
                    max_tokens: length(max_tokens),
                    after: after.into_iter().map(Some).collect(),
                })
            }
            RequestInput::Template(pieces) => self.lay_out_pieces(prepared, pieces, control).await,
        }
    }

    async fn lay_out_pieces(
        &self,
        prepared: &PreparedRequest,
        pieces: Vec<Piece>,
        control: bool,
    ) -> Result<LaidOut, Refusal> {
        let bad = |reason: &str| Refusal::from(BadField::new(TEMPLATE, reason));
        if pieces.len() > MAX_PIECES {
            return Err(bad(&format!("it has more than {MAX_PIECES} pieces")));
        }
        let (limit, most) = (
            self.engine.config().max_tokens,
            self.engine.config().max_prompt,
        );
        if !pieces.iter().any(|piece| matches!(piece, Piece::Text(_))) {
            return Err(bad("it is nothing but holes"));
        }
        let (mut prompt, mut first, mut after, mut holes) =
            (prepared.beginning(), 0, Vec::new(), 0);
        let mut given = prompt.len();
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    let text = InputText::Written(text);
                    let tokens = self.encode(prepared, TEMPLATE, text, control, (given, most));
                    let tokens = tokens.await?;
                    given += tokens.len();
                    match first {
                        0 => prompt.extend(tokens),
                        _ => after.extend(tokens.into_iter().map(Some)),
                    }
                }
                Piece::Hole(0) => return Err(bad("one of its holes is empty")),
                Piece::Hole(length) => {
                    holes += length as usize;
                    if holes > limit {
                        return Err(bad(&format!("its holes have more than {limit} tokens")));
                    }
                    match first {
                        0 => first = length as usize,
                        _ => after.extend(std::iter::repeat_n(None, length as usize)),
                    }
                }
            }
        }
        match first {
            0 => Err(bad("it has no hole")),
            _ => Ok(LaidOut {
                prompt,
                max_tokens: first,
                after,
            }),
        }
    }
}
