//! What is said of texts: the judge's cross-entropy, and how varied they are.

use crate::eval::judge::Judge;
use choir::rng::{Key, Stream};
use serde::Serialize;
use std::collections::HashMap;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// The judge's cross-entropy, in nats per token.
    pub nats_per_token: f64,
    /// Of the tokens of one text, in nats, on average over the texts, as in Duo's code: low where a text repeats itself.
    pub entropy: f64,
    /// Of the tokens of all texts together: low where they are all alike.
    pub entropy_of_all: f64,
    /// In all texts.
    pub tokens: usize,
}

impl Quality {
    pub fn of(judge: &Judge, texts: &[Vec<u32>]) -> Self {
        let verdict = judge.verdict(texts.iter().map(Vec::as_slice));
        let each: f64 = texts.iter().map(entropy).sum();
        Self {
            nats_per_token: verdict.cross_entropy(),
            entropy: each / texts.len().max(1) as f64,
            entropy_of_all: entropy(texts.iter().flatten()),
            tokens: verdict.pieces,
        }
    }
}

/// Of the shares of different tokens, in nats.
pub fn entropy<'a>(tokens: impl IntoIterator<Item = &'a u32>) -> f64 {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    tokens
        .into_iter()
        .for_each(|&token| *counts.entry(token).or_default() += 1);
    let total = counts.values().sum::<usize>() as f64;
    let mut shares: Vec<f64> = counts.values().map(|&count| count as f64 / total).collect();
    shares.sort_by(f64::total_cmp); // a map's order is not the same twice, and sums are to be
    -shares.iter().map(|share| share * share.ln()).sum::<f64>()
}

/// The tokens of all texts in any order, in texts of the same lengths.
pub fn shuffled(texts: &[Vec<u32>], seed: u64) -> Vec<Vec<u32>> {
    let mut tokens: Vec<u32> = texts.iter().flatten().copied().collect();
    let mut stream = Stream::new(Key::derive(&[b"choir/eval/shuffled", &seed.to_le_bytes()]));
    for last in (1..tokens.len()).rev() {
        tokens.swap(last, stream.below(last + 1));
    }
    let mut tokens = tokens.into_iter();
    texts
        .iter()
        .map(|text| tokens.by_ref().take(text.len()).collect())
        .collect()
}
