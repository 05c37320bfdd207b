//! The network against golden data made with the papers' own code.

mod fixtures;

use candle_core::Device;
use choir::model::{Differentiable, SoftTokens, TrainBatch, Trainable};
use fixtures::{Case, close};

fn trainable(case: &Case) -> Trainable {
    Trainable::from_tensors(case.config.clone(), &case.weights).expect("weights")
}

fn whole(
    case: &Case,
    ids: Vec<u32>,
    batch: usize,
    block: Option<usize>,
    sigma: Vec<f32>,
) -> Vec<f32> {
    let length = ids.len() / batch;
    let rows = (0..(batch * length) as u32).collect();
    let input = TrainBatch {
        batch,
        length,
        block,
        xt: ids,
        x0: None,
        sigma,
        soft: None,
        rows,
    };
    let logits = trainable(case).forward(&input).expect("forward");
    logits.flatten_all().and_then(|l| l.to_vec1()).expect("f32")
}

#[test]
fn whole_sequences_match_the_reference() {
    for folder in ["bd3lm-tiny", "mdlm-tiny"] {
        let case = Case::load(folder);
        for name in case.names("a.", ".input_ids") {
            let (shape, ids) = case.ids(&format!("{name}.input_ids"));
            let ours = whole(
                &case,
                ids,
                shape[0],
                case.config.block(),
                vec![0.0; shape[0]],
            );
            close(
                &ours,
                &case.floats(&format!("{name}.logits")).1,
                2e-4,
                &format!("{folder} {name}"),
            );
        }
    }
}

#[test]
fn time_conditioned_sequences_match_the_reference() {
    let case = Case::load("duo-tiny");
    for name in case.names("a.", ".sigma") {
        let (shape, ids) = case.ids(&format!(
            "{}.input_ids",
            name.rsplit_once('.').expect("a.len.t").0
        ));
        let sigma = case.floats(&format!("{name}.sigma")).1;
        let ours = whole(&case, ids, shape[0], None, sigma);
        close(
            &ours,
            &case.floats(&format!("{name}.logits")).1,
            2e-4,
            &name,
        );
    }
}

#[test]
fn the_training_mask_matches_the_reference() {
    let case = Case::load("bd3lm-tiny");
    let (shape, xt) = case.ids("c.xt");
    let rows = (0..(shape[0] * shape[1]) as u32).collect();
    let input = TrainBatch {
        batch: shape[0],
        length: shape[1],
        block: case.config.block(),
        xt,
        x0: Some(case.ids("c.x0").1),
        sigma: vec![0.0; shape[0]],
        soft: None,
        rows,
    };
    let logits = trainable(&case).forward(&input).expect("forward");
    let ours: Vec<f32> = logits.flatten_all().and_then(|l| l.to_vec1()).expect("f32");
    close(&ours, &case.floats("c.logits").1, 2e-4, "c.logits");
}

