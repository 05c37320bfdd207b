//! Tokens to text, block by block: what is sent is never taken back.

use std::sync::Arc;

use super::{REPLACEMENT, Tokenizer};

/// Bytes that a character may lack its last one of.
const UNFINISHED: usize = 3;
/// Tokens that are context at least: more than a character has bytes.
const CONTEXT: usize = 8;

/// The text of one sequence so far.
///
/// Held back are bytes at the end that are not yet a whole character, and an end that may be the beginning of
/// a stop string.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    /// The last ones, of one block or more, as context: some tokenizers decode a token differently at the beginning of a text, and
    /// a character may have begun in them.
    tokens: Vec<u32>,
    /// How many bytes of `tokens`, decoded, have been read: all that are whole.
    read: usize,
    /// Read, but perhaps the beginning of a stop string.
    pending: String,
    stopped: bool,
}

impl TextStream {
    /// No stop string may be empty.
    pub fn new(tokenizer: Arc<Tokenizer>, stop: Vec<String>) -> Self {
        TextStream {
            tokenizer,
            stop,
            tokens: Vec::new(),
            read: 0,
            pending: String::new(),
            stopped: false,
        }
    }

    /// True once a stop string was met: the text has ended before it.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// A token by itself.
    pub fn one(&self, token: u32) -> String {
        self.tokenizer.decode(&[token])
    }

    /// The text that `tokens` add and that is safe to send.
    pub fn push(&mut self, tokens: &[u32]) -> String {
        self.tokens.extend(tokens);
        let decoded = self.tokenizer.decode(&self.tokens);
        let whole = whole(&decoded);
        self.pending
            .push_str(decoded.get(self.read..whole).unwrap_or_default());
        let context = tokens.len().max(CONTEXT);
        self.tokens
            .drain(..self.tokens.len().saturating_sub(context));
        // The context may itself begin within a character, but it ends as all of the text does.
        let held_back = decoded.len() - whole;
        self.read = self
            .tokenizer
            .decode(&self.tokens)
            .len()
            .saturating_sub(held_back);
        self.release()
    }

    /// The rest of the text, at its end.
    pub fn finish(&mut self) -> String {
        let decoded = self.tokenizer.decode(&self.tokens);
        self.pending
            .push_str(decoded.get(self.read..).unwrap_or_default());
        self.read = decoded.len();
        let text = self.release();
        if self.stopped {
            text
        } else {
            text + &std::mem::take(&mut self.pending)
        }
    }

    fn release(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let first = self
            .stop
            .iter()
            .filter_map(|stop| self.pending.find(stop.as_str()))
            .min();
        let safe = first.unwrap_or_else(|| self.pending.len() - self.doubtful());
        self.stopped = first.is_some();
        let rest = self.pending.split_off(safe);
        std::mem::replace(&mut self.pending, rest)
    }

    /// Bytes at the end of `pending` that a stop string may begin with.
    fn doubtful(&self) -> usize {
        let begins = |stop: &String| {
            let longest = stop.len().min(self.pending.len() + 1) - 1;
            let ends_with =
                |&bytes: &usize| self.pending.as_bytes().ends_with(&stop.as_bytes()[..bytes]);
            (1..=longest)
                .rev()
                .filter(|&bytes| stop.is_char_boundary(bytes))
                .find(ends_with)
        };
        self.stop.iter().filter_map(begins).max().unwrap_or(0)
    }
}

/// Length of what no later token changes: an end may be the beginning of a character.
fn whole(decoded: &str) -> usize {
    let shorter = |text: &str| text.strip_suffix(REPLACEMENT).map_or(text.len(), str::len);
    (0..UNFINISHED).fold(decoded.len(), |length, _| shorter(&decoded[..length]))
}
