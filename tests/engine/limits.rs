//! The queue, cancellation, deadlines, failures, and what is refused at the door.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use choir::engine::{Engine, EngineConfig, EngineHandle, Error, Event, Request, Sampling};
use choir::model::kv_cache::KvCache;
use choir::model::{Batch, Denoiser, Logits, NetworkFacts, PageLayout, StepOutcome};
use choir::sampler::AbsorbingPredictor;

use super::fake::*;
use super::requests::*;

#[test]
fn a_thousand_at_once_are_served_or_told_that_the_queue_is_full() {
    let (network, gate) = Fake::new(1).gated();
    let engine = start(config(), network);
    let accepted = Mutex::new(Vec::new());
    let refused = Mutex::new(0);
    std::thread::scope(|scope| {
        for thread in 0..20 {
            let (engine, accepted, refused) = (&engine, &accepted, &refused);
            scope.spawn(move || {
                for index in 0..50 {
                    match engine.submit(request("hello", 8, thread * 50 + index)) {
                        Ok(stream) => accepted.lock().expect("lock").push(stream),
                        Err(Error::QueueFull {
                            waiting,
                            limit,
                            retry_after,
                        }) => {
                            assert!(
                                waiting >= limit && limit == 64 && retry_after > Duration::ZERO
                            );
                            *refused.lock().expect("lock") += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let (accepted, refused) = (
        accepted.into_inner().expect("lock"),
        refused.into_inner().expect("lock"),
    );
    assert_eq!(accepted.len() + refused, 1000);
    // The first step is held at the gate; who waits then fills the queue.
    assert!((64..=80).contains(&accepted.len()), "{}", accepted.len());
    drop(gate);
    for stream in accepted {
        assert_eq!(outcome(&events(stream)).1.len(), 8);
    }
}

#[test]
fn rows_of_a_client_that_left_are_gone_before_the_next_step() {
    let (network, gate) = Fake::new(2).gated();
    let engine = start(config(), network);
    let first = engine.submit(request("stays", 12, 1)).expect("submit");
    assert_eq!(gate.wait(), 1);
    let second = engine.submit(request("leaves", 12, 2)).expect("submit");
    gate.pass();
    assert_eq!(gate.wait(), 2);
    drop(second);
    gate.pass();
    assert_eq!(gate.wait(), 1, "the step after the client left");
    let status = engine.status();
    assert_eq!((status.running, status.cancelled), (1, 1));
    drop(gate);
    assert_eq!(outcome(&events(first)).1.len(), 12);
    drain(&engine);
    assert_eq!(engine.status().pages_used, 0);
}

#[test]
fn leaving_in_the_middle_of_the_stream_does_not_disturb_the_others() {
    let engine = start(config(), Fake::new(3));
    let expected = run(&engine, request("others", 60, 5)).1;
    let mut leaving = engine.submit(request("leaving", 200, 4)).expect("submit");
    let other = engine.submit(request("others", 60, 5)).expect("submit");
    while !matches!(leaving.blocking_recv(), Some(Event::Block { .. })) {}
    drop(leaving);
    assert_eq!(outcome(&events(other)).1, expected);
    drain(&engine);
    assert_eq!(engine.status().pages_used, 0);
}

#[test]
fn clients_that_left_make_room_in_the_queue() {
    let (network, gate) = Fake::new(4).gated();
    let engine = start(
        EngineConfig {
            max_running: 1,
            queue: 2,
            ..config()
        },
        network,
    );
    let running = engine.submit(request("runs", 4, 1)).expect("submit");
    gate.wait();
    let waiting = [2, 3].map(|seed| engine.submit(request("waits", 4, seed)).expect("submit"));
    assert!(matches!(
        engine.submit(request("full", 4, 4)),
        Err(Error::QueueFull { .. })
    ));
    let [first, left] = waiting;
    drop(left);
    let late = engine
        .submit(request("late", 4, 5))
        .expect("the place of the one that left");
    drop(gate);
    for stream in [running, first, late] {
        assert_eq!(outcome(&events(stream)).1.len(), 4);
    }
}

#[test]
fn no_work_is_done_after_the_deadline() {
    let (network, gate) = Fake::new(5).gated();
    let engine = start(
        EngineConfig {
            max_running: 1,
            ..config()
        },
        network,
    );
    let past = Request {
        deadline: Some(Instant::now()),
        ..request("past", 4, 1)
    };
    assert!(matches!(
        engine.submit(past),
        Err(Error::DeadlinePassed { .. })
    ));

    let running = engine.submit(request("runs", 4, 2)).expect("submit");
    gate.wait();
    let deadline = Instant::now() + Duration::from_secs(1);
    let soon = Request {
        deadline: Some(deadline),
        ..request("soon", 4, 3)
    };
    let soon = engine.submit(soon).expect("submit");
    while Instant::now() <= deadline {
        std::thread::yield_now();
    }
    drop(gate);
    assert_eq!(outcome(&events(running)).1.len(), 4);
    assert!(
        matches!(
            events(soon)[..],
            [Event::Failed(Error::DeadlinePassed { .. })]
        ),
        "never started"
    );
}

#[test]
fn a_failing_step_fails_its_requests_and_the_engine_goes_on() {
    for broken in [|| Fault::Error, || Fault::Panic, || Fault::Shape] {
        // Whatever has variant b in it fails.
        let network = Fake::new(6).fault(move |batch| {
            let b = |segment: &choir::model::Segment| {
                segment.mix.0.iter().any(|(variant, _)| variant.0 == 1)
            };
            if batch.segments.iter().any(b) {
                broken()
            } else {
                Fault::None
            }
        });
        let engine = start(config(), network);
        let before = run(&engine, request("fine", 20, 1)).1;
        let mixed = Request {
            mix: vec![("b".into(), 1.0)].into(),
            ..request("broken", 20, 1)
        };
        let stream = engine.submit(mixed).expect("submit");
        let id = stream.request_id();
        match events(stream).last() {
            Some(Event::Failed(Error::Device { request_id, detail })) => {
                assert_eq!(*request_id, id);
                assert!(!detail.is_empty());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(run(&engine, request("fine", 20, 1)).1, before);
        drain(&engine);
        assert_eq!((engine.status().failed, engine.status().pages_used), (1, 0));
    }
}

#[test]
fn a_lost_device_fails_all_requests_and_ends_the_engine() {
    let calls = AtomicUsize::new(0);
    let (network, gate) = Fake::new(6)
        .fault(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
            0 => Fault::None,
            _ => Fault::Lost,
        })
        .gated();
    let limits = EngineConfig {
        max_running: 2,
        ..config()
    };
    let engine = start(limits, network);
    let running = engine.submit(request("first", 20, 1)).expect("submit");
    gate.wait();
    // The next step has a second group, of a network that is not to be asked any more, and a request that waits.
    engine.publish(generation(2, Fake::new(6).fault(|_| Fault::Panic)));
    let other = engine.submit(request("second", 20, 2)).expect("submit");
    let waiting = engine.submit(request("third", 20, 3)).expect("submit");
    drop(gate);
    for stream in [running, other, waiting] {
        let id = stream.request_id();
        match events(stream).last() {
            Some(Event::Failed(Error::Device { request_id, detail })) => {
                assert_eq!(*request_id, id);
                assert!(detail.contains("it fell off the bus"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }
    drain(&engine);
    let status = engine.status();
    assert!(
        status
            .lost
            .is_some_and(|detail| detail.contains("it fell off the bus")),
        "the engine says why it ended"
    );
    assert_eq!(
        (status.failed, status.running, status.pages_used),
        (3, 0, 0)
    );
    let refused = engine
        .submit(request("late", 20, 1))
        .map(|_| ())
        .expect_err("refused");
    assert_eq!(refused, Error::Stopped);
}

/// A device that has no room for a cache, or has and loses a token.
struct Poor {
    network: Fake,
    room: bool,
}

impl Denoiser for Poor {
    fn facts(&self) -> &NetworkFacts {
        self.network.facts()
    }

    fn cache(&self, page: PageLayout, pages: usize) -> choir::model::Result<KvCache> {
        if !self.room {
            return Err(choir::model::Error::Memory {
                bytes: 1,
                detail: "no room".into(),
            });
        }
        self.network.cache(page, pages)
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> choir::model::Result<Logits> {
        self.network.forward(batch, cache)
    }

    fn step(&self, batch: &Batch, cache: &mut KvCache) -> choir::model::Result<StepOutcome> {
        let mut outcome = self.network.step(batch, cache)?;
        outcome.drawn.pop();
        Ok(outcome)
    }
}

#[test]
fn a_step_that_draws_too_little_fails_its_requests() {
    let (network, room) = (Fake::new(6), true);
    let engine = start(config(), Poor { network, room });
    let stream = engine.submit(request("broken", 20, 1)).expect("submit");
    match events(stream).last() {
        Some(Event::Failed(Error::Device { detail, .. })) => {
            assert!(detail.contains("drawn instead of 1"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_engine_without_a_cache_does_not_start() {
    let (network, room) = (Fake::new(6), false);
    match Engine::start(config(), generation(1, Poor { network, room })) {
        Err(Error::NotStarted { detail }) => assert!(detail.contains("no room"), "{detail}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("started"),
    }
}

#[test]
fn draining_finishes_what_was_accepted_and_takes_nothing_new() {
    let (network, gate) = Fake::new(7).gated();
    let engine = start(
        EngineConfig {
            max_running: 1,
            ..config()
        },
        network,
    );
    let streams = [1, 2].map(|seed| engine.submit(request("accepted", 9, seed)).expect("submit"));
    gate.wait();
    let drained = {
        let engine = engine.clone();
        std::thread::spawn(move || drain(&engine))
    };
    while !engine.status().draining {
        std::thread::yield_now();
    }
    assert!(matches!(
        engine.submit(request("new", 4, 3)),
        Err(Error::Draining)
    ));
    drop(gate);
    drained.join().expect("drain");
    for stream in streams {
        assert_eq!(outcome(&events(stream)).1.len(), 9);
    }
    assert!(matches!(
        engine.submit(request("new", 4, 3)),
        Err(Error::Stopped)
    ));
}

#[test]
fn when_the_last_handle_goes_streams_still_end() {
    let engine = start(config(), Fake::new(8));
    let stream = engine.submit(request("orphan", 30, 1)).expect("submit");
    drop(engine);
    assert_eq!(outcome(&events(stream)).1.len(), 30);
}

#[test]
fn bad_requests_are_refused_by_the_field_at_fault() {
    let engine = start(config(), Fake::new(9));
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = request("fine", 4, 1);
        change(&mut request);
        engine.submit(request).expect_err("refused")
    };
    let sampling =
        |sampling: Sampling| refused(&move |request| request.sampling = sampling.clone());
    let default = Sampling::default;
    let field = |error: Error| match error {
        Error::BadField { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(refused(&|r| r.prompt.clear())), "prompt");
    assert_eq!(field(refused(&|r| r.prompt[1] = VOCAB as u32)), "prompt");
    assert_eq!(
        field(refused(&|r| r.prompt[1] = VOCAB as u32 - 1)),
        "prompt",
        "the mask"
    );
    assert_eq!(field(refused(&|r| r.max_tokens = 0)), "max_tokens");
    assert_eq!(field(refused(&|r| r.max_tokens = 257)), "max_tokens");
    assert_eq!(field(refused(&|r| r.max_tokens = usize::MAX)), "max_tokens");
    assert_eq!(field(refused(&|r| r.stop = vec![String::new()])), "stop");
    assert_eq!(
        field(refused(&|r| r.stop = vec!["x".repeat(10_000)])),
        "stop"
    );
    assert_eq!(field(refused(&|r| r.stop = vec!["x".into(); 100])), "stop");
    assert_eq!(field(refused(&|r| r.stop_ids = vec![9999])), "stop_ids");
    assert_eq!(
        field(refused(&|r| r.mix = vec![("a".into(), f32::NAN)].into())),
        "mix"
    );
    assert_eq!(
        field(refused(
            &|r| r.mix = vec![("a".into(), 1.0), ("a".into(), 2.0)].into()
        )),
        "mix"
    );
    for temperature in [f32::NAN, -1.0, f32::INFINITY] {
        assert_eq!(
            field(sampling(Sampling {
                temperature,
                ..default()
            })),
            "temperature"
        );
    }
    for nucleus_p in [f32::NAN, 0.0, 1.5] {
        assert_eq!(
            field(sampling(Sampling {
                nucleus_p,
                ..default()
            })),
            "nucleus_p"
        );
    }
    assert_eq!(
        field(sampling(Sampling {
            top_k: Some(0),
            ..default()
        })),
        "top_k"
    );
    assert_eq!(
        field(sampling(Sampling {
            block_size: Some(8),
            ..default()
        })),
        "block_size"
    );
    assert_eq!(
        field(sampling(Sampling {
            predictor: AbsorbingPredictor::Ancestral { steps: 0 }.into(),
            ..default()
        })),
        "steps"
    );
    let threshold = AbsorbingPredictor::Confidence {
        threshold: f32::NAN,
        steps: None,
    };
    assert_eq!(
        field(sampling(Sampling {
            predictor: threshold.into(),
            ..default()
        })),
        "threshold"
    );
    let unknown = refused(&|r| r.mix = vec![("nobody".into(), 1.0)].into());
    assert_eq!(
        unknown,
        Error::UnknownVariant {
            name: "nobody".into()
        }
    );
    assert_eq!(
        refused(&|r| r.prompt = vec![7; 300]),
        Error::PromptTooLong {
            tokens: 300,
            limit: 256
        }
    );
}

#[test]
fn what_could_never_fit_is_refused_and_the_rest_waits_for_pages() {
    let network = Fake::new(10);
    let engine: EngineHandle = start(
        EngineConfig {
            kv_bytes: 6 * network.page_bytes(4.into()),
            ..config()
        },
        network,
    );
    let error = engine
        .submit(request(&"x".repeat(20), 20, 1))
        .expect_err("refused");
    assert_eq!(
        error,
        Error::OutOfPages {
            needed: 9,
            total: 6
        }
    );
    // Four pages each: one at a time.
    let streams: Vec<_> = (0..5)
        .map(|seed| engine.submit(request("x", 16, seed)).expect("submit"))
        .collect();
    for stream in streams {
        assert_eq!(outcome(&events(stream)).1.len(), 16);
    }
}
