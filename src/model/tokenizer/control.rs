//! Control tokens in text: where they are, and how a message keeps from writing them.

use std::borrow::Cow;

/// A token that is no text: a role's mark, the end of a turn.
#[derive(Clone, Debug)]
struct Token {
    id: u32,
    text: String,
    /// Whether it takes the spaces before and after it.
    strips: (bool, bool),
}

/// All of a tokenizer's.
#[derive(Clone, Debug)]
pub(super) struct Control {
    /// The longest first.
    tokens: Vec<Token>,
    /// Whether one begins with this byte.
    first: [bool; 256],
}

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextPiece<'a> {
    Text(&'a str),
    Token(u32),
}

impl Control {
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder().into_iter();
        let mut tokens: Vec<Token> = added
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| Token {
                id,
                text: token.content,
                strips: (token.lstrip, token.rstrip),
            })
            .collect();
        tokens.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
        let mut first = [false; 256];
        for byte in tokens.iter().filter_map(|token| token.text.bytes().next()) {
            first[usize::from(byte)] = true;
        }
        Control { tokens, first }
    }

    pub fn has(&self, id: u32) -> bool {
        self.tokens.iter().any(|token| token.id == id)
    }

    /// The first token in `text`, and where it begins: the leftmost, of those the longest.
    fn first(&self, text: &str) -> Option<(usize, &Token)> {
        let mut places = text.bytes().enumerate();
        places.find_map(|(at, byte)| {
            let begins = self.first[usize::from(byte)];
            let starts = |token: &&Token| text.as_bytes()[at..].starts_with(token.text.as_bytes());
            let found = begins.then(|| self.tokens.iter().find(starts)).flatten();
            Some((at, found?))
        })
    }

    /// Text and control tokens in turn; no empty text.
    pub fn split<'a>(&self, mut text: &'a str) -> Vec<TextPiece<'a>> {
        let mut parts = Vec::new();
        while let Some((at, token)) = self.first(text) {
            let (before, after) = (&text[..at], &text[at + token.text.len()..]);
            let before = if token.strips.0 {
                before.trim_end()
            } else {
                before
            };
            parts.extend((!before.is_empty()).then_some(TextPiece::Text(before)));
            parts.push(TextPiece::Token(token.id));
            text = if token.strips.1 {
                after.trim_start()
            } else {
                after
            };
        }
        parts.extend((!text.is_empty()).then_some(TextPiece::Text(text)));
        parts
    }

    /// `text` with the guard inside of everything that reads as a control token.
    pub fn guard(&self, mut text: &str, guard: Guard) -> String {
        let mut guarded = String::with_capacity(text.len());
        while let Some((at, token)) = self.first(text) {
            // Behind its first character: another token may begin within it.
            let first = token.text.chars().next().map_or(0, char::len_utf8);
            guarded += &text[..at + first];
            guarded.push(guard.0);
            text = &text[at + first..];
        }
        guarded + text
    }
}

/// A character that stands in no message, to part what would read as a control token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard(char);

impl Guard {
    /// One of Unicode's noncharacters, which are for such use within a program.
    pub fn new<'a>(messages: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        ('\u{FDD0}'..='\u{FDEF}')
            .find(|&guard| !messages.clone().any(|text| text.contains(guard)))
            .map(Guard)
    }

    /// Takes it out again.
    pub fn lift<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match text.contains(self.0) {
            true => text.replace(self.0, "").into(),
            false => text.into(),
        }
    }
}
