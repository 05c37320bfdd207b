//! The fewest tokens that a text can have, known before any are made: refusing a text that is far too long takes no tokenizing.

use std::collections::BTreeSet;

use daachorse::DoubleArrayAhoCorasick;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper};

/// Bytes that are looked at together: a text that is far too long is known by its beginning.
const PART: usize = 16 << 10;

/// All pieces of a byte-level BPE, as bytes. Its tokens stand for a text's bytes one after another, so a text has at least as many
/// tokens as it takes pieces to cover its bytes, where they may overlap.
pub(super) struct Fewest {
    pieces: DoubleArrayAhoCorasick<()>,
    /// Bytes of the longest piece.
    longest: usize,
    /// What may change a text before it is cut: Unicode's composed form, or nothing.
    normalizer: Option<NormalizerWrapper>,
}

impl std::fmt::Debug for Fewest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Fewest").finish_non_exhaustive()
    }
}

impl Fewest {
    /// `None` for a tokenizer whose tokens may stand for something else than the text's bytes.
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else {
            return None;
        };
        let affix = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
        if affixes.into_iter().any(affix) || !byte_level(tokenizer.get_pre_tokenizer()?)? {
            return None;
        }
        let normalizer = tokenizer.get_normalizer().cloned();
        if !matches!(normalizer, None | Some(NormalizerWrapper::NFC(_))) {
            return None;
        }
        let vocab = model.get_vocab();
        let mut pieces: BTreeSet<Vec<u8>> = vocab.keys().filter_map(|piece| bytes(piece)).collect();
        if (0..=u8::MAX).any(|byte| !pieces.contains([byte].as_slice())) {
            return None; // the model passes over what it has no piece for
        }
        // The text of those that are special is text.
        let added = tokenizer.get_added_tokens_decoder().into_values();
        for token in added.filter(|token| !token.special) {
            if token.lstrip || token.rstrip || changes(normalizer.as_ref(), &token.content) {
                return None;
            }
            pieces.insert(token.content.into_bytes());
        }
        pieces.remove([].as_slice());
        let longest = pieces.iter().map(Vec::len).max()?;
        let pieces = pieces.into_iter().map(|piece| (piece, ()));
        Some(Fewest {
            pieces: DoubleArrayAhoCorasick::with_values(pieces).ok()?,
            longest,
            normalizer,
        })
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        self.pieces.heap_bytes()
    }

    /// No encoding of `text` has fewer tokens; 0 where nothing is known. Looks no further where they are more than `most`.
    pub fn tokens(&self, text: &str, most: usize) -> usize {
        if changes(self.normalizer.as_ref(), text) {
            return 0;
        }
        // A piece that two parts share may stand for as many of each as it has bytes there.
        let shared = match text.len() <= PART {
            true => 0,
            false => 2 * self.longest,
        };
        let mut tokens = 0;
        for part in text.as_bytes().chunks(PART) {
            tokens += self.cover(part).saturating_sub(shared);
            if tokens > most {
                break;
            }
        }
        tokens
    }

    /// The fewest pieces that cover `text`: from the end on, each time the piece that reaches furthest back of those that end at the
    /// last one's beginning or behind it.
    fn cover(&self, text: &[u8]) -> usize {
        let mut longest = vec![1; text.len()]; // of the pieces that end with each byte
        for piece in self.pieces.find_overlapping_no_suffix_iter(text) {
            longest[piece.end() - 1] = piece.end() - piece.start();
        }
        let (mut pieces, mut covered, mut reached) = (0, text.len(), text.len());
        for end in (1..=text.len()).rev() {
            reached = reached.min(end - longest[end - 1]);
            if end == covered {
                pieces += 1;
                covered = reached;
            }
        }
        pieces
    }
}

/// Whether a text may be another before it is cut. Parts of a composed text are composed.
fn changes(normalizer: Option<&NormalizerWrapper>, text: &str) -> bool {
    match normalizer {
        Some(normalizer) if !text.is_ascii() => {
            let mut normalized = NormalizedString::from(text);
            normalizer.normalize(&mut normalized).is_err() || normalized.get() != text
        }
        _ => false,
    }
}

