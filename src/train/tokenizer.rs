//! Byte-level BPE with single digits: ids `0 .. V-2` are pieces (all 256 bytes among them), `V-2` is the end
//! of text. The mask, `V-1`, belongs to the network and not to the tokenizer.

use super::Error;
use crate::rng::{Key, Stream};
use crate::train::skills::Skill;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerImpl,
};

/// Begins and ends every document, as in GPT-2.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Lines of every skill that join the training text, so that single spaced letters become pieces.
const SKILL_LINES: usize = 12_000;

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Tokenizer {
        reason: error.to_string(),
    }
}

/// Trains a tokenizer for a network of `vocab` rows (mask included) and returns its `tokenizer.json`.
///
/// `texts` are training parts only. The same texts give the same tokenizer. Where the texts are too short to
/// fill the vocabulary, the tokenizer is smaller.
pub fn train(texts: &[String], vocab: usize) -> Result<String, Error> {
    if vocab < 260 {
        return Err(Error::Setting {
            field: "vocab",
            reason: format!("{vocab} rows cannot hold 256 bytes"),
        });
    }
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab - 2)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    type Wrapped = TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >;
    let mut tokenizer = Wrapped::new(BPE::default());
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(bytes),
    ]))));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
    let lines = skill_lines();
    let all = texts
        .iter()
        .flat_map(|text| text.split_inclusive('\n'))
        .chain(lines.iter().map(String::as_str));
    tokenizer.train(&mut trainer, all).map_err(refused)?;
    tokenizer
        .add_special_tokens([AddedToken::from(END_OF_TEXT, true)])
        .map_err(refused)?;
    tokenizer.to_string(true).map_err(refused)
}

fn skill_lines() -> Vec<String> {
    let mut stream = Stream::new(Key::derive(&[b"choir/train/tokenizer/1"]));
    let mut lines = Vec::new();
    for skill in Skill::ALL {
        for _ in 0..SKILL_LINES {
            let (prompt, answer) = skill.example(&mut stream);
            lines.push(format!("{prompt}{answer}\n"));
        }
    }
    lines
}

/// Encodes a long text in parallel: pieces never cross the places where it is cut (before a
/// word that follows a line end).
pub fn encode_text(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > 32_768 {
        let bytes = rest.as_bytes();
        let cut = (32_768..bytes.len() - 1)
            .find(|&i| bytes[i] == b'\n' && !bytes[i + 1].is_ascii_whitespace());
        let Some(cut) = cut else { break };
        let (head, tail) = rest.split_at(cut + 1);
        parts.push(head);
        rest = tail;
    }
    parts.push(rest);
    let encodings = tokenizer.encode_batch(parts, false).map_err(refused)?;
    Ok(encodings
        .iter()
        .flat_map(|e| e.get_ids().iter().copied())
        .collect())
}

/// Encodes a short text.
pub fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
    Ok(tokenizer
        .encode(text, false)
        .map_err(refused)?
        .get_ids()
        .to_vec())
}

/// The id of the end of text, which also begins every context.
pub fn end_of_text(tokenizer: &tokenizers::Tokenizer) -> Result<u32, Error> {
    tokenizer
        .token_to_id(END_OF_TEXT)
        .ok_or_else(|| refused(format!("no {END_OF_TEXT}")))
}

/// Reads a `tokenizer.json`.
pub fn from_json(json: &str) -> Result<tokenizers::Tokenizer, Error> {
    json.parse().map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_digits_letters_and_round_trip() {
        let text = "In 1851 the whale was white. La mañana siguiente — “quoted”.\n\n".repeat(50);
        let json = train(std::slice::from_ref(&text), 400).unwrap();
        assert_eq!(json, train(std::slice::from_ref(&text), 400).unwrap());
        let tokenizer = from_json(&json).unwrap();
        assert_eq!(
            end_of_text(&tokenizer).unwrap() as usize,
            tokenizer.get_vocab_size(true) - 1
        );
        let ids = encode_text(&tokenizer, &text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert_eq!(encode(&tokenizer, "1994").unwrap().len(), 4);
        for letter in 'a'..='z' {
            assert_eq!(
                encode(&tokenizer, &format!(" {letter}")).unwrap().len(),
                1,
                "{letter}"
            );
        }
        for letter in "IVXLCDM".chars() {
            assert_eq!(
                encode(&tokenizer, &format!(" {letter}")).unwrap().len(),
                1,
                "{letter}"
            );
        }
    }
}
