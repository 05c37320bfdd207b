//! What a load is made of: which variant, how long, and when. A pure function of its seed.

use crate::rng::{Key, Stream};
use std::str::FromStr;
use std::time::Duration;

/// How often each variant is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    Uniform,
    /// The i-th variant, from 1, in proportion to i^-exponent.
    Zipf(f64),
}

impl FromStr for Popularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let zipf = text
            .strip_prefix("zipf")
            .map(|rest| match rest.strip_prefix('-') {
                None if rest.is_empty() => Some(1.0),
                exponent => exponent.and_then(|exponent| exponent.parse().ok()),
            });
        match (text, zipf.flatten()) {
            ("uniform", _) => Ok(Popularity::Uniform),
            (_, Some(exponent)) if (0.0..=10.0).contains(&exponent) => {
                Ok(Popularity::Zipf(exponent))
            }
            _ => Err(
                "it is uniform, zipf, or zipf-EXPONENT with an exponent from 0 to 10".to_owned(),
            ),
        }
    }
}

/// A variant that is asked for so many times as much as it would be.
#[derive(Clone, Debug, PartialEq)]
pub struct NoisyVariant {
    pub name: String,
    pub times: f64,
}

impl FromStr for NoisyVariant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let times = named.and_then(|(_, times)| times.parse().ok());
        match (named, times) {
            (Some((name, _)), Some(times)) if (1.0..=1000.0).contains(&times) => Ok(NoisyVariant {
                name: name.to_owned(),
                times,
            }),
            _ => Err("it is NAME=TIMES, with a number from 1 to 1000".to_owned()),
        }
    }
}

/// A number, or two that bound it: `32` or `16..64`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub least: u32,
    pub most: u32,
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        match (least.trim().parse(), most.trim().parse()) {
            (Ok(least), Ok(most)) if 1 <= least && least <= most => Ok(Span { least, most }),
            _ => Err("it is a number from 1, or two that bound it, as in 16..64".to_owned()),
        }
    }
}

/// How requests are made.
#[derive(Clone, Debug)]
pub struct LoadSettings {
    /// How many variants take part, at least 1.
    pub variants: usize,
    pub popularity: Popularity,
    /// The index of one that is asked for more than that, and how many times as much.
    pub noisy: Option<(usize, f64)>,
    pub prompt_words: Span,
    pub max_tokens: Span,
    pub seed: u64,
}

/// One request to make.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRequest {
    /// Index of its variant.
    pub variant: usize,
    pub prompt: String,
    pub max_tokens: u32,
    pub seed: u64,
}

/// Makes one request after the other.
#[derive(Debug)]
pub struct Load {
    settings: LoadSettings,
    /// Running sums of the variants' shares.
    until: Vec<f64>,
    stream: Stream,
}

/// The words of prompts (Jane Austen, Pride and Prejudice), taken in order from anywhere, around the end.
const TEXT: &str = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in \
    want of a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, \
    this truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property of \
    some one or other of their daughters.";

impl Load {
    pub fn new(settings: LoadSettings) -> Self {
        let share = |index: usize| {
            let share = match settings.popularity {
                Popularity::Uniform => 1.0,
                Popularity::Zipf(exponent) => (index as f64 + 1.0).powf(-exponent),
            };
            match settings.noisy {
                Some((noisy, times)) if noisy == index => share * times,
                _ => share,
            }
        };
        let total: f64 = (0..settings.variants).map(share).sum();
        let mut sum = 0.0;
        let until = (0..settings.variants).map(|index| {
            sum += share(index) / total;
            sum
        });
        Load {
            until: until.collect(),
            stream: Stream::new(Key::derive(&[
                b"choir/bench/serve/1",
                &settings.seed.to_le_bytes(),
            ])),
            settings,
        }
    }

    pub fn next_request(&mut self) -> PlannedRequest {
        let at = self.stream.uniform();
        let variant = self.until.partition_point(|&until| until <= at);
        let words: Vec<&str> = TEXT.split_whitespace().collect();
        let (first, count) = (
            self.stream.below(words.len()),
            self.between(self.settings.prompt_words),
        );
        let prompt: Vec<&str> = words
            .iter()
            .cycle()
            .skip(first)
            .take(count as usize)
            .copied()
            .collect();
        PlannedRequest {
            variant: variant.min(self.until.len() - 1),
            prompt: prompt.join(" "),
            max_tokens: self.between(self.settings.max_tokens),
            seed: self.stream.next_u64(),
        }
    }