/// What is trained on [x_t, x_0] is what is sampled: clean blocks told that there is no noise, then a noisy one.
#[test]
fn a_noisy_block_reads_the_clean_ones_before_it_at_sigma_zero() {
    let mut case = Case::load("duo-tiny");
    case.config = case.config.uniform(Some(4));
    let vocab = case.config.vocab_size as u32;
    let ids = |salt: u32| {
        (0..12)
            .map(|i| (i * 7 + salt) % vocab)
            .collect::<Vec<u32>>()
    };
    let (xt, x0, sigma) = (ids(3), ids(11), vec![0.4, 3.0, 1.2]);
    let run = |xt: Vec<u32>, x0: Option<Vec<u32>>, sigma: Vec<f32>, rows: Vec<u32>| -> Vec<f32> {
        let input = TrainBatch {
            batch: 1,
            length: xt.len(),
            block: Some(4),
            xt,
            soft: None,
            x0,
            sigma,
            rows,
        };
        let logits = trainable(&case).forward(&input).expect("forward");
        logits.flatten_all().and_then(|l| l.to_vec1()).expect("f32")
    };
    let together = run(
        xt.clone(),
        Some(x0.clone()),
        sigma.clone(),
        (0..12).collect(),
    );
    let width = together.len() / 12;
    for block in 0..3 {
        let (start, end) = (4 * block, 4 * block + 4);
        let read = [&x0[..start], &xt[start..end]].concat();
        let levels = [&vec![0.0; block][..], &sigma[block..=block]].concat();
        let alone = run(read, None, levels, (start as u32..end as u32).collect());
        close(&together[width * start..width * end], &alone, 1e-4, "block");
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (folder, block, choices) in [
        ("bd3lm-tiny", None, None),
        ("mdlm-tiny", None, None),
        ("duo-tiny", None, None),
        ("duo-tiny", None, Some(3)),
        ("duo-tiny", Some(3), Some(2)),
    ] {
        let mut case = Case::load(folder);
        if block.is_some() {
            case.config = case.config.uniform(block);
        }
        let doubled = case.config.block().is_some();
        let length = case.config.block().unwrap_or(3) * 2;
        let vocab = case.config.vocab_size as u32;
        let ids = |salt: u32| {
            (0..2 * length as u32)
                .map(|i| (i * 7 + salt) % (vocab - 1))
                .collect::<Vec<_>>()
        };
        let rows: Vec<u32> = (0..2 * length as u32).step_by(2).collect();
        let targets: Vec<u32> = rows.iter().map(|r| (r * 5) % (vocab - 1)).collect();
        let input = TrainBatch {
            batch: 2,
            length,
            block: case.config.block(),
            xt: ids(3),
            x0: doubled.then(|| ids(11)),
            sigma: if block.is_some() {
                vec![0.3, 1.7, 0.9, 2.5]
            } else {
                vec![0.3, 1.7]
            },
            soft: choices.map(|choices| SoftTokens {
                choices,
                tokens: (0..choices).flat_map(|_| ids(5)).collect(),
                weights: (0..choices * 2 * length)
                    .map(|i| (i % 4) as f32 / 3.0)
                    .collect(),
            }),
            rows,
        };
        let model = trainable(&case);
        let weights = vec![1.0; targets.len()];
        let loss = |model: &Trainable| -> f64 {
            let logits = model.forward(&input).expect("forward");
            let nll: Vec<f32> = choir::ops::cross_entropy(&logits, &targets, case.config.mask_id())
                .and_then(|n| Ok(n.to_vec1()?))
                .expect("nll");
            nll.iter().map(|&x| f64::from(x)).sum()
        };
        let (_, gradients) = model
            .gradients(&input, |logits| {
                let gradient = choir::ops::cross_entropy_backward(
                    logits,
                    &targets,
                    case.config.mask_id(),
                    &weights,
                )?;
                Ok(((), gradient))
            })
            .expect("gradients");
        for (name, var) in model.vars() {
            let gradient: Vec<f32> = gradients[name]
                .flatten_all()
                .and_then(|g| g.to_vec1())
                .expect("gradient");
            let value: Vec<f32> = var.flatten_all().and_then(|g| g.to_vec1()).expect("value");
            // Along the gradient itself: the slope is its squared norm.
            let norm = gradient
                .iter()
                .map(|g| f64::from(*g).powi(2))
                .sum::<f64>()
                .sqrt();
            if norm < 1e-6 {
                continue;
            }
            let step = 2e-2 / norm.max(1.0);
            let mut slope = 0.0;
            for sign in [1.0, -1.0] {
                let moved: Vec<f32> = value
                    .iter()
                    .zip(&gradient)
                    .map(|(v, g)| v + (sign * step * f64::from(*g) / norm) as f32)
                    .collect();
                let tensor = candle_core::Tensor::from_vec(moved, var.shape(), &Device::Cpu)
                    .expect("tensor");
                var.set(&tensor).expect("set");
                slope += sign * loss(&model) / (2.0 * step);
            }
            var.set(
                &candle_core::Tensor::from_vec(value, var.shape(), &Device::Cpu).expect("tensor"),
            )
            .expect("set");
            assert!(
                (slope - norm).abs() <= 0.03 * norm + 2e-3,
                "{folder} {name}: slope {slope}, gradient norm {norm}"
            );
        }
    }
}
