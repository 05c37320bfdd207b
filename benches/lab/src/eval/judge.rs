//! Who judges a sample is not who made it: an n-gram model with interpolated Kneser-Ney smoothing over the tokenizer's
//! pieces (Kneser and Ney 1995; Chen and Goodman 1999, section 2.7).
//!
//! ```text
//! p(w | h) = max(c(h w) - D, 0) / c(h) + D N(h) / c(h) · p(w | h without its first piece)
//! ```
//!
//! c counts occurrences in the longest n-grams, and in shorter ones the different pieces that stand before them (the
//! beginning of a text being one more); c(h) is the sum of c(h w) over w, N(h) the number of w with a c(h w). Below
//! single pieces stands 1/V. Over pieces rather than bytes, because five bytes are less than a word: a sample of made-up
//! words would look well. And its figure then has the unit of the NELBO and of the samples' entropy, nats a piece.

use std::collections::{HashMap, HashSet};

/// Pieces to the longest n-gram.
pub const ORDER: usize = 5;
/// Bits of a piece within a [`Gram`]: five of them fit.
const BITS: usize = 24;
/// D where no n-gram occurs just once: anything that leaves a little for what was not seen.
const HALF: f64 = 0.5;

/// An n-gram of known length, its last piece in the lowest bits.
type Gram = u128;

fn gram(pieces: &[u32]) -> Gram {
    pieces.iter().fold(0, |gram, &piece| {
        gram << BITS | Gram::from(piece & ((1 << BITS) - 1))
    })
}

/// A gram without all but its last `length` pieces.
fn suffix(gram: Gram, length: usize) -> Gram {
    gram & ((1 << (BITS * length)) - 1)
}

/// The n-grams of one length.
#[derive(Debug, Default)]
struct Order {
    discount: f64,
    counts: HashMap<Gram, u32>,
    /// By all but the last piece: c(h) and N(h).
    histories: HashMap<Gram, (u64, u32)>,
}

impl Order {
    fn new(counts: HashMap<Gram, u32>) -> Self {
        let mut histories: HashMap<Gram, (u64, u32)> = HashMap::new();
        let mut of_count = [0u32; 3];
        for (&gram, &count) in &counts {
            let history = histories.entry(gram >> BITS).or_default();
            history.0 += u64::from(count);
            history.1 += 1;
            if let Some(number) = of_count.get_mut(count as usize) {
                *number += 1;
            }
        }
        let [_, once, twice] = of_count.map(f64::from);
        let discount = if once > 0.0 {
            once / (once + 2.0 * twice)
        } else {
            HALF
        };
        Self {
            discount,
            counts,
            histories,
        }
    }
}

/// A trained model.
#[derive(Debug)]
pub struct Judge {
    vocab: usize,
    /// Of one piece, of two, ...
    orders: Vec<Order>,
    trained_on: usize,
}

/// What a judge says of texts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Verdict {
    pub nats: f64,
    pub pieces: usize,
}

impl Verdict {
    /// Nats a piece.
    pub fn cross_entropy(&self) -> f64 {
        self.nats / self.pieces.max(1) as f64
    }
}