    /// Time to the next arrival of a Poisson process of `rate` a second.
    pub fn gap(&mut self, rate: f64) -> Duration {
        Duration::try_from_secs_f64(-self.stream.uniform().ln() / rate).unwrap_or(Duration::MAX)
    }

    fn between(&mut self, span: Span) -> u32 {
        span.least + self.stream.below((span.most - span.least) as usize + 1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variants: usize, popularity: Popularity) -> Load {
        let span = |least, most| Span { least, most };
        Load::new(LoadSettings {
            variants,
            popularity,
            noisy: None,
            prompt_words: span(2, 5),
            max_tokens: span(8, 16),
            seed: 1,
        })
    }

    #[test]
    fn variants_are_asked_for_as_often_as_their_popularity_says() {
        let shares = |popularity| {
            let (mut load, mut counts) = (load(4, popularity), [0.0_f64; 4]);
            (0..20_000).for_each(|_| counts[load.next_request().variant] += 1.0 / 20_000.0);
            counts
        };
        for (found, expected) in shares(Popularity::Uniform).into_iter().zip([0.25; 4]) {
            assert!((found - expected).abs() < 0.01, "{found}");
        }
        let total = 1.0 + 0.5 + 1.0 / 3.0 + 0.25;
        for (found, rank) in shares(Popularity::Zipf(1.0)).into_iter().zip(1..) {
            assert!(
                (found - 1.0 / f64::from(rank) / total).abs() < 0.015,
                "{found}"
            );
        }
    }

    #[test]
    fn a_noisy_variant_is_asked_for_more() {
        let mut settings = load(3, Popularity::Uniform).settings;
        settings.noisy = Some((1, 10.0));
        let (mut load, mut counts) = (Load::new(settings), [0.0_f64; 3]);
        (0..20_000).for_each(|_| counts[load.next_request().variant] += 1.0 / 20_000.0);
        for (found, expected) in counts
            .into_iter()
            .zip([1.0 / 12.0, 10.0 / 12.0, 1.0 / 12.0])
        {
            assert!((found - expected).abs() < 0.01, "{found}");
        }
        let noisy = |name: &str, times| NoisyVariant {
            name: name.into(),
            times,
        };
        assert_eq!("kjv=10".parse(), Ok(noisy("kjv", 10.0)));
        for text in [
            "", "kjv", "kjv=", "=3", "kjv=0", "kjv=NaN", "kjv=1e9", "kjv=-1",
        ] {
            assert!(text.parse::<NoisyVariant>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_stay_in_their_spans_and_reach_both_ends() {
        let mut load = load(1, Popularity::Uniform);
        let plans: Vec<PlannedRequest> = (0..500).map(|_| load.next_request()).collect();
        let words = |plan: &PlannedRequest| plan.prompt.split_whitespace().count();
        assert_eq!(plans.iter().map(words).min(), Some(2));
        assert_eq!(plans.iter().map(words).max(), Some(5));
        assert_eq!(plans.iter().map(|plan| plan.max_tokens).min(), Some(8));
        assert_eq!(plans.iter().map(|plan| plan.max_tokens).max(), Some(16));
    }

    #[test]
    fn arrivals_are_poisson() {
        let mut load = load(1, Popularity::Uniform);
        let gaps: Vec<f64> = (0..20_000).map(|_| load.gap(50.0).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // Exponential: more than the mean with a chance of 1/e.
        let long = gaps.iter().filter(|gap| **gap > 1.0 / 50.0).count() as f64 / gaps.len() as f64;
        assert!((long - (-1f64).exp()).abs() < 0.015, "{long}");
    }

    #[test]
    fn popularities_and_spans_that_are_none_are_refused() {
        for text in [
            "", "zipfian", "zipf-", "zipf-x", "zipf--1", "zipf-11", "even", "zipf-NaN",
        ] {
            assert!(text.parse::<Popularity>().is_err(), "{text}");
        }
        assert_eq!("zipf-1.5".parse(), Ok(Popularity::Zipf(1.5)));
        assert_eq!("zipf".parse(), Ok(Popularity::Zipf(1.0)));
        for text in ["", "0", "4..2", "0..3", "a..b", "1..", "-1"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert_eq!("3..9".parse(), Ok(Span { least: 3, most: 9 }));
    }
}
