//! Duo's objective against the papers' own code, and its noise.

use crate::fixtures::Case;
use candle_core::{Device, Tensor};
use choir::model::{TrainBatch, Trainable};
use choir::ops::uniform_nelbo::uniform_nelbo_slow;
use choir::ops::{Divergence, UniformTerm, uniform_nelbo};
use choir::rng::{Key, Stream};
use choir::sampler::schedule::LogLinear;
use choir::train::data::Contexts;
use choir::train::noisy::{Loss, Noisy};
use choir::train::objective::{Corruption, Objective};
use choir::train::optimizer::{AdamW, Optimizer};
use choir::train::validation;

fn terms(case: &Case) -> Vec<UniformTerm> {
    let ((shape, x0), xt) = (case.ids("nll.x0"), case.ids("nll.xt").1);
    let (alpha, rate) = (
        case.doubles("nll.alpha_t").1,
        case.doubles("nll.dalpha_t").1,
    );
    let term = |(row, (x0, xt)): (usize, (u32, u32))| UniformTerm {
        x0,
        xt,
        move_chance: 1.0 - alpha[row / shape[1]],
        rate: rate[row / shape[1]],
    };
    x0.into_iter().zip(xt).enumerate().map(term).collect()
}

#[test]
fn the_closed_form_is_the_references() {
    let case = Case::load("duo-tiny");
    let terms = terms(&case);
    let (shape, answers) = case.doubles("nll.log_x_theta");
    let vocab = shape[2];
    let expected = case.doubles("nll.per_token_f64").1;
    let answers = Tensor::from_vec(answers, (terms.len(), vocab), &Device::Cpu).expect("answers");
    let exact: Vec<f64> = uniform_nelbo_slow(&answers, vocab, &terms)
        .and_then(|losses| Ok(losses.to_vec1()?))
        .expect("slow");
    let single = answers.to_dtype(candle_core::DType::F32).expect("f32");
    let fused = uniform_nelbo(&single, vocab, &terms).expect("fused");
    for ((exact, fused), expected) in exact.iter().zip(fused).zip(expected) {
        assert!(
            (exact - expected).abs() < 1e-6 * (1.0 + expected.abs()),
            "{exact}, not {expected}"
        );
        assert!(
            (f64::from(fused) - expected).abs() < 1e-5 * (1.0 + expected.abs()),
            "{fused}, not {expected}"
        );
    }
}

fn term(xt: u32, x0: u32, t: f64) -> UniformTerm {
    let (move_chance, rate) = (
        LogLinear::UNIFORM.move_chance(t),
        LogLinear::UNIFORM.alpha_rate(),
    );
    UniformTerm {
        x0,
        xt,
        move_chance,
        rate,
    }
}

#[test]
fn nothing_is_left_to_pay_where_the_prediction_is_right() {
    let mut sure = vec![-200.0; 11];
    sure[3] = 200.0;
    for present in [3, 5] {
        for t in [0.3, 1e-9] {
            assert!(
                term(present, 3, t).nelbo(&sure).abs() < 1e-6,
                "{present} at {t}"
            );
            assert!(term(present, 4, t).nelbo(&sure) > 1.0, "{present} at {t}");
        }
        // Less noise than a rounding of alpha.
        assert!(
            term(present, 3, 1e-20).nelbo(&sure).is_finite(),
            "{present}"
        );
    }
}

/// What a network should say of a token from all the others is, of one token alone, the law of the data: the bound is the
/// data's entropy then, less the little that the prior knows.
#[test]
fn the_bound_is_tight_where_the_prediction_is_exact() {
    const TIMES: usize = 4000;
    let data = [0.5, 0.3, 0.15, 0.04, 0.01f64];
    let (vocab, logits) = (data.len() as f64, data.map(|p| p.ln() as f32));
    let mut bound = 0.0;
    for index in 0..TIMES {
        let t = (index as f64 + 0.5) / TIMES as f64;
        let alpha = LogLinear::UNIFORM.alpha(t);
        let noised = |clean: usize, present: usize| {
            f64::from(u8::from(clean == present)) * alpha + (1.0 - alpha) / vocab
        };
        for present in 0..data.len() {
            for (clean, mass) in data.iter().enumerate() {
                let weight = mass * noised(clean, present) / TIMES as f64;
                bound += weight * term(present as u32, clean as u32, t).nelbo(&logits);
            }
        }
    }
    let entropy: f64 = data.iter().map(|p| -p * p.ln()).sum();
    assert!((bound - entropy).abs() < 2e-3, "{bound} for {entropy}");
}

#[test]
fn the_loss_of_the_network_is_the_references() {
    let case = Case::load("duo-tiny");
    let model = Trainable::from_tensors(case.config.clone(), &case.weights).expect("weights");
    let (shape, x0) = case.ids("nll.x0");
    let noisy = Noisy {
        input: TrainBatch {
            batch: shape[0],
            length: shape[1],
            block: None,
            xt: case.ids("nll.xt").1,
            x0: None,
            sigma: case.floats("nll.sigma").1,
            soft: None,
            rows: (0..x0.len() as u32).collect(),
        },
        weights: vec![1.0; x0.len()],
        tokens: x0.len() as f64,
        targets: x0,
        loss: Loss::Uniform {
            tokens: case.config.tokens(),
        },
        teacher: None,
    };
    let losses = noisy.losses(&model).expect("losses");
    for (ours, theirs) in losses.iter().zip(case.floats("nll.full").1) {
        let off = (ours - theirs).abs();
        assert!(off < 1e-3 * (1.0 + theirs.abs()), "{ours}, not {theirs}");
    }
    let (mean, theirs) = (noisy.per_token(&losses), case.doubles("nll.loss").1[0]);
    let off = (mean - theirs).abs();
    assert!(off < 1e-4 * (1.0 + theirs.abs()), "{mean}, not {theirs}");
}