/// Whether it makes bytes into characters, where it keeps all of a text; `None` where it may not.
fn byte_level(cut: &PreTokenizerWrapper) -> Option<bool> {
    match cut {
        PreTokenizerWrapper::ByteLevel(cut) => (!cut.add_prefix_space).then_some(true),
        PreTokenizerWrapper::Digits(_) => Some(false),
        PreTokenizerWrapper::Split(cut) => {
            (cut.behavior != SplitDelimiterBehavior::Removed).then_some(false)
        }
        PreTokenizerWrapper::Sequence(cuts) => {
            cuts.as_ref().iter().try_fold(false, |found, cut| {
                match (found, byte_level(cut)?) {
                    (true, true) => None, // bytes of bytes
                    (found, one) => Some(found || one),
                }
            })
        }
        _ => None,
    }
}

/// The bytes of a piece, which is written with a character for each: printable ones of Latin-1 are themselves, the others follow
/// U+0100 in their order (GPT-2's encoder). `None` for what is written otherwise.
fn bytes(piece: &str) -> Option<Vec<u8>> {
    let shown = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let byte = |letter: char| match u32::from(letter) {
        code @ 0x100.. => {
            let mut hidden = (0..=u8::MAX).filter(|byte| !shown(byte));
            hidden.nth(code as usize - 0x100)
        }
        code => u8::try_from(code).ok().filter(shown),
    };
    piece.chars().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::{Bound, Tokenizer, TokenizerError};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::collections::HashMap;
    use std::sync::LazyLock;

    const FILE: &[u8] = include_bytes!("../../../models/base/tokenizer.json");
    static EMBEDDED: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_bytes(FILE).unwrap());
    /// The same, but that texts are composed first, and with a piece that is added.
    static COMPOSING: LazyLock<Tokenizer> = LazyLock::new(|| {
        changed(|file| {
            file["normalizer"] = json!({"type": "NFC"});
            let token = added("<think>", false);
            file["added_tokens"].as_array_mut().unwrap().push(token);
        })
    });

    fn added(content: &str, lstrip: bool) -> Value {
        json!({"id": 1023, "content": content, "single_word": false, "lstrip": lstrip, "rstrip": false,
            "normalized": false, "special": false})
    }

    fn changed(change: impl Fn(&mut Value)) -> Tokenizer {
        let mut file = serde_json::from_slice(FILE).unwrap();
        change(&mut file);
        Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    }

    fn fewest(tokenizer: &Tokenizer, text: &str) -> usize {
        let known = tokenizer.fewest.as_ref().expect("a byte-level BPE");
        known.tokens(text, usize::MAX)
    }

    /// The fewest pieces that cover a text, by trying all places for the next one to begin.
    fn tried(pieces: &HashMap<Vec<u8>, usize>, text: &[u8]) -> usize {
        let mut most = vec![0; text.len() + 1]; // pieces that cover all from there on
        for start in (0..text.len()).rev() {
            let there =
                (start + 1..=text.len()).filter(|&end| pieces.contains_key(&text[start..end]));
            let end = there.max().expect("a byte is a piece");
            most[start] = 1 + (start + 1..=end).map(|next| most[next]).min().unwrap_or(0);
        }
        most[0]
    }

    proptest! {
        #[test]
        fn no_text_has_fewer_tokens(
            text in r"([a-z]{1,12}|[0-9]{1,5}|[ \t\n]{1,4}|<think>|e\u{301}|é|你好|🙂|<|\u{338}|[^a]){0,40}",
        ) {
            for tokenizer in [&*EMBEDDED, &COMPOSING] {
                let tokens = tokenizer.encode(&text).unwrap().len();
                let fewest = fewest(tokenizer, &text);
                prop_assert!(fewest <= tokens, "{fewest} of {tokens}");
                // One too few is refused, and as many as there are, are not.
                let within = |tokens| tokenizer.encode_within(&text, &Bound { tokens, ..Bound::default() });
                prop_assert_eq!(within(tokens).unwrap().len(), tokens);
                if let Some(less) = tokens.checked_sub(1) {
                    let refused = matches!(within(less), Err(TokenizerError::TooLong { .. }));
                    prop_assert!(refused);
                }
            }
        }

        #[test]
        fn no_long_text_has_fewer_tokens(words in prop::collection::vec(r"[a-z]{1,12}|[0-9]|[^a]", 1..9), seed: u64) {
            let mut text = String::new();
            let mut at = seed;
            while text.len() < 3 * PART {
                at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text += &words[(at >> 33) as usize % words.len()];
                text.extend((at >> 62 == 0).then_some(' '));
            }
            for tokenizer in [&*EMBEDDED, &COMPOSING] {
                let tokens = tokenizer.encode(&text).unwrap().len();
                prop_assert!(fewest(tokenizer, &text) <= tokens);
            }
        }

        #[test]
        fn fewest_is_a_cover_by_pieces(text in "[a-z0-9 ,é]{0,60}") {
            let vocab = EMBEDDED.inner.get_vocab(true);
            let pieces = vocab.keys().filter_map(|piece| Some((bytes(piece)?, 1))).collect();
            prop_assert_eq!(fewest(&EMBEDDED, &text), tried(&pieces, text.as_bytes()));
        }
    }

    #[test]
    fn fewest_of_usual_texts_is_close() {
        assert_eq!(fewest(&EMBEDDED, &"1".repeat(1000)), 1000);
        for text in [
            "In the beginning God created the heaven and the earth. ",
            "ünïcode 你好 ",
        ] {
            let text = text.repeat(50);
            for tokenizer in [&*EMBEDDED, &COMPOSING] {
                let tokens = tokenizer.encode(&text).unwrap().len();
                let fewest = fewest(tokenizer, &text);
                assert!(fewest * 10 > tokens * 8, "{fewest} of {tokens}");
            }
        }
        // Of a long text no more is looked at than it takes.
        let (known, long) = (EMBEDDED.fewest.as_ref().unwrap(), "1".repeat(20 * PART));
        let all = known.tokens(&long, usize::MAX);
        assert!((long.len() * 99 / 100..long.len()).contains(&all), "{all}");
        assert!(known.tokens(&long, 100) <= PART);
        // It may be composed to another text.
        assert_eq!(fewest(&COMPOSING, "e\u{301}"), 0);
    }

    #[test]
    fn nothing_is_known_where_tokens_may_stand_for_something_else() {
        let known = |change: &dyn Fn(&mut Value)| changed(change).fewest.is_some();
        assert!(known(&|_| ()));
        let split = |behavior: &str| json!({"type": "Split", "pattern": {"String": " "}, "behavior": behavior, "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let sequence = |cuts: &[&Value]| json!({"type": "Sequence", "pretokenizers": cuts});
        assert!(known(
            &|file| file["pre_tokenizer"] = sequence(&[&split("Isolated"), &bytes])
        ));
        assert!(!known(
            &|file| file["pre_tokenizer"] = sequence(&[&split("Removed"), &bytes])
        ));
        assert!(!known(
            &|file| file["pre_tokenizer"] = sequence(&[&bytes, &bytes])
        ));
        assert!(!known(&|file| file["pre_tokenizer"] = split("Isolated")));
        assert!(!known(&|file| file["pre_tokenizer"] = json!(null)));
        assert!(!known(
            &|file| file["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true.into()
        ));
        assert!(!known(
            &|file| file["normalizer"] = json!({"type": "Lowercase"})
        ));
        let with = |token: Value| known(&|file| file["added_tokens"] = json!([token]));
        assert!(with(added("<think>", false)) && !with(added("<think>", true)));
        let mut special = added("<think>", true);
        special["special"] = true.into();
        assert!(with(special), "its text is text");
        assert!(!known(
            &|file| file["model"]["end_of_word_suffix"] = "</w>".into()
        ));
    }
}
