//! What the uniform sampler makes, against samples of Duo's own code.

use crate::chi_square::{LEVEL, joint, marginal, two_samples};
use crate::drive::{network, reference, sample};
use crate::fixtures::Case;
use choir::sampler::{NoiseRemoval, Sampler, UniformPredictor, UniformSampler, UniformSettings};

const SEQUENCES: u64 = 3000;

fn compare(noise_removal: NoiseRemoval, name: &str) {
    let case = Case::load("duo-tiny");
    let network = network(&case);
    let theirs = reference("duo.safetensors", &format!("duo.{name}.samples"));
    let (length, vocab) = (theirs[0].len(), case.config.vocab_size);
    let settings = UniformSettings {
        block_size: None,
        max_tokens: length,
        predictor: UniformPredictor {
            steps: 8,
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
    let start = |seed| Sampler::Uniform(UniformSampler::new(settings.clone(), &[], seed).expect("settings"));
    let ours = sample(&network, length, SEQUENCES, start);
    for position in 0..length {
        let p = two_samples(&marginal(&ours, position, vocab), &marginal(&theirs, position, vocab));
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
