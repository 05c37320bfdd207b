//! Clients that read slowly, or not at all: they hold up themselves and nobody else.

use std::time::Duration;

use choir::engine::{EngineConfig, Error, Event, Request};

use super::fake::*;
use super::requests::*;

fn wanted(seed: u64) -> Request {
    Request {
        steps_wanted: true,
        ..request("slow", 100, seed)
    }
}

#[test]
fn who_does_not_read_is_paused_and_misses_nothing() {
    let engine = start(config(), Fake::new(7));
    let lazy = engine.submit(wanted(3)).expect("submit");
    let prompt = run(&engine, wanted(3));
    let status = until(&engine, |now| now.paused == 1 && now.finished == 1);
    assert_eq!((status.running, status.streams), (1, 1));
    assert!(status.pages_used > 0);
    // It can go on; and the engine, which has nothing else to do, notices.
    assert_eq!(outcome(&events(lazy)).1, prompt.1);
    drain(&engine);
    let status = engine.status();
    assert_eq!(
        (
            status.running,
            status.paused,
            status.pages_used,
            status.streams
        ),
        (0, 0, 0, 0)
    );
}

#[test]
fn the_places_of_those_that_do_not_read_are_others() {
    let limits = EngineConfig {
        max_running: 2,
        ..config()
    };
    let engine = start(limits, Fake::new(8));
    let lazy: Vec<_> = (0..2)
        .map(|seed| engine.submit(wanted(seed)).expect("submit"))
        .collect();
    until(&engine, |now| now.paused == 2);
    assert_eq!(run(&engine, request("quick", 40, 1)).1.len(), 40);
    let more: Vec<_> = (2..4)
        .map(|seed| engine.submit(wanted(seed)).expect("submit"))
        .collect();
    let status = until(&engine, |now| now.paused == 4 && now.finished == 1);
    assert_eq!((status.running, status.waiting), (2, 2));
    assert_eq!(run(&engine, request("quick", 40, 2)).1.len(), 40);
    drop(lazy);
    for stream in more.into_iter().rev() {
        assert_eq!(outcome(&events(stream)).1.len(), 100);
    }
}

#[test]
fn who_does_not_read_for_too_long_is_given_up() {
    let limits = EngineConfig {
        stall: Duration::from_millis(1),
        ..config()
    };
    let engine = start(limits, Fake::new(9));
    let lazy = engine.submit(wanted(3)).expect("submit");
    // Nothing else happens that would wake the engine.
    let status = until(&engine, |now| now.stalled == 1);
    assert_eq!(
        (status.running, status.pages_used, status.failed),
        (0, 0, 0)
    );
    let events = events(lazy);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Step { .. })),
        "what was sent is there"
    );
    assert!(
        matches!(events.last(), Some(Event::Failed(Error::Stalled { .. }))),
        "{:?}",
        events.last()
    );
}

#[test]
fn a_deadline_passes_while_nobody_reads() {
    let engine = start(config(), Fake::new(10));
    let soon = Request {
        deadline: Some(std::time::Instant::now() + Duration::from_millis(200)),
        ..wanted(3)
    };
    let lazy = engine.submit(soon).expect("submit");
    let status = until(&engine, |now| now.late == 1);
    assert_eq!(
        (status.running, status.pages_used, status.cancelled),
        (0, 0, 0)
    );
    assert!(matches!(
        events(lazy).last(),
        Some(Event::Failed(Error::DeadlinePassed { .. }))
    ));
}

#[test]
fn leaving_while_paused_is_noticed() {
    let engine = start(config(), Fake::new(11));
    let lazy = engine.submit(wanted(3)).expect("submit");
    until(&engine, |now| now.paused == 1);
    drop(lazy);
    let status = until(&engine, |now| now.cancelled == 1);
    assert_eq!(
        (status.running, status.pages_used, status.streams),
        (0, 0, 0)
    );
}

#[test]
fn a_drain_waits_for_slow_readers() {
    let engine = start(config(), Fake::new(12));
    let lazy = engine.submit(wanted(3)).expect("submit");
    until(&engine, |now| now.paused == 1);
    let drained = {
        let engine = engine.clone();
        std::thread::spawn(move || drain(&engine))
    };
    until(&engine, |now| now.draining);
    assert_eq!(outcome(&events(lazy)).1.len(), 100);
    drained.join().expect("drain");
}
