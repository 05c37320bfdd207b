//! From text to tokens, piece by piece, so that it ends where the tokens are too many or nobody waits for them any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizer};

use super::chat::{ChatError, Message};
use super::control::{Guard, TextPiece};
use super::{Tokenizer, TokenizerError};

/// Bytes of a token's text at most: a text has a token for so many at least.
const LONGEST_PIECE: usize = 256;

/// What ends an encoding early.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Tokens at most.
    pub tokens: usize,
    /// Nobody waits for them any more.
    pub given_up: Arc<AtomicBool>,
}

impl Default for Bound {
    /// None.
    fn default() -> Self {
        Bound {
            tokens: usize::MAX,
            given_up: Arc::default(),
        }
    }
}

impl Bound {
    fn check(&self, tokens: usize) -> Result<(), TokenizerError> {
        if tokens > self.tokens {
            return Err(TokenizerError::TooLong { limit: self.tokens });
        }
        match self.given_up.load(Ordering::Relaxed) {
            true => Err(TokenizerError::GivenUp),
            false => Ok(()),
        }
    }
}

impl Tokenizer {
    /// The tokens of a text. The text of a control token is text.
    ///
    /// # Errors
    /// `Encoding` for a text that the tokenizer has no pieces for.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_within(text, &Bound::default())
    }

    /// The same, within a bound.
    ///
    /// # Errors
    /// As [`encode`](Self::encode)'s; `TooLong` and `GivenUp` as soon as they are known.
    pub fn encode_within(&self, text: &str, bound: &Bound) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.append(text, bound, &mut ids)?;
        Ok(ids)
    }

    /// The same, but the text of a control token is that token.
    ///
    /// # Errors
    /// As [`encode_within`](Self::encode_within)'s.
    pub fn encode_control(&self, text: &str, bound: &Bound) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        for part in self.control.split(text) {
            match part {
                TextPiece::Text(text) => self.append(text, bound, &mut ids)?,
                TextPiece::Token(id) => ids.push(id),
            }
            bound.check(ids.len())?;
        }
        Ok(ids)
    }

    /// The tokens of a conversation as the model's template writes it, up to where the assistant's answer begins. The text of a
    /// control token in a message is text. `enable_thinking`: for templates that ask.
    ///
    /// # Errors
    /// A model without a template, a template that does not parse, raises or does not come to an end, messages it refuses, and
    /// [`encode_within`](Self::encode_within)'s.
    pub fn chat(
        &self,
        messages: &[Message],
        enable_thinking: Option<bool>,
        bound: &Bound,
    ) -> Result<Vec<u32>, ChatError> {
        let template = self.manner.template.as_ref().ok_or(ChatError::NoTemplate)?;
        let guard = Guard::new(messages.iter().map(|message| message.content.as_str()))
            .ok_or(ChatError::NotText)?;
        let guarded: Vec<Message> = messages
            .iter()
            .map(|message| Message {
                role: message.role,
                content: self.control.guard(&message.content, guard),
            })
            .collect();
        bound.check(0)?;
        let text = template.render(&guarded, enable_thinking)?;
        let mut ids = Vec::new();
        for part in self.control.split(&text) {
            match part {
                TextPiece::Text(text) => self.append(&guard.lift(text), bound, &mut ids)?,
                TextPiece::Token(id) => ids.push(id),
            }
            bound.check(ids.len())?;
        }
        Ok(ids)
    }

    /// No encoding of `text` has fewer tokens; looks no further where they are more than `most`.
    pub fn fewest(&self, text: &str, most: usize) -> usize {
        let known = self.fewest.as_ref();
        let known = known.map_or(0, |fewest| fewest.tokens(text, most));
        known.max(text.len() / LONGEST_PIECE)
    }

    /// The library's own way with a text, but that every piece between two of its cuts is one that the bound is looked at after.
    fn append(&self, text: &str, bound: &Bound, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let refused = |error: tokenizers::Error| TokenizerError::Encoding(error.to_string());
        bound.check(ids.len())?;
        // Before the library takes a hundred bytes for each of the text's, and time: most texts that are too long are known here.
        let left = bound.tokens.saturating_sub(ids.len());
        if text.len() > left {
            bound.check(ids.len() + self.fewest(text, left))?;
        }
        let added = self.inner.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(cut) = self.inner.get_pre_tokenizer() {
            cut.pre_tokenize(&mut pieces).map_err(refused)?;
        }
        for (piece, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None)
        {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => {
                    let tokens = self.inner.get_model().tokenize(piece).map_err(refused)?;
                    ids.extend(tokens.into_iter().map(|token| token.id));
                }
            }
            bound.check(ids.len())?;
        }
        Ok(())
    }
}
