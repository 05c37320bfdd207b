//! A sampler whose cache is taken away, or found filled, makes the same text.

use proptest::prelude::*;

use super::block::{self, VOCAB};
use crate::rng::{Key, Stream};
use crate::sampler::{
    AbsorbingPredictor, BlockSampler, Evaluation, Progress, Sampler, UniformPredictor,
    UniformSampler, UniformSettings,
};

/// Logits that depend on every token up to the end of the evaluation, and on sigma; what comes before it must be in the cache.
fn logits(cache: &[u32], evaluation: &Evaluation, row: usize) -> Vec<f32> {
    let position = (evaluation.first_position + row) as u32;
    let text = [&cache[..evaluation.first_position], &evaluation.tokens].concat();
    let told: Vec<u8> = (text
        .into_iter()
        .chain([position, evaluation.sigma.to_bits()]))
    .flat_map(u32::to_le_bytes)
    .collect();
    let mut stream = Stream::new(Key::derive(&[&told]));
    (0..VOCAB).map(|_| stream.normal() as f32).collect()
}

/// All that is revealed, in order. `upset` says, by its number, whether before a step, before or after it was asked what it
/// wants, the sampler loses its cache or keeps the first few blocks of it.
fn revealed(
    mut sampler: Sampler,
    block: usize,
    upset: impl Fn(usize) -> Option<(bool, usize)>,
) -> Vec<(usize, u32)> {
    let (mut cache, mut revealed): (Vec<u32>, _) = (Vec::new(), Vec::new());
    for step in 0..10_000 {
        if let Some((asked, blocks)) = upset(step) {
            if asked {
                sampler.next();
            }
            let clean = sampler.clean();
            let cached = (blocks * block).min(clean.len());
            cache = clean[..cached].to_vec();
            sampler.resume(cached);
        }
        let evaluation = sampler.next().clone();
        assert_eq!(evaluation.first_position, cache.len());
        let rows: Vec<_> = evaluation
            .rows
            .iter()
            .map(|&row| logits(&cache, &evaluation, row))
            .collect();
        cache.extend(&evaluation.tokens[..evaluation.clean]);
        let progress = sampler.accept(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        revealed.extend(sampler.revealed());
        assert_eq!(sampler.cached().min(sampler.clean().len()), cache.len());
        if let Progress::Finished(_) = progress {
            revealed.extend(sampler.generated().iter().map(|&token| (usize::MAX, token)));
            return revealed;
        }
    }
    panic!("the sampler does not finish");
}

proptest! {
    #[test]
    fn what_is_in_the_cache_does_not_change_the_text(
        kind in 0usize..5, conditioned: bool, prompt in 0usize..14, seed: u64,
        upsets in prop::collection::vec(prop::option::weighted(0.4, (any::<bool>(), 0usize..5)), 60),
    ) {
        let prompt: Vec<u32> = (0..prompt as u32).map(|token| token % 11).collect();
        let make = || match kind {
            0..3 => {
                let predictors =
                    [AbsorbingPredictor::FirstHitting, AbsorbingPredictor::Ancestral { steps: 5 }, AbsorbingPredictor::Confidence { threshold: 0.3, steps: None }];
                let settings = block::settings();
                let settings = crate::sampler::BlockSettings {
                    predictor: predictors[kind], time_conditioned: conditioned, ..settings
                };
                Sampler::Block(BlockSampler::new(settings, &prompt, seed).unwrap())
            }
            _ => Sampler::Uniform(UniformSampler::new(UniformSettings {
                block_size: Some(4),
                max_tokens: 10,
                predictor: UniformPredictor { steps: 3, ..UniformPredictor::default() },
                temperature: 1.0,
                nucleus_p: 1.0,
                top_k: None,
                stop_ids: vec![3],
                vocab_size: VOCAB,
                time_conditioned: conditioned,
                prefill_chunk: 8,
            }, &prompt, seed).unwrap()),
        };
        let undisturbed = revealed(make(), 4, |_| None);
        let disturbed = revealed(make(), 4, |step| upsets.get(step).copied().flatten());
        prop_assert_eq!(undisturbed, disturbed);
    }
}