impl Judge {
    /// Learns `texts` of pieces below `vocab` (at most 2^24).
    pub fn new<'a>(vocab: usize, texts: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut longest: HashMap<Gram, u32> = HashMap::new();
        // By length less one: n-grams with which a text begins.
        let mut beginnings = vec![HashSet::new(); ORDER];
        let mut trained_on = 0;
        for text in texts {
            for window in text.windows(ORDER) {
                *longest.entry(gram(window)).or_default() += 1;
            }
            for length in 1..ORDER.min(text.len() + 1) {
                beginnings[length - 1].insert(gram(&text[..length]));
            }
            trained_on += text.len();
        }
        let mut orders = vec![Order::new(longest)];
        for length in (1..ORDER).rev() {
            let longer = &orders[0].counts;
            let mut counts: HashMap<Gram, u32> = HashMap::with_capacity(longer.len());
            let suffixes = longer.keys().map(|&gram| suffix(gram, length));
            for gram in suffixes.chain(beginnings[length - 1].iter().copied()) {
                *counts.entry(gram).or_default() += 1;
            }
            orders.insert(0, Order::new(counts));
        }
        Self {
            vocab,
            orders,
            trained_on,
        }
    }

    /// Pieces it learnt from.
    pub fn trained_on(&self) -> usize {
        self.trained_on
    }

    /// The probability of `piece` after `history`, of which the last four pieces matter. Over all pieces below the
    /// vocabulary's size it sums to 1.
    pub fn probability(&self, history: &[u32], piece: u32) -> f64 {
        let mut probability = 1.0 / self.vocab as f64;
        for (length, order) in self.orders.iter().enumerate().take(history.len() + 1) {
            let before = gram(&history[history.len() - length..]);
            let Some(&(total, different)) = order.histories.get(&before) else {
                break; // nor does a longer one occur
            };
            let count = order
                .counts
                .get(&(before << BITS | gram(&[piece])))
                .copied()
                .unwrap_or(0);
            let kept = (f64::from(count) - order.discount).max(0.0);
            probability =
                (kept + order.discount * f64::from(different) * probability) / total as f64;
        }
        probability
    }

    /// All texts together, every one from its beginning.
    pub fn verdict<'a>(&self, texts: impl IntoIterator<Item = &'a [u32]>) -> Verdict {
        let mut verdict = Verdict::default();
        for text in texts {
            for at in 0..text.len() {
                verdict.nats -= self.probability(&text[..at], text[at]).ln();
                verdict.pieces += 1;
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use choir::rng::{Key, Stream};
    use proptest::prelude::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn a_small_text_by_hand() {
        let judge = Judge::new(4, [&[1, 2, 1, 2, 3][..]]);
        // Bigrams, each with what stands before it: 12 {beginning, 2}, 21 {1}, 23 {1}. Two count once and one twice:
        // D = 2 / (2 + 2) = 1/2.
        let two = &judge.orders[1];
        assert_eq!(two.counts[&gram(&[1, 2])], 2);
        assert!(close(two.discount, 0.5));
        // Pieces: 1 {beginning, 2}, 2 {1}, 3 {2}: counts 2, 1, 1, so D = 2 / (2 + 2) = 1/2 again.
        let one = |count: f64| (count - 0.5f64).max(0.0) / 4.0 + 0.5 * 3.0 / 4.0 / 4.0;
        assert!(close(judge.probability(&[], 1), one(2.0)));
        assert!(close(judge.probability(&[], 0), 0.09375));
        // After 2: 1 and 3, once each, and nothing else.
        let after_two =
            |count: f64, shorter: f64| (count - 0.5f64).max(0.0) / 2.0 + 0.5 * 2.0 / 2.0 * shorter;
        assert!(close(judge.probability(&[2], 3), after_two(1.0, one(1.0))));
        assert!(close(judge.probability(&[2], 2), after_two(0.0, one(1.0))));
        // Trigrams 121 {beginning}, 212 {1}, 123 {2}: all once, D = 1, and a history of two says nothing.
        assert!(close(
            judge.probability(&[1, 2], 3),
            judge.probability(&[2], 3)
        ));
        // A piece that never had anything after it.
        assert!(close(judge.probability(&[3], 1), judge.probability(&[], 1)));
        assert_eq!(judge.trained_on(), 5);
        let verdict = judge.verdict([&[1, 2][..], &[0]]);
        let nats = -(one(2.0) * judge.probability(&[1], 2) * one(0.0)).ln();
        assert!(close(verdict.nats, nats) && verdict.pieces == 3);
    }

    #[test]
    fn the_longest_grams_count_every_occurrence() {
        let text = [0u32, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5];
        let judge = Judge::new(6, [&text[..]]);
        assert_eq!(judge.orders[4].counts[&gram(&[1, 2, 3, 4, 1])], 2);
        assert_eq!(judge.orders[3].counts[&gram(&[2, 3, 4, 1])], 1); // after 1 only
        assert_eq!(judge.orders[3].counts[&gram(&[1, 2, 3, 4])], 2); // after 0 and 4
        assert!(judge.probability(&[1, 2, 3, 4], 1) > judge.probability(&[1, 2, 3, 4], 5));
    }

    /// Words of three pieces in random order.
    fn words(count: usize, seed: u8) -> Vec<u32> {
        let mut stream = Stream::new(Key([seed; 32]));
        let mut word = || stream.below(30) as u32;
        (0..count)
            .flat_map(|_| {
                let word = word();
                [word % 10 + 1, word % 6 + 11, word + 20]
            })
            .collect()
    }

    #[test]
    fn order_matters() {
        let judge = Judge::new(60, [&words(2000, 1)[..]]);
        let own = words(300, 2);
        let mut shuffled = own.clone();
        let mut stream = Stream::new(Key([3; 32]));
        for last in (1..shuffled.len()).rev() {
            shuffled.swap(last, stream.below(last + 1));
        }
        let [own, shuffled] =
            [own, shuffled].map(|text| judge.verdict([&text[..]]).cross_entropy());
        // ln 30 / 3 = 1.13 nats a piece are in the words; nothing learns more than that.
        assert!(own > 1.1 && own < 1.4, "{own}");
        assert!(shuffled > own + 1.0, "{shuffled} against {own}");
    }

    proptest! {
        #[test]
        fn every_history_has_a_distribution(
            texts in prop::collection::vec(prop::collection::vec(0u32..6, 0..30), 0..4),
            history in prop::collection::vec(0u32..8, 0..7),
        ) {
            let judge = Judge::new(8, texts.iter().map(Vec::as_slice));
            let mut histories: Vec<&[u32]> = vec![&history];
            histories.extend(texts.iter().flat_map(|text| text.windows(4)));
            for history in histories {
                let all: Vec<f64> = (0..8).map(|piece| judge.probability(history, piece)).collect();
                prop_assert!(all.iter().all(|&p| p > 0.0 && p <= 1.0), "{all:?}");
                prop_assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{all:?}");
            }
        }
    }
}
