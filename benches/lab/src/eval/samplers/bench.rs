//! A text's judge, and the part of the held-out text that it never saw.

use super::OfText;
use super::quality::{Quality, shuffled};
use crate::eval::judge::Judge;
use crate::eval::subjects::HeldOut;
use anyhow::{Result, bail};
use choir::train::data::Document;

pub struct Bench {
    /// The held-out text's name.
    pub text: String,
    pub judge: Judge,
    trained_on: String,
    /// Whether it was trained on files given rather than on held-out text.
    pub held_in: bool,
    /// The last fifth of the held-out text, in pieces as long as a sample.
    kept: Vec<Vec<u32>>,
}

impl Bench {
    /// The judge learns the training part of those `documents` that have the held-out text's name; where there is none,
    /// the first four fifths of the held-out text. `tokens`: size of the vocabulary without the mask.
    pub fn new(
        held_out: &HeldOut,
        documents: &[Document],
        encode: impl Fn(&str) -> Vec<u32>,
        tokens: usize,
        length: usize,
    ) -> Result<Self> {
        let (first, rest) = held_out.text.split_at(four_fifths(held_out.text));
        let kept = encode(rest);
        if kept.len() < length {
            bail!(
                "--length: the last fifth of {}'s held-out text has {} tokens, less than {length}",
                held_out.name,
                kept.len()
            );
        }
        let own: Vec<&str> = documents
            .iter()
            .filter(|document| document.name == held_out.name)
            .map(|document| document.training.as_str())
            .collect();
        let held_in = !own.is_empty();
        let trained_on = match held_in {
            true => "the text that was trained on",
            false => "the first four fifths of the held-out text",
        };
        let texts = if held_in { own } else { vec![first] };
        let texts: Vec<Vec<u32>> = texts.into_iter().map(encode).collect();
        Ok(Self {
            text: held_out.name.clone(),
            judge: Judge::new(tokens, texts.iter().map(Vec::as_slice)),
            trained_on: trained_on.to_owned(),
            held_in,
            kept: kept.chunks_exact(length).map(<[u32]>::to_vec).collect(),
        })
    }
}

fn four_fifths(text: &str) -> usize {
    let mut cut = text.len() / 5 * 4;
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    cut
}

/// What the judge says of text that is as good as it gets, and of its pieces in any order.
pub fn held_out(bench: &Bench, seed: u64) -> OfText {
    OfText {
        text: bench.text.clone(),
        judge_trained_on: bench.trained_on.clone(),
        judge_tokens: bench.judge.trained_on(),
        held_out: Quality::of(&bench.judge, &bench.kept),
        shuffled: Quality::of(&bench.judge, &shuffled(&bench.kept, seed)),
        rows: Vec::new(),
    }
}
