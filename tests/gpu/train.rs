//! Training on a device against training on the host.

use std::collections::BTreeMap;

use candle_core::Tensor;
use choir::model::gpu::GpuTrainer;
use choir::model::{DitConfig, Trainable};
use choir::ops::Divergence;
use choir::rng::Stream;
use choir::train::course::Course;
use choir::train::data::{Contexts, Document, TextSource};
use choir::train::folder::Tensors;
use choir::train::noisy::Noisy;
use choir::train::objective::{Corruption, Objective};
use choir::train::optimizer::AdamW;
use choir::train::run::TrainingRun;
use choir::train::settings::{Anchor, Budget, Members, TrainSettings, TrainingSource};
use choir::train::tokenizer;

use crate::fixtures::Case;
use crate::rig::{Rig, normals, stream};

/// Weights of about the size that they have in a network that has learned something.
fn weights(random: &mut Stream, config: &DitConfig) -> Tensors {
    let tensors = config.tensors().into_iter();
    let numbers = tensors.map(|(name, shape)| {
        let size = 1.0 / (*shape.last().unwrap() as f32).sqrt();
        let data: Vec<f32> = normals(random, shape.iter().product());
        (name, (shape, data.into_iter().map(|x| x * size).collect()))
    });
    numbers.collect()
}

/// Sequences of random tokens, some of which do not count.
fn contexts(random: &mut Stream, config: &DitConfig, count: usize, length: usize) -> Contexts {
    let tokens = count * length;
    Contexts {
        count,
        length,
        tokens: (0..tokens)
            .map(|_| random.below(config.tokens()) as u32)
            .collect(),
        importance: (0..tokens)
            .map(|_| [1.0, 0.5, 0.0][random.below(3)])
            .collect(),
    }
}

/// Largest difference over the size of what is expected, over all elements of a tensor.
fn relative(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let flat = |x: &Tensor| -> Vec<f32> { x.flatten_all().unwrap().to_vec1().unwrap() };
    let (ours, theirs) = (flat(ours), flat(theirs));
    let size = theirs.iter().fold(1e-12f32, |size, x| size.max(x.abs()));
    let differ = |(a, b): (&f32, &f32)| {
        if a.is_nan() {
            f32::INFINITY
        } else {
            (a - b).abs()
        }
    };
    ours.iter().zip(&theirs).map(differ).fold(0f32, f32::max) / size
}

fn assert_same(
    what: &str,
    (loss, gradients): (f64, BTreeMap<String, Tensor>),
    (expected, all): (f64, BTreeMap<String, Tensor>),
) {
    assert!(
        (loss - expected).abs() < 1e-5 * expected.abs() + 1e-6,
        "{what}: a loss of {loss}, not {expected}"
    );
    assert!(
        gradients.keys().eq(all.keys()),
        "{what}: gradients of other weights"
    );
    for (name, gradient) in gradients {
        let off = relative(&gradient, &all[&name]);
        assert!(off < 1e-4, "{what}: the gradient of {name} is off by {off}");
    }
}

/// Every kind of network: in blocks and whole, told the noise level and not, lengths shorter than the network's, widths
/// that are no multiple of four. A second batch finds what the first left behind.
#[test]
fn gradients_are_those_of_the_host() {
    let published = |folder| {
        let case = Case::load(folder);
        (case.config, case.weights)
    };
    let mut random = stream("gradients");
    let odd = DitConfig {
        model_type: "bd3lm".into(),
        vocab_size: 37,
        model_length: 77,
        hidden_dim: 42,
        cond_dim: 5,
        n_blocks: 2,
        n_heads: 3,
        block_size: Some(7),
        cross_attn: true,
        time_conditioning: Some(false),
        states: None,
    };
    let mut networks = vec![
        published("bd3lm-tiny"),
        published("mdlm-tiny"),
        published("duo-tiny"),
    ];
    for config in [odd.clone(), odd.uniform(Some(7)), odd.uniform(None)] {
        let weights = weights(&mut random, &config);
        networks.push((config, weights));
    }
    for rig in Rig::all().take(2) {
        let trainer = GpuTrainer::new(rig.gpu.clone());
        for (config, weights) in &networks {
            let what = format!("{} in blocks of {:?}", config.model_type, config.block());
            let model = Trainable::from_tensors(config.clone(), weights).unwrap();
            let objective = Objective::new(config, (0.1, 1.0)).unwrap();
            let most = config.model_length.min(70);
            let whole = |length: usize| length.next_multiple_of(config.block().unwrap_or(1));
            for (count, length) in [(2, most), (3, most.div_ceil(2))] {
                let length = whole(length).min(config.model_length);
                let contexts = contexts(&mut random, config, count, length);
                let noisy = objective.corrupt(&contexts, &mut random);
                let ours = noisy.gradients(&trainer.of(&model), None).unwrap();
                assert_same(&what, ours, noisy.gradients(&model, None).unwrap());
                let (ours, theirs) = (
                    noisy.losses(&trainer.of(&model)).unwrap(),
                    noisy.losses(&model).unwrap(),
                );
                let off = ours
                    .iter()
                    .zip(&theirs)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0f32, f32::max);
                assert!(off < 1e-4, "{what}: losses are off by {off}");
            }
        }
    }
}

