//! Text to tokens and back, and conversations to text, from the files that are published with a checkpoint.

mod chat;
mod control;
mod encode;
mod fewest;
mod files;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::panic::catch_unwind;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use chat::ChatTemplate;
pub use chat::{ChatError, ChatRole, Message};
use control::Control;
pub use encode::Bound;
use fewest::Fewest;
pub use files::GenerationConfig;
pub use stream::TextStream;

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("the tokenizer cannot be read: {0}")]
    Unreadable(String),
    #[error("{file}: {reason}")]
    File { file: &'static str, reason: String },
    #[error(
        "it has neither tokenizer.json nor vocab.json and merges.txt; this makes the first: python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
    )]
    Missing,
    #[error("the text cannot be encoded: {0}")]
    Encoding(String),
    #[error("it has more tokens than the {limit} that are allowed")]
    TooLong { limit: usize },
    /// Whoever asked for it has left.
    #[error("it was given up")]
    GivenUp,
    #[error("token {id} is {theirs:?} and the base's is {ours:?}")]
    OtherPiece {
        id: u32,
        ours: String,
        theirs: String,
    },
    #[error("its pieces are the base's, but it joins them in another order")]
    OtherMerges,
    #[error("its pieces are not the base's, or it joins them in another order")]
    OtherPieces,
}

/// A tokenizer, what its files say besides, and the digest of the file that has its pieces. Copies share the pieces.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// Takes the text of control tokens for text.
    inner: Arc<tokenizers::Tokenizer>,
    digest: [u8; 32],
    pieces: usize,
    bytes: usize,
    control: Arc<Control>,
    fewest: Option<Arc<Fewest>>,
    mask: Option<u32>,
    manner: Manner,
    begins_as_ended: bool,
}

/// How texts begin and end and conversations are written: a fine-tune may have another manner with the same pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manner {
    begin: Option<u32>,
    ends: Vec<u32>,
    template: Option<ChatTemplate>,
}

/// What a failed decoding leaves in the place of what is no character.
pub const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Words whose tokens each thread remembers: the library's ten thousand may take 80 MB a thread, since a word of 256 bytes that no pieces join
/// takes 8 kB.
const REMEMBERED: usize = 500;

/// What ends a text, and begins one, where no file says so.
const ENDS: [&str; 3] = ["<|endoftext|>", "</s>", "[EOS]"];

/// What the library's tables of these pieces take: ids by text, texts by id, and about one join of two pieces for each.
fn bytes_of(vocab: &HashMap<String, u32>) -> usize {
    let text = |piece: &String| (piece.len() + 8).next_multiple_of(16).max(32); // as the allocator gives it
    let places = (vocab.len() * 8).div_ceil(7).next_power_of_two(); // a table is at most seven eighths full
    let entries = 2 * size_of::<(String, u32)>() + size_of::<[u32; 4]>() + 3; // a byte of each table says whether there is one
    2 * vocab.keys().map(text).sum::<usize>() + places * entries
}

