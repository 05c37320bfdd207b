//! Text files as training data: the last 5 % of every file is held out and never trained on.

use super::{Error, tokenizer};
use crate::rng::Stream;
use crate::superposition::Digest;
use std::path::{Path, PathBuf};

/// The share of every file, at its end, that is kept for evaluation.
pub const HELD_OUT: f64 = 0.05;

/// One text file, cut into its training part and its held-out part.
#[derive(Clone, Debug)]
pub struct Document {
    /// File name without folder and extension.
    pub name: String,
    pub training: String,
    pub held_out: String,
}

impl Document {
    /// Cuts at the first character boundary at or after 95 % of the bytes.
    pub fn new(name: String, mut text: String) -> Self {
        let mut cut = (text.len() as f64 * (1.0 - HELD_OUT)).ceil() as usize;
        while !text.is_char_boundary(cut) {
            cut += 1;
        }
        let held_out = text.split_off(cut);
        Self {
            name,
            training: text,
            held_out,
        }
    }

    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(Error::file(path))?;
        let text = String::from_utf8(bytes).map_err(|e| Error::NotText {
            path: path.to_path_buf(),
            offset: e.utf8_error().valid_up_to(),
        })?;
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Self::new(name, text))
    }
}

/// Reads files, and the `.txt` files of folders, in the order of their paths.
pub fn read_documents(paths: &[PathBuf]) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for path in paths {
        if !path.is_dir() {
            documents.push(Document::read(path)?);
            continue;
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(Error::file(path))? {
            let file = entry.map_err(Error::file(path))?.path();
            if file.extension().is_some_and(|e| e == "txt") {
                files.push(file);
            }
        }
        if files.is_empty() {
            return Err(Error::NoText { path: path.clone() });
        }
        files.sort();
        for file in files {
            documents.push(Document::read(&file)?);
        }
    }
    Ok(documents)
}

/// Clean contexts, and how much each position counts in the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct Contexts {
    pub count: usize,
    pub length: usize,
    /// [count, length]
    pub tokens: Vec<u32>,
    /// [count, length]: 0 keeps a position clean and out of the loss (the first one, prompts).
    pub importance: Vec<f32>,
}

impl Contexts {
    pub fn new(length: usize) -> Self {
        Self {
            count: 0,
            length,
            tokens: Vec::new(),
            importance: Vec::new(),
        }
    }

    /// Contexts `range`, as their own batch.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        let span = range.start * self.length..range.end * self.length;
        Self {
            count: range.len(),
            length: self.length,
            tokens: self.tokens[span.clone()].to_vec(),
            importance: self.importance[span].to_vec(),
        }
    }

    /// Adds one context of text: the end-of-text token, never masked, then `length - 1` tokens.
    fn push_text(&mut self, end_of_text: u32, tokens: &[u32]) {
        debug_assert_eq!(tokens.len() + 1, self.length);
        self.count += 1;
        self.tokens.push(end_of_text);
        self.tokens.extend(tokens);
        self.importance.push(0.0);
        self.importance
            .extend(std::iter::repeat_n(1.0, tokens.len()));
    }
}

/// The training parts of documents, one after the other with an end of text after each.
#[derive(Clone, Debug)]
pub struct TextSource {
    tokens: Vec<u32>,
    end_of_text: u32,
}

impl TextSource {
    /// `least` tokens are needed.
    pub fn new(
        documents: &[Document],
        tokenizer: &tokenizers::Tokenizer,
        least: usize,
    ) -> Result<Self, Error> {
        let end_of_text = tokenizer::end_of_text(tokenizer)?;
        let mut tokens = Vec::new();
        for document in documents {
            tokens.extend(tokenizer::encode_text(tokenizer, &document.training)?);
            tokens.push(end_of_text);
        }
        if tokens.len() < least {
            return Err(Error::TooShort {
                what: "the training text",
                tokens: tokens.len(),
                needed: least,
            });
        }
        Ok(Self {
            tokens,
            end_of_text,
        })
    }

    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    pub fn digest(&self) -> Digest {
        let bytes: Vec<u8> = self
            .tokens
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect();
        Digest::of(&bytes)
    }

    /// `count` contexts at independent uniform offsets.
    pub fn sample(&self, count: usize, length: usize, stream: &mut Stream) -> Contexts {
        let mut contexts = Contexts::new(length);
        for _ in 0..count {
            let start = stream.below(self.tokens.len() + 2 - length);
            contexts.push_text(self.end_of_text, &self.tokens[start..start + length - 1]);
        }
        contexts
    }
}

/// Held-out texts as consecutive contexts of at most `length` tokens (a multiple of `block`), at most `most` of
/// them, evenly spaced; also the number of bytes that the scored tokens stand for.
pub fn held_out_contexts(
    texts: &[&str],
    tokenizer: &tokenizers::Tokenizer,
    length: usize,
    block: usize,
    most: usize,
) -> Result<(Contexts, usize), Error> {
    let end_of_text = tokenizer::end_of_text(tokenizer)?;
    let encoded: Result<Vec<_>, _> = texts
        .iter()
        .map(|text| tokenizer::encode_text(tokenizer, text))
        .collect();
    let encoded = encoded?;
    let longest = encoded.iter().map(Vec::len).max().unwrap_or(0);
    let length = length.min((longest + 1) / block * block);
    if length < 2 {
        return Err(Error::TooShort {
            what: "the held-out text",
            tokens: longest,
            needed: block.max(2) - 1,
        });
    }
    let chunks: Vec<&[u32]> = encoded
        .iter()
        .flat_map(|tokens| tokens.chunks_exact(length - 1))
        .collect();
    let wanted = most.min(chunks.len());
    let mut contexts = Contexts::new(length);
    let mut bytes = 0;
    for index in 0..wanted {
        let chunk = chunks[index * chunks.len() / wanted];
        let text = tokenizer
            .decode(chunk, false)
            .map_err(|e| Error::Tokenizer {
                reason: e.to_string(),
            })?;
        bytes += text.len();
        contexts.push_text(end_of_text, chunk);
    }
    Ok((contexts, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_twentieth_is_held_out() {
        let text = "a".repeat(94) + "ééééé";
        let document = Document::new("x".into(), text.clone());
        assert_eq!(document.training.clone() + &document.held_out, text);
        assert!(document.training.len() >= 98 && document.held_out.len() <= 6);
    }
}
