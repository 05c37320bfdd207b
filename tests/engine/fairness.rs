//! Shares of variants and of priorities in a running engine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;

use choir::engine::{EngineConfig, EngineHandle, Error, Event, EventStream, Priority, Request};
use choir::model::{Batch, Mix, VariantId};

use super::fake::*;
use super::requests::*;

fn submit(engine: &EngineHandle, requests: impl IntoIterator<Item = Request>) -> Vec<EventStream> {
    let submit = |request| engine.submit(request).expect("submit");
    requests.into_iter().map(submit).collect()
}

fn is_of(batch: &Batch, variant: u32) -> bool {
    batch
        .segments
        .iter()
        .any(|segment| segment.mix == Mix::single(VariantId(variant)))
}

fn passes(gate: &Gate, steps: usize) {
    for _ in 0..steps {
        gate.pass();
        gate.wait();
    }
}

fn evaluated(engine: &EngineHandle, variant: &str) -> f64 {
    engine.status().variants[variant].service.evaluated as f64
}

#[test]
fn a_tenant_that_asks_ten_times_as_much_gets_its_share() {
    for weights in [[1.0, 1.0], [1.0, 3.0]] {
        let (network, gate) = Fake::new(1).gated();
        let limits = EngineConfig {
            max_running: 4,
            queue: 200,
            weights: BTreeMap::from([("a".to_owned(), weights[0]), ("b".to_owned(), weights[1])]),
            unread: 1000,
            ..config()
        };
        let engine = start(limits, network);
        let mut streams = submit(&engine, (0..100).map(|seed| to("a", 12, seed)));
        gate.wait();
        streams.extend(submit(&engine, (0..100).map(|seed| to("b", 12, seed))));
        passes(&gate, 400);
        let status = engine.status();
        assert!(status.variants["a"].waiting > 0 && status.variants["b"].waiting > 0);
        assert_eq!(
            (status.variants["b"].weight, status.variants["base"].waiting),
            (weights[1], 0)
        );
        let ratio = evaluated(&engine, "b") / evaluated(&engine, "a") / weights[1];
        assert!((1.0 / 1.2..1.2).contains(&ratio), "{ratio} for {weights:?}");
        drop(gate);
    }
}

#[test]
fn a_full_queue_has_room_for_a_variant_that_has_less_in_it() {
    let (network, gate) = Fake::new(2).gated();
    let limits = EngineConfig {
        max_running: 1,
        queue: 4,
        ..config()
    };
    let engine = start(limits, network);
    let running = engine.submit(to("a", 4, 0)).expect("submit");
    gate.wait();
    let mut noisy = submit(&engine, (1..5).map(|seed| to("a", 4, seed)));
    assert!(matches!(
        engine.submit(to("a", 4, 5)),
        Err(Error::QueueFull { .. })
    ));
    let quiet = submit(&engine, [to("b", 4, 6), to("b", 4, 7)]);
    assert!(
        matches!(engine.submit(to("b", 4, 8)), Err(Error::QueueFull { .. })),
        "two each"
    );
    for displaced in noisy.drain(2..) {
        assert!(matches!(
            events(displaced)[..],
            [Event::Failed(Error::QueueFull { .. })]
        ));
    }
    // Batch requests leave first.
    let batch = |variant, seed| Request {
        priority: Priority::Batch,
        ..to(variant, 4, seed)
    };
    assert!(matches!(
        engine.submit(batch("c", 9)),
        Err(Error::QueueFull { .. })
    ));
    drop(noisy.pop());
    let batch = engine
        .submit(batch("c", 9))
        .expect("the place of the one that left");
    let third = engine
        .submit(to("b", 4, 10))
        .expect("the place of the batch request");
    assert!(matches!(
        events(batch)[..],
        [Event::Failed(Error::QueueFull { .. })]
    ));
    assert_eq!(engine.status().refused.queue, 6);
    drop(gate);
    for stream in quiet.into_iter().chain(noisy).chain([running, third]) {
        assert_eq!(outcome(&events(stream)).1.len(), 4);
    }
}

#[test]
fn interactive_requests_leave_the_queue_first_and_batch_is_not_starved() {
    let evaluated = Arc::new(Mutex::new(Vec::new()));
    let log = evaluated.clone();
    let (network, gate) = Fake::new(3)
        .fault(move |batch| {
            log.lock().unwrap().push(is_of(batch, 1));
            Fault::None
        })
        .gated();
    let limits = EngineConfig {
        max_running: 1,
        queue: 100,
        ..config()
    };
    let engine = start(limits, network);
    let first = engine.submit(to("a", 4, 0)).expect("submit");
    gate.wait();
    let batch = submit(
        &engine,
        (0..4).map(|seed| Request {
            priority: Priority::Batch,
            ..to("b", 4, seed)
        }),
    );
    let interactive = submit(&engine, (0..40).map(|seed| to("a", 4, seed)));
    drop(gate);
    let nfe = |stream| outcome(&events(stream)).2.nfe as usize;
    let interactive: usize = interactive.into_iter().chain([first]).map(nfe).sum();
    let batch: Vec<usize> = batch.into_iter().map(nfe).collect();
    // One runs at a time: how much of the 41 interactive ones had run before each of the batch.
    let evaluated = evaluated.lock().unwrap();
    let of_batch: Vec<usize> = (0..evaluated.len())
        .filter(|&index| evaluated[index])
        .collect();
    assert_eq!(
        (evaluated.len() - of_batch.len(), of_batch.len()),
        (interactive, batch.iter().sum())
    );
    let before = |index: usize| {
        let begun: usize = batch[..index].iter().sum();
        41.0 * (of_batch[begun] - begun) as f64 / interactive as f64
    };
    let before: Vec<f64> = (0..4).map(before).collect();
    assert!(
        before[1] >= 5.0 && before[2] >= 10.0,
        "interactive ones first: {before:?}"
    );
    assert!(before[3] < 40.0, "but not all of them: {before:?}");
}

