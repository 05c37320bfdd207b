//! Text to tokens and back, from a published `tokenizer.json`.

use sha2::{Digest, Sha256};

/// The tokenizer file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer cannot be read: {0}")]
pub struct TokenizerError(String);

/// A tokenizer and the digest of the file it came from.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    digest: [u8; 32],
}

impl Tokenizer {
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| TokenizerError(error.to_string()))?;
        let digest = Sha256::digest(bytes).into();
        Ok(Self { inner, digest })
    }

    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.inner
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .unwrap_or_default()
    }

    /// Bytes that are no whole character become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.inner.decode(tokens, false).unwrap_or_default()
    }

    pub fn end_of_text(&self) -> Option<u32> {
        ["<|endoftext|>", "</s>", "[EOS]"]
            .iter()
            .find_map(|name| self.inner.token_to_id(name))
    }

    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// SHA-256 of the file.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}
