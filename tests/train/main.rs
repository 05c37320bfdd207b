//! Training: the objectives against the papers' own code, and runs that can be repeated and resumed.

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod calibrate;
mod latents;
mod operator;
mod tiny;
mod uniform;

use choir::model::Trainable;
use choir::rng::{Key, Stream};
use choir::train::data::Contexts;
use choir::train::objective::{Corruption, Objective};
use choir::train::validation;
use fixtures::{Case, close};

/// The NELBO terms of fixed x_t and t: -log p(x_0) / t at masked positions.
#[test]
fn the_objectives_match_the_reference() {
    for (folder, expected) in [
        ("bd3lm-tiny", "g.loss_per_token"),
        ("mdlm-tiny", "g.loss_per_token.mdlm_loss_scale_False"),
    ] {
        let case = Case::load(folder);
        let model = Trainable::from_tensors(case.config.clone(), &case.weights).expect("weights");
        let objective = Objective::new(&case.config, (1e-3, 1.0)).expect("objective");
        let (shape, x0) = case.ids("g.x0");
        let (xt, (t_shape, t)) = (case.ids("g.xt").1, case.floats("g.t"));
        let contexts = Contexts {
            count: shape[0],
            length: shape[1],
            importance: vec![1.0; x0.len()],
            tokens: x0,
        };
        let mask = case.config.mask_id().expect("mask");
        let chosen: Vec<bool> = xt.iter().map(|&token| token == mask).collect();
        let time = |i: usize| {
            if t_shape[1] == 1 {
                t[i / shape[1]]
            } else {
                t[i]
            }
        };
        let masked = objective.masked(&contexts, mask, &chosen, |i| 1.0 / time(i), &[]);
        assert_eq!(masked.input.xt, xt);
        let mut ours = vec![0f32; xt.len()];
        let nll = masked.losses(&model).expect("losses");
        for ((&row, nll), weight) in masked.input.rows.iter().zip(nll).zip(&masked.weights) {
            ours[row as usize] = nll * weight;
        }
        // The logits agree within 2e-4; what they are weighed by has no bound.
        let (_, mut theirs) = case.floats(expected);
        (0..theirs.len()).for_each(|i| {
            ours[i] *= time(i);
            theirs[i] *= time(i);
        });
        close(&ours, &theirs, 5e-4, expected);
    }
}

/// With the number of masked tokens drawn instead of t, the estimate must agree with plain Monte Carlo over t.
#[test]
fn the_two_estimates_of_the_nelbo_agree() {
    let case = Case::load("bd3lm-tiny");
    let model = Trainable::from_tensors(case.config.clone(), &case.weights).expect("weights");
    let objective = Objective::new(&case.config, (1e-3, 1.0)).expect("objective");
    let (shape, x0) = case.ids("g.x0");
    let mut contexts = Contexts::new(shape[1]);
    for _ in 0..1024_usize.div_ceil(x0.len()) {
        contexts.count += shape[0];
        contexts.tokens.extend(&x0);
        contexts.importance.extend(vec![1.0; x0.len()]);
    }
    // The mean of several estimates, and its variance.
    let of = |estimates: Vec<f64>| {
        let count = estimates.len() as f64;
        let mean = estimates.iter().sum::<f64>() / count;
        let squares = estimates.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        (mean, squares / (count - 1.0) / count)
    };
    let counted = |seed| validation::nelbo(&model, &objective, &contexts, 1, seed).expect("nelbo");
    let mut stream = Stream::new(Key::derive(&[b"two estimates"]));
    let plain = |_| {
        let masked = objective.corrupt(&contexts, &mut stream);
        masked.per_token(&masked.losses(&model).expect("losses"))
    };
    let (counted, plain) = (
        of((0..16).map(counted).collect()),
        of((0..32).map(plain).collect()),
    );
    let noise = (counted.1 + plain.1).sqrt();
    assert!(noise < 0.03 * plain.0, "{counted:?} and {plain:?}");
    assert!(
        (counted.0 - plain.0).abs() < 5.0 * noise,
        "{counted:?} and {plain:?}"
    );
}

#[test]
fn masking_keeps_to_the_clipped_range_and_to_what_may_be_masked() {
    let objective = Objective {
        block: Some(8),
        corruption: Corruption::Mask(99),
        clip: (0.3, 0.8),
    };
    let contexts = Contexts {
        count: 16,
        length: 32,
        tokens: (0..512).map(|i| i % 90).collect(),
        importance: vec![1.0; 512],
    };
    let mut stream = Stream::new(Key::derive(&[b"masking"]));
    let masked = objective.corrupt(&contexts, &mut stream);
    for block in masked.input.xt.chunks(8) {
        let share = block.iter().filter(|&&t| t == 99).count() as f64 / 8.0;
        assert!((0.3..=0.8).contains(&share), "{share}");
    }
    let (weights, rows) = (masked.weights.clone(), masked.input.rows.clone());
    let parts = masked.split(3);
    assert_eq!(
        parts
            .iter()
            .flat_map(|p| p.weights.clone())
            .collect::<Vec<_>>(),
        weights
    );
    assert_eq!(
        parts.iter().map(|p| p.input.rows.len()).sum::<usize>(),
        rows.len()
    );
    let mut prompts = contexts;
    prompts
        .importance
        .iter_mut()
        .step_by(2)
        .for_each(|w| *w = 0.0);
    let masked = objective.corrupt(&prompts, &mut stream);
    assert!(masked.input.rows.iter().all(|row| row % 2 == 1));
}
