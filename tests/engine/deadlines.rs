//! What is refused, and what is given up, since it would not be finished in time.

use std::time::{Duration, Instant};

use choir::engine::{EngineConfig, Error, Event, Request};
use choir::model::kv_cache::KvCache;
use choir::model::{Batch, Denoiser, Logits, NetworkFacts};

use super::fake::*;
use super::requests::*;

/// A network that takes two milliseconds for an evaluation, at least.
struct Slow(Fake);

impl Denoiser for Slow {
    fn facts(&self) -> &NetworkFacts {
        self.0.facts()
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> choir::model::Result<Logits> {
        let begun = Instant::now();
        let logits = self.0.forward(batch, cache);
        while begun.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        logits
    }
}

fn within(seconds: u64, request: Request) -> Request {
    Request {
        deadline: Some(Instant::now() + Duration::from_secs(seconds)),
        ..request
    }
}

#[test]
fn what_cannot_be_finished_is_not_begun_or_not_gone_on_with() {
    let limits = EngineConfig {
        max_tokens: 16_384,
        unread: 1000,
        ..config()
    };
    let engine = start(limits, Slow(Fake::new(1)));
    // Nothing is known yet, so it is accepted: 32 seconds of work at best.
    let long = || within(10, request("long", 16_000, 1));
    let begun = Instant::now();
    let early = engine.submit(long()).expect("accepted");
    let events_of_early = events(early);
    match events_of_early.last() {
        Some(Event::Failed(Error::DeadlineOutOfReach { needed, left })) => assert!(needed > left),
        other => panic!("{other:?}"),
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it did not wait for the deadline"
    );
    assert!(
        events_of_early
            .iter()
            .any(|event| matches!(event, Event::Block { .. })),
        "it had begun"
    );
    until(&engine, |now| now.late == 1);
    // With nothing ahead it is let in, whatever is expected of it, and given up as soon as it cannot be finished.
    let alone = events(engine.submit(long()).expect("accepted"));
    assert!(
        matches!(
            alone.last(),
            Some(Event::Failed(Error::DeadlineOutOfReach { .. }))
        ),
        "{:?}",
        alone.last()
    );
    let beside = engine
        .submit(request("beside", 16_000, 2))
        .expect("accepted");
    until(&engine, |now| now.late == 2 && now.running == 1);
    match engine.submit(long()).expect_err("refused") {
        Error::Overloaded {
            needed,
            left,
            retry_after,
        } => assert!(
            needed >= Duration::from_secs(32)
                && left <= Duration::from_secs(10)
                && retry_after > Duration::ZERO
        ),
        other => panic!("{other}"),
    }
    // What may end early, by what the client says, may be in time.
    let stops = Request {
        stop: vec!["never".into()],
        ..long()
    };
    drop(engine.submit(stops).expect("accepted"));
    assert_eq!(run(&engine, within(10, request("short", 8, 1))).1.len(), 8);
    drop(beside);
    let status = engine.status();
    assert_eq!(
        (status.late, status.refused.deadline, status.failed),
        (2, 1, 0)
    );
}
