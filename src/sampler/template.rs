//! What stands fixed in a text and what is to be made, for the samplers of both processes.

use super::block::LastBlock;
use super::error::{self, Error};

/// A text position by position: `Some` is a token that never changes, `None` a hole. Past its end everything is free.
#[derive(Clone, Debug)]
pub(super) struct TextTemplate(Vec<Option<u32>>);

impl TextTemplate {
    /// A prompt and `max_tokens` holes.
    pub fn continuation(prompt: &[u32], max_tokens: usize) -> Result<Self, Error> {
        error::at_least_one("max_tokens", max_tokens)?;
        error::length("max_tokens", prompt.len(), max_tokens)?;
        let holes = std::iter::repeat_n(None, max_tokens);
        Ok(Self(
            prompt.iter().copied().map(Some).chain(holes).collect(),
        ))
    }

    /// Any text with at least one hole.
    pub fn new(tokens: &[Option<u32>]) -> Result<Self, Error> {
        error::length("template", tokens.len(), 0)?;
        let holes = tokens.iter().filter(|token| token.is_none()).count();
        error::count("template", holes, 1, tokens.len())?;
        Ok(Self(tokens.to_vec()))
    }

    /// Refuses fixed tokens outside the vocabulary, and the mask among them.
    pub fn check(
        &self,
        field: &'static str,
        vocab_size: usize,
        mask_id: Option<u32>,
    ) -> Result<(), Error> {
        let fixed = |(index, token): (usize, &Option<u32>)| token.map(|token| (index, token));
        for (index, token) in self.0.iter().enumerate().filter_map(fixed) {
            if token as usize >= vocab_size {
                return Err(Error::UnknownToken {
                    field,
                    index,
                    token,
                    vocab_size,
                });
            }
            if mask_id == Some(token) {
                return Err(Error::Mask { field, index });
            }
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Where the text that is made begins.
    pub fn first_hole(&self) -> usize {
        self.0
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.0.len())
    }

    pub fn is_free(&self, position: usize) -> bool {
        self.0.get(position).is_none_or(Option::is_none)
    }

    /// Appends blocks of `size`, the first one of `first` where that is not 0, to `tokens`, which hold whole blocks or nothing, up to the first with a hole, and returns
    /// where that one begins; `None` where the rest of the text has none. Free positions start as `fill` says.
    pub fn next_block(
        &self,
        tokens: &mut Vec<u32>,
        (first, size): (usize, usize),
        last: LastBlock,
        fill: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        while tokens.len() < self.len() {
            let start = tokens.len();
            let size = if start == 0 && first > 0 { first } else { size };
            let end = match last {
                LastBlock::Whole => start + size,
                LastBlock::Cut => (start + size).min(self.len()),
            };
            tokens.extend((start..end).map(|position| {
                let fixed = self.0.get(position).copied().flatten();
                fixed.unwrap_or_else(|| fill(position))
            }));
            if (start..end.min(self.len())).any(|position| self.is_free(position)) {
                return Some(start);
            }
        }
        None
    }
}