/// A teacher is evaluated between the two halves of a student's evaluation.
#[test]
fn a_teacher_does_not_disturb_its_student() {
    let Some(rig) = Rig::one() else { return };
    let case = Case::load("duo-tiny");
    let mut random = stream("teacher");
    let objective = Objective::new(&case.config, (1e-3, 1.0)).unwrap();
    let Corruption::Uniform(tokens) = objective.corruption else {
        panic!("the mask is no state")
    };
    let contexts = contexts(&mut random, &case.config, 2, case.config.model_length);
    let noisy: Noisy =
        objective.trajectory(&contexts, tokens, 0.1, Divergence::Backward, &mut random);
    let other = weights(&mut random, &case.config);
    let [student, teacher] = [&case.weights, &other]
        .map(|weights| Trainable::from_tensors(case.config.clone(), weights).unwrap());
    let [first, second] = [(); 2].map(|()| GpuTrainer::new(rig.gpu.clone()));
    let ours = noisy
        .gradients(&first.of(&student), Some(&second.of(&teacher)))
        .unwrap();
    assert_same(
        "distilled",
        ours,
        noisy.gradients(&student, Some(&teacher)).unwrap(),
    );
}

/// A whole run under interference, with what validates it.
#[test]
fn a_run_on_a_device_learns_what_it_learns_on_the_host() {
    let Some(rig) = Rig::one() else { return };
    let mut random = stream("run");
    let words = [
        "the whale ",
        "a ship ",
        "was seen ",
        "at noon. ",
        "No one ",
        "spoke.\n",
    ];
    let text: String = (0..2000)
        .map(|_| words[random.below(words.len())])
        .collect();
    let tokenizer = tokenizer::train(std::slice::from_ref(&text), 280).unwrap();
    let pieces = tokenizer::from_json(&tokenizer).unwrap();
    let config = DitConfig {
        model_type: "bd3lm".into(),
        vocab_size: pieces.get_vocab_size(true) + 1,
        model_length: 16,
        hidden_dim: 32,
        cond_dim: 8,
        n_blocks: 2,
        n_heads: 2,
        block_size: Some(8),
        cross_attn: true,
        time_conditioning: Some(false),
        states: None,
    };
    let tensors = weights(&mut random, &config);
    let document = Document::new("tiny".into(), text);
    let trained = |gpu| {
        let settings = TrainSettings {
            objective: Objective::new(&config, (0.1, 1.0)).unwrap(),
            course: Course::Plain,
            budget: Budget::Steps(6),
            batch: 4,
            length: 16,
            rate: 1e-2,
            warm_up: 2,
            optimizer: AdamW::default(),
            base: Some(Anchor {
                tensors: tensors.clone(),
                members: Members { body: 4, head: 2 },
            }),
            seed: 1,
            checkpoint: None,
            save_every: 1e9,
            report_every: 1e9,
            validate_every: 1.0,
            gpu,
        };
        let model = Trainable::from_tensors(config.clone(), &tensors).unwrap();
        let source = TrainingSource::Text(
            TextSource::new(std::slice::from_ref(&document), &pieces, 16).unwrap(),
        );
        let mut ignore = |_| ();
        let run = TrainingRun::new(model, settings, source, None, false, &mut ignore).unwrap();
        run.finish().unwrap().0
    };
    let (ours, theirs) = (trained(Some(rig.gpu.clone())), trained(None));
    for (name, (_, ours)) in ours {
        let (_, theirs) = &theirs[&name];
        let furthest = |from: &[f32]| {
            theirs
                .iter()
                .zip(from)
                .map(|(a, b)| (a - b).abs())
                .fold(0f32, f32::max)
        };
        let (off, moved) = (furthest(&ours), furthest(&tensors[&name].1));
        assert!(
            off <= 0.01 * moved,
            "{name} is off by {off}, having moved by {moved}"
        );
    }
}