impl Tokenizer {
    /// A `tokenizer.json` by itself: texts begin and end with its end of text.
    ///
    /// # Errors
    /// Where it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        // The library panics at some files that it cannot read.
        let read = catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
        let mut inner = match read {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => return Err(TokenizerError::Unreadable(error.to_string())),
            Err(_) => return Err(TokenizerError::Unreadable("it is malformed".to_owned())),
        };
        inner.set_encode_special_tokens(true);
        let mut model = inner.get_model().clone();
        model.resize_cache(REMEMBERED);
        inner.with_model(model);
        let vocab = inner.get_vocab(true);
        let fewest = Fewest::of(&inner);
        let end = ENDS.iter().find_map(|name| inner.token_to_id(name));
        Ok(Self {
            control: Arc::new(Control::of(&inner)),
            pieces: vocab.values().max().map_or(0, |id| *id as usize + 1),
            bytes: bytes_of(&vocab) + fewest.as_ref().map_or(0, Fewest::bytes),
            fewest: fewest.map(Arc::new),
            inner: Arc::new(inner),
            digest: Sha256::digest(bytes).into(),
            mask: None,
            manner: Manner {
                begin: end,
                ends: end.into_iter().collect(),
                template: None,
            },
            begins_as_ended: false,
        })
    }

    /// From the files of a checkpoint's folder, which `read` gives by name, where they are: `tokenizer.json`, or `vocab.json` and
    /// `merges.txt`; `tokenizer_config.json`, `generation_config.json` and `config.json` say what begins and ends a text, and
    /// `chat_template.jinja`, or `tokenizer_config.json`, how a conversation is written.
    ///
    /// # Errors
    /// Names the file at fault. A chat template that does not parse is refused when it is used.
    pub fn from_files(read: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Self, TokenizerError> {
        files::read(read)
    }

    /// What the files beside a fine-tune, which `read` gives by name, say of its manner: what they do not say is as this one's. `None`
    /// where it is all the same.
    ///
    /// # Errors
    /// Names the file at fault.
    pub fn manner_of(
        &self,
        read: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Result<Option<Manner>, TokenizerError> {
        let mut manner = files::said(&self.inner, read)?.over(&self.manner);
        if self.begins_as_ended {
            manner.begin = manner.begin.or(manner.ends.first().copied());
        }
        Ok((manner != self.manner).then_some(manner))
    }

    /// The same pieces in another manner; what it says of tokens that there are not does not count.
    pub fn with(&self, mut manner: Manner) -> Self {
        let known = |id: &u32| self.inner.id_to_token(*id).is_some();
        manner.ends.retain(known);
        manner.begin = manner.begin.filter(known);
        Tokenizer {
            manner,
            ..self.clone()
        }
    }

    /// Whether a conversation can be written.
    pub fn has_chat(&self) -> bool {
        self.manner.template.is_some()
    }

    /// Bytes that are no whole character become U+FFFD, and so would every token where a decoder failed: none of the library's can.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let replaced = |_| tokens.iter().map(|_| REPLACEMENT).collect();
        self.inner.decode(tokens, false).unwrap_or_else(replaced)
    }

    /// The token that begins every text, where one does.
    pub fn begin(&self) -> Option<u32> {
        self.manner.begin
    }

    /// Takes it that texts begin as they end, whatever the files say, unless they name what begins one.
    pub fn begin_as_ended(&mut self) {
        self.begins_as_ended = true;
        let manner = &mut self.manner;
        manner.begin = manner.begin.or(manner.ends.first().copied());
    }

    /// The tokens that end a text, or a turn.
    pub fn ends(&self) -> &[u32] {
        &self.manner.ends
    }

    /// The mask, where the files name one.
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }

    /// One more than the highest id: rows from there on stand for no text.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// About what it takes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// SHA-256 of the file that has the pieces.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// SHA-256 of what makes texts of one tokenizer texts of another: every piece under its id, but for the text of control tokens, and how
    /// pieces are joined.
    pub fn pieces_digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix("choir/pieces/1");
        for (id, piece) in self.by_id() {
            let text = if self.control.has(id) { "" } else { &*piece };
            hash.update(id.to_le_bytes());
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update(self.merges().unwrap_or_default().to_string());
        hash.finalize().into()
    }

    /// Whether texts of `other` are texts of this one: the same pieces under the same ids, joined alike. Layout, and the text
    /// of control tokens, may differ.
    ///
    /// # Errors
    /// The first piece that is another.
    pub fn same_pieces(&self, other: &Tokenizer) -> Result<(), TokenizerError> {
        if self.digest == other.digest {
            return Ok(());
        }
        let (ours, theirs) = (self.by_id(), other.by_id());
        let control = |id: &u32| self.control.has(*id) && other.control.has(*id);
        for id in ours.keys().chain(theirs.keys()) {
            let (our, their) = (ours.get(id), theirs.get(id));
            if our != their && !(control(id) && our.is_some() && their.is_some()) {
                let text = |piece: Option<&String>| piece.cloned().unwrap_or_default();
                return Err(TokenizerError::OtherPiece {
                    id: *id,
                    ours: text(our),
                    theirs: text(their),
                });
            }
        }
        match self.merges() == other.merges() {
            true => Ok(()),
            false => Err(TokenizerError::OtherMerges),
        }
    }

    fn by_id(&self) -> BTreeMap<u32, String> {
        let vocab = self.inner.get_vocab(true).into_iter();
        vocab.map(|(piece, id)| (id, piece)).collect()
    }

    /// How pieces are joined, in the one form that the library writes it in.
    fn merges(&self) -> Option<serde_json::Value> {
        let mut model = serde_json::to_value(self.inner.get_model()).ok()?;
        model.get_mut("merges").map(serde_json::Value::take)
    }
}
