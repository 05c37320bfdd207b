//! Draws as data: what they make is what the samplers have made of these seeds ever since.

use proptest::prelude::*;

use super::{block, uniform};
use crate::ops::categorical::Drawn;
use crate::rng::{Key, Stream};
use crate::sampler::{
    AbsorbingPredictor, BlockSampler, BlockSettings, FilterWorkspace, Kappa, NoiseRemoval, Psi,
    Sampler, UniformPredictor, UniformSampler, UniformSettings,
};

/// One sampler for each way of drawing; the uniform ones read a part of a row only.
const WAYS: usize = 6;
const ROW: usize = block::VOCAB;

fn sampler(way: usize, seed: u64) -> Sampler {
    let block = |predictor| {
        let settings = BlockSettings {
            predictor,
            temperature: 0.8,
            nucleus_p: 0.95,
            ..block::settings()
        };
        Sampler::Block(BlockSampler::new(settings, &[3], seed).unwrap())
    };
    let uniform = |noise_removal, psi, block_size| {
        let predictor = UniformPredictor {
            steps: 5,
            psi,
            noise_removal,
            ..UniformPredictor::default()
        };
        let settings = UniformSettings {
            block_size,
            predictor,
            temperature: 0.7,
            top_k: Some(5),
            ..uniform::settings()
        };
        Sampler::Uniform(UniformSampler::new(settings, &[3], seed).unwrap())
    };
    let psi = Psi {
        low: Kappa::PureCorrector,
        ..Psi::ANCESTRAL
    };
    match way {
        0 => block(AbsorbingPredictor::FirstHitting),
        1 => block(AbsorbingPredictor::Ancestral { steps: 3 }),
        2 => block(AbsorbingPredictor::Confidence {
            threshold: 0.4,
            steps: None,
        }),
        3 => uniform(NoiseRemoval::Greedy, Psi::ANCESTRAL, None),
        4 => uniform(NoiseRemoval::Ancestral, Psi::ANCESTRAL, Some(4)),
        _ => uniform(NoiseRemoval::Greedy, psi, None),
    }
}

/// Logits of `next`'s rows: another noise for all that the network sees.
fn logits(sampler: &mut Sampler) -> Vec<Vec<f32>> {
    let seen = sampler.next();
    let tokens: Vec<u8> = seen.tokens.iter().map(|&token| token as u8).collect();
    let row = |row: &usize| {
        let mut noise = Stream::new(Key::derive(&[&tokens, &[*row as u8]]));
        (0..ROW).map(|_| 6.0 * noise.uniform() as f32).collect()
    };
    seen.rows.iter().map(row).collect()
}

fn made(mut sampler: Sampler) -> Vec<u32> {
    while sampler.finished().is_none() {
        let logits = logits(&mut sampler);
        sampler.accept(&logits.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
    sampler.generated().to_vec()
}

#[test]
fn seeds_mean_the_same_tokens() {
    let ever_since: [[u32; 10]; WAYS] = [
        [4, 7, 3, 9, 7, 0, 7, 4, 4, 2],
        [3, 7, 3, 1, 2, 2, 9, 9, 4, 0],
        [3, 7, 0, 4, 5, 4, 4, 10, 6, 10],
        [6, 1, 3, 2, 5, 4, 5, 5, 6, 1],
        [2, 5, 1, 3, 2, 6, 6, 0, 0, 0],
        [0, 5, 3, 4, 6, 0, 2, 6, 1, 4],
    ];
    for (way, tokens) in ever_since.into_iter().enumerate() {
        assert_eq!(made(sampler(way, 42)), tokens, "way {way}");
    }
}

proptest! {
    #[test]
    fn accepting_logits_is_taking_what_is_drawn_from_them(way in 0..WAYS, seed: u64) {
        let (mut accepting, mut taking) = (sampler(way, seed), sampler(way, seed));
        while accepting.finished().is_none() {
            prop_assert!(taking.draws().is_empty(), "before it was asked");
            let logits = logits(&mut accepting);
            prop_assert_eq!(taking.next().rows.len(), logits.len());
            let drawn: Vec<Drawn> = (taking.draws().iter().zip(&logits))
                .map(|(draw, logits)| draw.apply(logits, &mut FilterWorkspace::default()))
                .collect();
            prop_assert_eq!(drawn.len(), logits.len());
            prop_assert!(drawn.iter().all(|drawn| (drawn.certainty > 0.0) == (way == 2)), "{:?}", drawn);
            let rows: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(accepting.accept(&rows), taking.take(&drawn));
            prop_assert_eq!(accepting.revealed(), taking.revealed());
        }
        prop_assert!(taking.draws().is_empty(), "after the end");
        prop_assert_eq!(accepting.generated(), taking.generated());
    }
}
