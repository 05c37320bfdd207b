//! A small network and fine-tunes of it.

use crate::eval::subjects::{Subject, Subjects};
use choir::model::{DitConfig, Trainable};
use choir::rng::{Key, Stream};
use choir::superposition::{Delta, NamedTensor, NamedTensors};
use choir::train::data::Contexts;
use choir::train::objective::Objective;
use choir::train::run::{Validation, open_gates};

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
        let data = var
            .flatten_all()
            .and_then(|flat| flat.to_vec1())
            .expect("values");
        (name.clone(), NamedTensor { shape, data })
    };
    NamedTensors(model.vars().iter().map(tensor).collect())
}

/// Texts that count up in steps of `stride`.
pub fn contexts(stride: u32) -> Contexts {
    let mut contexts = Contexts::new(16);
    for start in 0..8 {
        contexts.count += 1;
        contexts
            .tokens
            .extend((0..16).map(|i| (start + stride * i) % 19));
        contexts
            .importance
            .extend((0..16).map(|i| if i == 0 { 0.0 } else { 1.0 }));
    }
    contexts
}

/// The base after a few steps of plain gradient descent on texts of this stride.
fn fine_tuned(config: &DitConfig, stride: u32, steps: usize) -> NamedTensors {
    let model = random(config);
    let objective = Objective::new(config, (0.1, 1.0)).expect("objective");
    let mut stream = Stream::new(Key::derive(&[b"eval test", &stride.to_le_bytes()]));
    for _ in 0..steps {
        let noisy = objective.corrupt(&contexts(stride), &mut stream);
        let (_, gradients) = noisy.gradients(&model, None).expect("gradients");
        for (name, gradient) in gradients {
            let var = &model.vars()[&name];
            let next = (var.as_tensor() - (gradient * 0.3).expect("step")).expect("next");
            var.set(&next).expect("set");
        }
    }
    named(&model)
}

fn random(config: &DitConfig) -> Trainable {
    let model = Trainable::random(config.clone(), 5).expect("model");
    open_gates(&model).expect("gates");
    model
}

pub fn subjects(strides: &[u32]) -> Subjects {
    let variants: Vec<_> = strides
        .iter()
        .map(|&stride| (stride, config(), 60))
        .collect();
    tuned(&variants)
}

/// Fine-tunes on texts of a stride, for what a configuration says, by some steps.
pub fn tuned(variants: &[(u32, DitConfig, usize)]) -> Subjects {
    let (own, base) = (config(), named(&random(&config())));
    let variant = |(stride, config, steps): &(u32, DitConfig, usize)| {
        let delta = Delta::between(&base, &fine_tuned(config, *stride, *steps)).expect("delta");
        Subject {
            name: format!("stride-{stride}"),
            seed: delta.digest().seed(),
            delta,
            text: None,
            test: Validation {
                contexts: contexts(*stride),
                bytes: 0,
                draws: 2,
                exact: *stride == 1 && *config == own,
            },
            config: config.clone(),
        }
    };
    let variants = variants.iter().map(variant).collect();
    Subjects {
        config: own,
        base,
        variants,
    }
}
