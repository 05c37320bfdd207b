//! What the uniform sampler makes, against samples of Duo's own code.

use crate::chi_square::{LEVEL, against_law, joint, marginal, two_samples};
use crate::drive::{facts, network, reference, sample};
use crate::fixtures::Case;
use choir::sampler::schedule::LogLinear;
use choir::sampler::{
    Mixture, NoiseRemoval, Sampler, UniformPredictor, UniformSampler, UniformSettings,
};

const SEQUENCES: u64 = 3000;

fn compare(noise_removal: NoiseRemoval, name: &str) {
    let case = Case::load("duo-tiny");
    let network = network(&case);
    let theirs = reference("duo.safetensors", &format!("duo.{name}.samples"));
    let (length, vocab) = (theirs[0].len(), case.config.vocab_size);
    let steps = facts("duo.json")["steps"].as_u64().expect("steps") as u32;
    let settings = UniformSettings {
        block_size: None,
        max_tokens: length,
        predictor: UniformPredictor {
            steps,
            noise_removal,
            ..UniformPredictor::default()
        },
        temperature: 1.0,
        nucleus_p: 1.0,
        top_k: None,
        stop_ids: Vec::new(),
        vocab_size: vocab,
        time_conditioned: case.config.time_conditioned(),
        prefill_chunk: 1,
    };
    let start = |seed| {
        Sampler::Uniform(UniformSampler::new(settings.clone(), &[], seed).expect("settings"))
    };
    let ours = sample(&network, length, SEQUENCES, start);
    for position in 0..length {
        let p = two_samples(
            &marginal(&ours, position, vocab),
            &marginal(&theirs, position, vocab),
        );
        assert!(p > LEVEL, "{name}, position {position}: p = {p}");
    }
    for pair in [[1, 2], [0, length - 1]] {
        let p = two_samples(&joint(&ours, pair, vocab), &joint(&theirs, pair, vocab));
        assert!(p > LEVEL, "{name}, positions {pair:?}: p = {p}");
    }
}

#[test]
fn ancestral_noise_removal_has_the_reference_law() {
    compare(NoiseRemoval::Ancestral, "ancestral");
}

#[test]
fn greedy_noise_removal_has_the_reference_law() {
    compare(NoiseRemoval::Greedy, "greedy");
}

/// Logits of a network that looks at nothing but the position.
fn scripted(position: usize, vocab: usize) -> Vec<f32> {
    (0..vocab)
        .map(|token| ((token * 7 + position * 3) % 5) as f32 * 0.6)
        .collect()
}

/// The law of one position after all steps under such a network: a chain over tokens, from the uniform prior.
fn chain(position: usize, vocab: usize, predictor: &UniformPredictor) -> Vec<f64> {
    let logits = scripted(position, vocab);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let predicted: Vec<f64> = logits
        .iter()
        .map(|&logit| f64::from(logit).exp() / total)
        .collect();
    let times = predictor.psi.times(predictor.steps as usize, predictor.eps);
    let mut law = vec![1.0 / vocab as f64; vocab];
    for (step, &t) in times.iter().enumerate() {
        let alpha_s = times
            .get(step + 1)
            .map_or(1.0, |&s| LogLinear::UNIFORM.alpha(s));
        let mut next = vec![0.0; vocab];
        for (present, mass) in law.iter().enumerate() {
            let mixture = Mixture::new(
                LogLinear::UNIFORM.alpha(t),
                alpha_s,
                1.0,
                predicted[present],
                vocab,
            );
            next[present] += mass * mixture.keep;
            for (next, p) in next.iter_mut().zip(&predicted) {
                *next += mass * (mixture.predicted * p + mixture.uniform / vocab as f64);
            }
        }
        law = next;
    }
    law
}

#[test]
fn blocks_have_the_exact_law_of_their_steps() {
    const VOCAB: usize = 6;
    let predictor = UniformPredictor {
        steps: 3,
        noise_removal: NoiseRemoval::Ancestral,
        ..UniformPredictor::default()
    };
    let settings = |time_conditioned| UniformSettings {
        block_size: Some(4),
        max_tokens: 7,
        predictor,
        temperature: 1.0,
        nucleus_p: 1.0,
        top_k: None,
        stop_ids: Vec::new(),
        vocab_size: VOCAB,
        time_conditioned,
        prefill_chunk: 4,
    };
    for time_conditioned in [true, false] {
        let mut made = Vec::new();
        for seed in 0..20_000 {
            let sampler = UniformSampler::new(settings(time_conditioned), &[1, 2, 3, 4, 5], seed);
            let mut sampler = Sampler::Uniform(sampler.expect("settings"));
            while sampler.finished().is_none() {
                let evaluation = sampler.next();
                let position = |row: &usize| evaluation.first_position + row;
                // A row longer than the vocabulary: a mask that the process never draws.
                let rows = evaluation
                    .rows
                    .iter()
                    .map(|row| scripted(position(row), VOCAB));
                let rows: Vec<Vec<f32>> = rows.map(|row| [row, vec![50.0]].concat()).collect();
                sampler.accept(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
            }
            made.push(sampler.generated().to_vec());
        }
        for position in 0..7 {
            let p = against_law(
                &marginal(&made, position, VOCAB),
                &chain(5 + position, VOCAB, &predictor),
            );
            assert!(p > LEVEL, "position {position}: p = {p}");
        }
        // Positions are drawn apart, within a block and across.
        for [a, b] in [[0, 1], [2, 3]] {
            let (first, second) = (
                chain(5 + a, VOCAB, &predictor),
                chain(5 + b, VOCAB, &predictor),
            );
            let law: Vec<f64> = first
                .iter()
                .flat_map(|p| second.iter().map(move |q| p * q))
                .collect();
            let p = against_law(&joint(&made, [a, b], VOCAB), &law);
            assert!(p > LEVEL, "positions {a} and {b}: p = {p}");
        }
    }
}
