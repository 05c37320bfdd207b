//! Variants that carry much work get weights of their own while the engine runs.

use std::sync::Arc;

use choir::engine::{EngineConfig, EngineHandle, Error, Request};

use super::fake::*;
use super::requests::*;

fn materialising(bytes: usize) -> EngineConfig {
    EngineConfig {
        materialise_bytes: bytes,
        ..config()
    }
}

fn of(variant: &str, seed: u64) -> Request {
    Request {
        mix: vec![(variant.into(), 1.0)].into(),
        ..request("text", 40, seed)
    }
}

/// Sends requests until an instance was made, and holds each against what `expected` gives for it.
fn until_made(engine: &EngineHandle, expected: &EngineHandle, variant: &str) {
    for seed in 0.. {
        if engine.status().materialised_bytes > 0 {
            break;
        }
        assert_eq!(
            run(engine, of(variant, seed)).1,
            run(expected, of(variant, seed)).1
        );
    }
}

#[test]
fn a_hot_variant_is_made_and_gives_the_same_texts_before_and_after() {
    let engine = start(materialising(2 * SIZE), Fake::new(5).toiling());
    let expected = start(config(), Fake::new(5));
    until_made(&engine, &expected, "b");
    // Alone, beside the base and another variant, and in mixes.
    let streams: Vec<_> = (0..20)
        .map(|index| match index % 2 {
            0 => of("b", index),
            _ => assorted(index as usize),
        })
        .map(|request| (request.clone(), engine.submit(request).expect("submit")))
        .collect();
    for (request, stream) in streams {
        assert_eq!(outcome(&events(stream)).1, run(&expected, request).1);
    }
    assert!(engine.status().materialised_bytes <= 2 * SIZE as u64);
    assert_eq!(
        expected.status().materialised_bytes,
        0,
        "nothing is made unasked"
    );
}

#[test]
fn the_next_generation_frees_what_was_made_of_the_last() {
    let engine = start(materialising(SIZE), Fake::new(6).toiling());
    let expected = start(config(), Fake::new(6));
    until_made(&engine, &expected, "a");
    let weak = Arc::downgrade(&engine.generation());
    engine.publish(generation(2, Fake::new(7).toiling()));
    run(&engine, request("of the base", 4, 1)); // after which what ran before is gone
    assert!(weak.upgrade().is_none(), "what was made leases nothing");
    assert_eq!(engine.status().materialised_bytes, 0);
    // And the next one has its own made, of its own weights.
    until_made(&engine, &start(config(), Fake::new(7)), "a");
}

#[test]
fn room_for_less_than_one_instance_is_refused() {
    let error = choir::engine::Engine::start(materialising(SIZE - 1), generation(1, Fake::new(8)))
        .map(drop);
    let refused = error.expect_err("too little");
    assert!(
        matches!(
            &refused,
            Error::BadField {
                field: "materialise_bytes",
                ..
            }
        ),
        "{refused}"
    );
    assert!(refused.to_string().contains("1000 bytes"), "{refused}");
}