#[test]
fn noise_comes_as_often_as_alpha_says_and_leaves_prompts_alone() {
    let (units, unit, tokens) = (40, 500, 20);
    let objective = Objective {
        block: Some(unit),
        corruption: Corruption::Uniform(tokens),
        clip: (1e-3, 1.0),
    };
    let contexts = Contexts {
        count: 4,
        length: units / 4 * unit,
        tokens: (0..(units * unit) as u32).map(|i| i % 17).collect(),
        importance: (0..units * unit)
            .map(|i| (i % 5 != 0) as u32 as f32)
            .collect(),
    };
    let noisy = objective.corrupt(&contexts, &mut Stream::new(Key::derive(&[b"noise"])));
    assert_eq!(noisy.input.rows.len(), units * unit * 4 / 5);
    let mut counts = vec![0f64; tokens];
    let weight = noisy.weights.iter().map(|&w| f64::from(w)).sum::<f64>() / noisy.tokens;
    assert!((weight - 1.0).abs() < 0.04, "the mean weight is {weight}");
    for (at, sigma) in noisy.input.sigma.iter().enumerate() {
        let alpha = f64::from(-sigma).exp();
        let t = (1.0 - alpha) / LogLinear::UNIFORM.move_chance(1.0);
        let (least, share) = (1e-3f64.sqrt(), (at as f64 + 0.5) / units as f64);
        let stray = t.sqrt() - least - share * (1.0 - least);
        assert!(stray.abs() < 0.51 / units as f64, "unit {at} at {t}");
        let span = at * unit..(at + 1) * unit;
        let changed = span
            .clone()
            .filter(|&i| noisy.input.xt[i] != contexts.tokens[i]);
        let expected = 400.0 * (1.0 - alpha) * (1.0 - 1.0 / tokens as f64);
        let deviation = changed.clone().count() as f64 - expected;
        assert!(
            deviation.abs() < 4.5 * (expected * alpha).sqrt() + 8.0,
            "{deviation} of {expected}"
        );
        changed.for_each(|i| counts[noisy.input.xt[i] as usize] += 1.0);
        assert!(
            span.step_by(5)
                .all(|i| noisy.input.xt[i] == contexts.tokens[i]),
            "a prompt changed"
        );
    }
    let mean = counts.iter().sum::<f64>() / tokens as f64;
    assert!(
        counts.iter().all(|count| (count - mean).abs() < 0.2 * mean),
        "{counts:?}"
    );
}

/// A block size, the largest up to 8 that a sequence is whole blocks of.
fn part(length: usize) -> usize {
    let whole = (1..=8).filter(|block| length.is_multiple_of(*block));
    whole.max().expect("blocks of one")
}

/// The NELBO of a network that knows nothing is ln V: its prediction is uniform whatever it reads.
#[test]
fn knowing_nothing_costs_the_logarithm_of_the_vocabulary() {
    let case = Case::load("duo-tiny");
    let mut weights = case.weights.clone();
    for name in ["output_layer.linear.weight", "output_layer.linear.bias"] {
        weights.get_mut(name).expect("head").1.fill(0.0);
    }
    let (shape, x0) = case.ids("nll.x0");
    let mut contexts = Contexts::new(shape[1]);
    for _ in 0..8192_usize.div_ceil(x0.len()) {
        contexts.count += shape[0];
        contexts.tokens.extend(&x0);
        contexts.importance.extend(vec![1.0; x0.len()]);
    }
    for block in [None, Some(part(shape[1]))] {
        let config = case.config.uniform(block);
        let objective = Objective::new(&config, (1e-3, 1.0)).expect("objective");
        let model = Trainable::from_tensors(config, &weights).expect("weights");
        let nelbo = validation::nelbo(&model, &objective, &contexts, 4, 1).expect("nelbo");
        assert!(
            (nelbo - (case.config.tokens() as f64).ln()).abs() < 0.15,
            "{nelbo}"
        );
    }
}

#[test]
fn a_distillation_step_brings_the_student_to_its_teacher() {
    let case = Case::load("duo-tiny");
    let ((shape, x0), tokens) = (case.ids("nll.x0"), case.config.tokens());
    let contexts = Contexts {
        count: shape[0],
        length: shape[1],
        importance: vec![1.0; x0.len()],
        tokens: x0,
    };
    let blocks = Some(part(contexts.length));
    // Steps of a size that a larger network does not overshoot with.
    let size = case.config.hidden_dim * case.config.n_blocks;
    let rate = (0.2 / size as f32).min(1e-3);
    for (block, divergence) in [(None, Divergence::Backward), (blocks, Divergence::Forward)] {
        let config = case.config.uniform(block);
        let objective = Objective::new(&config, (1e-3, 1.0)).expect("objective");
        let teacher = Trainable::from_tensors(config, &case.weights).expect("weights");
        let student = teacher.copy().expect("copy");
        let mut optimizer = Optimizer::new(&student, AdamW::default()).expect("optimizer");
        let mut stream = Stream::new(Key::derive(&[b"distillation"]));
        let noisy = objective.trajectory(&contexts, tokens, 0.25, divergence, &mut stream);
        assert!(noisy.gradients(&student, None).is_err(), "no teacher");
        let mut losses = Vec::new();
        for _ in 0..20 {
            let (loss, gradients) = noisy
                .gradients(&student, Some(&teacher))
                .expect("gradients");
            losses.push(loss);
            optimizer
                .update(&student, &[gradients], rate)
                .expect("update");
        }
        assert!(losses[19] < 0.7 * losses[0], "{losses:?}");
    }
}