#[test]
fn a_lone_request_does_not_wait_for_long_steps() {
    let (network, gate) = Fake::new(4).gated();
    let limits = EngineConfig {
        step_tokens: 256, // all sixteen, at any step
        ..config()
    };
    let engine = start(limits, network);
    let mut streams = submit(&engine, (0..16).map(|seed| to("a", 60, seed)));
    gate.wait();
    passes(&gate, 20);
    gate.pass();
    assert_eq!(gate.wait(), 16);
    let _gone = streams.pop();
    drop(_gone);
    let lone = engine.submit(to("b", 8, 1)).expect("submit");
    gate.pass();
    let beside = gate.wait();
    assert!(
        beside < 16,
        "{beside} rows in a step that somebody waits for"
    );
    drop(gate);
    assert_eq!(outcome(&events(lone)).1.len(), 8);
    for stream in streams {
        assert_eq!(outcome(&events(stream)).1.len(), 60);
    }
}

/// Lets those evaluations through that have one segment; how many they were, and the segments of the next one.
fn short_steps(gate: &Gate) -> (usize, usize) {
    for short in 0.. {
        match gate.wait() {
            1 => gate.pass(),
            segments => return (short, segments),
        }
    }
    unreachable!()
}

#[test]
fn a_lone_request_has_its_first_block_in_short_steps_after_the_one_under_way() {
    let alone = start(config(), Fake::new(6));
    let expected: Vec<_> = (0..4)
        .map(|seed| run(&alone, to("a", 40, seed)).1)
        .collect();
    let (network, gate) = Fake::new(6).gated();
    let engine = start(config(), network);
    let streams = submit(&engine, (0..4).map(|seed| to("a", 40, seed)));
    gate.wait();
    passes(&gate, 10);
    let mut lone = engine.submit(to("b", 8, 9)).expect("submit");
    let another = engine.submit(to("a", 8, 9)).expect("submit");
    gate.pass();
    let (short, next) = short_steps(&gate);
    assert!(short > 0 && next == 6, "{short} short steps, then {next}");
    let first = std::iter::from_fn(|| lone.blocking_recv())
        .find(|event| matches!(event, Event::Block { .. }));
    let Some(Event::Block {
        tokens: mut lone_tokens,
        ..
    }) = first
    else {
        panic!("no block")
    };
    drop(gate);
    lone_tokens.extend(outcome(&events(lone)).1);
    assert_eq!(lone_tokens, run(&alone, to("b", 8, 9)).1);
    assert_eq!(outcome(&events(another)).1, run(&alone, to("a", 8, 9)).1);
    for (stream, expected) in streams.into_iter().zip(expected) {
        assert_eq!(outcome(&events(stream)).1, expected);
    }
}

#[test]
fn first_blocks_one_after_the_other_leave_half_of_the_steps_to_all() {
    let (network, gate) = Fake::new(6).gated();
    let engine = start(config(), network);
    let long = submit(&engine, (0..2).map(|seed| to("a", 200, seed)));
    // A text that nobody reads would pause.
    let read = |stream| thread::spawn(move || outcome(&events(stream)).1.len());
    let long: Vec<_> = long.into_iter().map(read).collect();
    gate.wait();
    let (mut lone, mut short, mut full) = (Vec::new(), 0, 0);
    for seed in 2..300 {
        if engine.status().running == 2 {
            lone.push(engine.submit(to("b", 1, seed)).expect("submit"));
        }
        gate.pass();
        match gate.wait() {
            1 => short += 1,
            _ => full += 1,
        }
    }
    drop(gate);
    assert!(short > 100, "{short} short steps");
    assert!(short <= full + 33, "{short} short steps beside {full}");
    for text in long {
        assert_eq!(text.join().expect("a reader"), 200);
    }
}

#[test]
fn a_quiet_variant_gets_a_place_of_the_one_that_has_all_and_no_text_changes() {
    let alone = start(config(), Fake::new(5));
    let expected: Vec<_> = (0..8)
        .map(|seed| run(&alone, to("a", 40, seed)).1)
        .collect();
    let (network, gate) = Fake::new(5).gated();
    let limits = EngineConfig {
        max_running: 4,
        ..config()
    };
    let engine = start(limits, network);
    let noisy = submit(&engine, (0..8).map(|seed| to("a", 40, seed)));
    gate.wait();
    passes(&gate, 3);
    let lone = engine.submit(to("b", 40, 9)).expect("submit");
    gate.pass();
    assert_eq!(
        short_steps(&gate).1,
        4,
        "who made room is out of the next step already"
    );
    let status = engine.status();
    assert_eq!((status.preempted, status.running), (1, 4));
    assert_eq!(
        (status.variants["b"].running, status.variants["a"].waiting),
        (1, 5)
    );
    // Batch requests make no room, and get none made.
    let batch = Request {
        priority: Priority::Batch,
        ..to("c", 40, 9)
    };
    let batch = engine.submit(batch).expect("submit");
    passes(&gate, 2);
    assert_eq!(engine.status().preempted, 1);
    drop(gate);
    for (stream, expected) in noisy.into_iter().zip(expected) {
        assert_eq!(outcome(&events(stream)).1, expected);
    }
    for (stream, request) in [(lone, to("b", 40, 9)), (batch, to("c", 40, 9))] {
        assert_eq!(outcome(&events(stream)).1, run(&alone, request).1);
    }
}
