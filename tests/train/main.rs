//! Training: the objectives against the papers' own code, and runs that can be repeated and resumed.

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod uniform;

use candle_core::Device;
use choir::model::DitConfig;
use choir::model::Trainable;
use choir::rng::{Key, Stream};
use choir::train::data::{Contexts, Document, TextSource};
use choir::train::folder::{Folder, Precision, Tensors};
use choir::train::objective::{Corruption, Objective};
use choir::train::optimizer::AdamW;
use choir::train::run::{Budget, Report, Run, Settings, Source, Validation};
use choir::train::{checkpoint, tokenizer, validation};
use fixtures::{Case, close};
use std::path::{Path, PathBuf};

/// The NELBO terms of fixed x_t and t: -log p(x_0) / t at masked positions.
#[test]
fn the_objectives_match_the_reference() {
    for (folder, expected) in [
        ("bd3lm-tiny", "g.loss_per_token"),
        ("mdlm-tiny", "g.loss_per_token.mdlm_loss_scale_False"),
    ] {
        let case = Case::load(folder);
        let model = Trainable::from_tensors(case.config.clone(), &case.weights, &Device::Cpu).expect("weights");
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
        let time = |i: usize| if t_shape[1] == 1 { t[i / shape[1]] } else { t[i] };
        let masked = objective.masked(&contexts, mask, &chosen, |i| 1.0 / time(i), &[]);
        assert_eq!(masked.input.xt, xt);
        let mut ours = vec![0f32; xt.len()];
        let nll = masked.losses(&model).expect("losses");
        for ((&row, nll), weight) in masked.input.rows.iter().zip(nll).zip(&masked.weights) {
            ours[row as usize] = nll * weight;
        }
        close(&ours, &case.floats(expected).1, 1e-3, expected);
    }
}

/// With the number of masked tokens drawn instead of t, the estimate must agree with plain Monte Carlo over t.
#[test]
fn the_two_estimates_of_the_nelbo_agree() {
    let case = Case::load("bd3lm-tiny");
    let model = Trainable::from_tensors(case.config.clone(), &case.weights, &Device::Cpu).expect("weights");
    let objective = Objective::new(&case.config, (1e-3, 1.0)).expect("objective");
    let (shape, x0) = case.ids("g.x0");
    let mut contexts = Contexts::new(shape[1]);
    for _ in 0..16 {
        contexts.count += shape[0];
        contexts.tokens.extend(&x0);
        contexts.importance.extend(vec![1.0; x0.len()]);
    }
    let counted = validation::nelbo(&model, &objective, &contexts, 8, 1).expect("nelbo");
    let mut stream = Stream::new(Key::derive(&[b"two estimates"]));
    let mut sum = 0.0;
    for _ in 0..16 {
        let masked = objective.corrupt(&contexts, &mut stream);
        sum += masked.per_token(&masked.losses(&model).expect("losses"));
    }
    let plain = sum / 16.0;
    assert!((counted - plain).abs() < 0.03 * plain, "{counted} and {plain}");
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
        parts.iter().flat_map(|p| p.weights.clone()).collect::<Vec<_>>(),
        weights
    );
    assert_eq!(parts.iter().map(|p| p.input.rows.len()).sum::<usize>(), rows.len());
    let mut prompts = contexts;
    prompts.importance.iter_mut().step_by(2).for_each(|w| *w = 0.0);
    let masked = objective.corrupt(&prompts, &mut stream);
    assert!(masked.input.rows.iter().all(|row| row % 2 == 1));
}

struct Tiny {
    config: DitConfig,
    tokenizer: String,
    document: Document,
}

impl Tiny {
    fn new() -> Self {
        let words = ["the whale ", "a ship ", "was seen ", "at noon. ", "No one ", "spoke.\n"];
        let mut stream = Stream::new(Key::derive(&[b"tiny text"]));
        let text: String = (0..4000).map(|_| words[stream.below(words.len())]).collect();
        let tokenizer = tokenizer::train(std::slice::from_ref(&text), 300).expect("tokenizer");
        let vocab_size = tokenizer::from_json(&tokenizer).expect("json").get_vocab_size(true) + 1;
        let config = DitConfig {
            model_type: "bd3lm".into(),
            vocab_size,
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
        Self {
            config,
            tokenizer,
            document: Document::new("tiny".into(), text),
        }
    }

    fn run(&self, checkpoint: Option<PathBuf>, resume: bool, report: &mut dyn FnMut(Report)) -> (Tensors, f64) {
        let pieces = tokenizer::from_json(&self.tokenizer).expect("json");
        let documents = std::slice::from_ref(&self.document);
        let held_out = [self.document.held_out.as_str()];
        let (contexts, bytes) = choir::train::data::held_out_contexts(&held_out, &pieces, 16, 8, 8).expect("held out");
        let settings = Settings {
            objective: Objective::new(&self.config, (0.1, 1.0)).expect("objective"),
            budget: Budget::Steps(60),
            batch: 8,
            length: 16,
            rate: 1e-2,
            warm_up: 2,
            optimizer: AdamW::default(),
            base: None,
            seed: 7,
            checkpoint,
            save_every: 0.0,
            report_every: 0.0,
            validate_every: 1.0,
        };
        let model = Trainable::random(self.config.clone(), 3, &Device::Cpu).expect("model");
        let source = Source::Text(TextSource::new(documents, &pieces, 16).expect("text"));
        let validation = Validation {
            contexts,
            bytes,
            draws: 4,
            exact: false,
        };
        let run = Run::new(model, settings, source, Some(validation), resume, report).expect("run");
        let (tensors, score) = run.finish().expect("finish");
        (tensors, score.expect("score").nats_per_token)
    }
}

#[test]
fn a_run_learns_and_one_cut_off_resumes_to_the_same_weights() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().expect("folder");
    let (state, copy) = (folder.path().join(checkpoint::FILE), folder.path().join("copy"));
    let mut losses = Vec::new();
    let (whole, nats) = tiny.run(Some(state.clone()), false, &mut |news| match news {
        Report::Saved { step: 25 } => {
            std::fs::copy(&state, &copy).expect("copy");
        }
        Report::Step { loss, .. } => losses.push(loss),
        _ => {}
    });
    assert!(nats < 0.7 * losses[0], "{nats} after {}", losses[0]);
    let mut first = None;
    let (resumed, again) = tiny.run(Some(copy), true, &mut |news| {
        if let Report::Step { step, .. } = news {
            first.get_or_insert(step);
        }
    });
    assert_eq!(first, Some(26));
    assert_eq!(resumed, whole);
    assert_eq!(again, nats);
    write_and_read(&tiny, whole, folder.path());
}

fn write_and_read(tiny: &Tiny, tensors: Tensors, folder: &Path) {
    let written = Folder {
        config: tiny.config.clone(),
        tensors,
        tokenizer: tiny.tokenizer.clone(),
        clip: (0.1, 1.0),
    };
    written.write(folder, Precision::F32).expect("write");
    let read = Folder::read(folder).expect("read");
    assert_eq!(read.config, written.config);
    assert_eq!(read.tensors, written.tensors);
    assert_eq!(read.tokenizer, written.tokenizer);
    assert!((read.clip.0 - 0.1).abs() < 1e-9);
}
