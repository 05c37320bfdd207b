//! The engine over the real network, with the golden weights and made-up variants.

use std::collections::BTreeMap;
use std::sync::Arc;

use choir::engine::{Engine, EngineConfig, EngineHandle, Request, ScoreRequest};
use choir::model::{BaseWeights, Denoiser, HostNetwork, ServedBank, VariantWeights};
use choir::ops::quantized::Quantisation;
use choir::rng::{Key, Stream};

use super::fake::{config, drain};
use super::fixtures::Case;
use super::requests::{assorted, events, outcome, run};
use super::uniform::{both, mixed};

/// The golden base and six variants in three banks.
fn network(form: Quantisation) -> (Case, HostNetwork) {
    let case = Case::load("bd3lm-tiny");
    let mut noise = Stream::new(Key::derive(&[b"engine test"]));
    let mut bank = || {
        let matrices = case
            .weights
            .iter()
            .filter(|(_, (shape, _))| shape.len() == 2);
        let matrices = matrices.map(|(name, (shape, data))| {
            let sum = data.iter().map(|_| noise.normal() as f32).collect();
            (name.clone(), shape[0], shape[1], sum)
        });
        Arc::new(ServedBank::build(form, matrices).expect("bank"))
    };
    let banks = [bank(), bank(), bank()];
    let variant = |index: usize| {
        let (mut gains, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        for (name, (shape, data)) in &case.weights {
            match shape.len() {
                2 => gains.insert(name.clone(), vec![0.02; shape[0]]),
                _ => vectors.insert(name.clone(), vec![0.01; data.len()]),
            };
        }
        VariantWeights {
            seed: 7 + index as u64,
            scale: 1.0,
            banks: vec![index / 2],
            gains,
            kept: BTreeMap::new(),
            vectors,
        }
    };
    let base = Arc::new(
        BaseWeights::new(
            case.config.architecture().expect("a network"),
            &case.weights,
        )
        .expect("base"),
    );
    let dit = HostNetwork::new(base, &banks, (0..6).map(variant).collect()).expect("network");
    (case, dit)
}

fn engine(threads: usize, step_tokens: usize, form: Quantisation) -> (Case, EngineHandle) {
    let config = EngineConfig {
        threads,
        step_tokens,
        ..config()
    };
    engine_of(config, 170, form)
}

/// With so many pages for its cache.
fn engine_of(config: EngineConfig, pages: usize, form: Quantisation) -> (Case, EngineHandle) {
    let (case, dit) = network(form);
    let config = EngineConfig {
        kv_bytes: pages * dit.page_bytes(config.page()),
        ..config
    };
    (case, Engine::start(config, both(dit)).expect("engine"))
}

/// Prompts within the golden network's vocabulary.
fn requests(case: &Case, request: fn(usize) -> Request) -> Vec<Request> {
    let token = |token: u32| token % case.config.tokens() as u32;
    let fold = |request: Request| Request {
        prompt: request.prompt.into_iter().map(token).collect(),
        after: request
            .after
            .into_iter()
            .map(|fixed| fixed.map(token))
            .collect(),
        ..request
    };
    (0..16).map(request).map(fold).collect()
}

/// Every request alone, then all together in steps of other sizes and on other threads.
fn alone_and_together(form: Quantisation, request: fn(usize) -> Request) {
    let (case, one) = engine(1, 64, form);
    let alone: Vec<_> = requests(&case, request)
        .into_iter()
        .map(|request| run(&one, request).1)
        .collect();
    assert!(
        alone
            .iter()
            .zip(requests(&case, request))
            .any(|(tokens, request)| tokens.len() == request.max_tokens)
    );
    for (threads, step_tokens) in [(1, 512), (2, 64), (2, 512)] {
        let (_, engine) = engine(threads, step_tokens, form);
        let streams: Vec<_> = requests(&case, request)
            .into_iter()
            .map(|r| engine.submit(r).expect("submit"))
            .collect();
        for (index, stream) in streams.into_iter().enumerate() {
            let together = outcome(&events(stream)).1;
            assert_eq!(
                together, alone[index],
                "request {index}, {threads} threads, {step_tokens} tokens a step"
            );
        }
        drain(&engine);
    }
}

#[test]
fn the_same_tokens_alone_in_a_mixed_batch_and_on_any_threads() {
    for form in [Quantisation::F32, Quantisation::Q4_0] {
        alone_and_together(form, assorted);
    }
}

#[test]
fn the_same_tokens_from_pages_that_another_has_written() {
    let with = |prefix_reuse| EngineConfig {
        prefix_reuse,
        ..config()
    };
    let (case, anew) = engine_of(with(false), 2730, Quantisation::F32);
    let (_, again) = engine_of(with(true), 2730, Quantisation::F32);
    for round in 0..2 {
        for (index, request) in requests(&case, mixed).into_iter().enumerate() {
            let expected = run(&anew, request.clone()).1;
            assert_eq!(
                run(&again, request).1,
                expected,
                "round {round}, request {index}"
            );
        }
    }
    assert!(again.status().tokens_reused > 200, "{:?}", again.status());
    assert_eq!(anew.status().tokens_reused, 0);
}

#[test]
fn the_same_tokens_beside_rows_of_the_other_process() {
    alone_and_together(Quantisation::F32, mixed);
}

#[test]
fn a_score_is_near_the_uniform_one_for_random_weights() {
    let (case, engine) = engine(2, 128, Quantisation::F32);
    let tokens: Vec<u32> = (0..70)
        .map(|index| index * 7 % (case.config.vocab_size as u32 - 1))
        .collect();
    for mix in [
        vec![],
        vec![("a".to_owned(), 1.0)],
        vec![("b".to_owned(), 0.5), ("c".to_owned(), 0.5)],
        vec![("blocks".to_owned(), 1.0)],
        vec![("untold".to_owned(), 1.0)],
    ] {
        let request = ScoreRequest {
            mix: mix.into(),
            tokens: tokens.clone(),
            given: 0,
            samples: 8,
            seed: Some(1),
            deadline: None,
            client: None,
        };
        let score = engine
            .score(request)
            .expect("score")
            .blocking_recv()
            .expect("reply")
            .expect("score");
        let uniform = (case.config.tokens() as f64).ln();
        assert!(
            (0.5 * uniform..3.0 * uniform).contains(&score.nats_per_token),
            "{score:?}"
        );
    }
}
