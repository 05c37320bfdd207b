//! A small network and fine-tunes of it.

use crate::cli::eval::subjects::{Subject, Subjects};
use crate::model::{DitConfig, Trainable};
use crate::rng::{Key, Stream};
use crate::superposition::{Delta, NamedTensor, NamedTensors};
use crate::train::data::Contexts;
use crate::train::objective::Objective;
use crate::train::run::{Validation, open_gates};
use candle_core::Device;

pub fn config() -> DitConfig {
    DitConfig {
        model_type: "bd3lm".into(),
        vocab_size: 20,
        model_length: 16,
        hidden_dim: 32,
        cond_dim: 8,
        n_blocks: 2,
        n_heads: 2,
        block_size: Some(8),
        cross_attn: true,
        time_conditioning: Some(false),
        states: None,
    }
}

fn named(model: &Trainable) -> NamedTensors {
    let tensor = |(name, var): (&String, &candle_core::Var)| {
        let shape = var.dims().to_vec();
        let data = var.flatten_all().and_then(|flat| flat.to_vec1()).expect("values");
        (name.clone(), NamedTensor { shape, data })
    };
    NamedTensors(model.vars().iter().map(tensor).collect())
}

/// Texts that count up in steps of `stride`.
fn contexts(stride: u32) -> Contexts {
    let mut contexts = Contexts::new(16);
    for start in 0..8 {
        contexts.count += 1;
        contexts.tokens.extend((0..16).map(|i| (start + stride * i) % 19));
        contexts
            .importance
            .extend((0..16).map(|i| if i == 0 { 0.0 } else { 1.0 }));
    }
    contexts
}

/// The base after a few steps of plain gradient descent on texts of this stride.
fn fine_tuned(stride: u32, objective: &Objective) -> NamedTensors {
    let model = random();
    let mut stream = Stream::new(Key::derive(&[b"eval test", &stride.to_le_bytes()]));
    for _ in 0..60 {
        let noisy = objective.corrupt(&contexts(stride), &mut stream);
        let (_, gradients) = noisy.gradients(&model).expect("gradients");
        for (name, gradient) in gradients {
            let var = &model.vars()[&name];
            let next = (var.as_tensor() - (gradient * 0.3).expect("step")).expect("next");
            var.set(&next).expect("set");
        }
    }
    named(&model)
}

fn random() -> Trainable {
    let model = Trainable::random(config(), 5, &Device::Cpu).expect("model");
    open_gates(&model).expect("gates");
    model
}

pub fn subjects(strides: &[u32]) -> Subjects {
    let (config, base) = (config(), named(&random()));
    let objective = Objective::new(&config, (0.1, 1.0)).expect("objective");
    let variant = |&stride: &u32| {
        let delta = Delta::between(&base, &fine_tuned(stride, &objective)).expect("delta");
        Subject {
            name: format!("stride-{stride}"),
            seed: delta.digest().seed(),
            delta,
            test: Validation {
                contexts: contexts(stride),
                bytes: 0,
                draws: 2,
                exact: stride == 1,
            },
        }
    };
    let variants = strides.iter().map(variant).collect();
    Subjects {
        config,
        objective,
        base,
        variants,
    }
}
