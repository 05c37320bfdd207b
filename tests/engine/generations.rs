//! A running sequence keeps the generation that accepted it.

use std::sync::Arc;

use choir::engine::{Error, Event, Request};

use super::fake::*;
use super::requests::*;

fn number(events: &[Event]) -> u64 {
    match events[0] {
        Event::Started { generation, .. } => generation,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn publishing_changes_new_requests_only() {
    let old = run(&start(config(), Fake::new(1)), request("same", 40, 1)).1;
    let new = run(&start(config(), Fake::new(2)), request("same", 40, 1)).1;
    assert_ne!(old, new);

    let (network, gate) = Fake::new(1).gated();
    let engine = start(config(), network);
    let weak = Arc::downgrade(&engine.generation());
    let before = engine.submit(request("same", 40, 1)).expect("submit");
    gate.wait();
    engine.publish(generation(2, Fake::new(2)));
    assert_eq!(engine.status().generation, 2);
    let after = engine.submit(request("same", 40, 1)).expect("submit");
    assert!(weak.upgrade().is_some(), "a sequence leases it");
    gate.pass();
    // Both generations run in the same steps, each in its own evaluation, over one cache.
    gate.wait();
    drop(gate);
    let (before, after) = (events(before), events(after));
    assert_eq!((number(&before), outcome(&before).1), (1, old));
    assert_eq!((number(&after), outcome(&after).1), (2, new));
    drain(&engine);
    assert!(weak.upgrade().is_none(), "the last lease frees it");
}

#[test]
fn a_removed_variant_serves_those_it_had_and_is_unknown_to_the_next() {
    let (network, gate) = Fake::new(3).gated();
    let engine = start(config(), network);
    let of_b = || Request {
        mix: vec![("b".into(), 1.0)].into(),
        ..request("text", 20, 1)
    };
    let stream = engine.submit(of_b()).expect("submit");
    gate.wait();
    let mut without = generation(2, Fake::new(3));
    without.variants.remove("b");
    engine.publish(without);
    assert_eq!(
        engine.submit(of_b()).expect_err("gone"),
        Error::UnknownVariant { name: "b".into() }
    );
    drop(gate);
    assert_eq!(outcome(&events(stream)).1.len(), 20);
}

#[test]
fn publishing_over_and_over_while_streaming_loses_nothing() {
    let engine = start(config(), Fake::new(4));
    let streams: Vec<_> = (0..40)
        .map(|index| {
            engine.publish(generation(2 + index, Fake::new(index % 3)));
            engine.submit(assorted(index as usize)).expect("submit")
        })
        .collect();
    let expected: Vec<_> = (0..3)
        .map(|salt| start(config(), Fake::new(salt)))
        .collect();
    for (index, stream) in streams.into_iter().enumerate() {
        let alone = run(&expected[index % 3], assorted(index)).1;
        assert_eq!(outcome(&events(stream)).1, alone, "request {index}");
    }
}
