//! How many requests a variant and a client may have under way, and settings that leave nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use choir::engine::{
    Capped, Engine, EngineConfig, EngineHandle, Error, LONG_TEXT, RefusalCounts, Request,
    ScoreRequest,
};

use super::fake::*;
use super::requests::*;

#[test]
fn no_more_of_a_variant_and_of_a_client_than_may() {
    let (network, gate) = Fake::new(1).gated();
    let limits = EngineConfig {
        max_running: 1,
        max_per_variant: Some(2),
        max_per_client: Some(3),
        ..config()
    };
    let engine = start(limits, network);
    let of = |client: &str, variant| Request {
        client: Some(client.into()),
        ..to(variant, 4, 1)
    };
    let mut streams = vec![engine.submit(of("one", "a")).expect("submit")];
    gate.wait(); // one runs, the others wait: both count
    streams.push(engine.submit(of("two", "a")).expect("submit"));
    let refused = |request| match engine.submit(request).expect_err("refused") {
        Error::TooMany {
            capped,
            count,
            limit,
            retry_after,
        } => {
            assert!(count == limit && retry_after > Duration::ZERO);
            (capped, limit)
        }
        other => panic!("{other}"),
    };
    assert_eq!(refused(of("three", "a")), (Capped::Variant("a".into()), 2));
    // A mix counts as its heaviest variant.
    let mix = Request {
        mix: vec![("b".into(), 0.5), ("a".into(), 0.6)].into(),
        ..of("three", "a")
    };
    assert_eq!(refused(mix), (Capped::Variant("a".into()), 2));
    streams.extend(["b", "b"].map(|variant| engine.submit(of("one", variant)).expect("submit")));
    assert_eq!(refused(of("one", "c")), (Capped::Client, 3));
    let score = ScoreRequest {
        mix: Vec::new().into(),
        tokens: tokens("scores count, too"),
        given: 0,
        samples: 1,
        seed: None,
        deadline: None,
        client: Some("one".into()),
    };
    let error = engine.score(score).map(|_| ()).expect_err("refused");
    assert!(
        matches!(
            &error,
            Error::TooMany {
                capped: Capped::Client,
                ..
            }
        ),
        "{error}"
    );
    streams.push(
        engine
            .submit(to("c", 4, 1))
            .expect("of nobody that is known"),
    );
    let refused = RefusalCounts {
        variant: 2,
        client: 2,
        ..RefusalCounts::default()
    };
    assert_eq!(engine.status().refused, refused);
    drop(gate);
    for stream in streams {
        assert_eq!(outcome(&events(stream)).1.len(), 4);
    }
    run(&engine, of("one", "a"));
}

#[test]
fn settings_that_leave_nothing_are_refused() {
    let field = |change: &dyn Fn(&mut EngineConfig)| {
        let mut config = config();
        change(&mut config);
        match Engine::start(config, generation(1, Fake::new(2))).map(|_| ()) {
            Err(Error::BadField { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field(&|c| c.max_per_variant = Some(0)), "max_per_variant");
    assert_eq!(field(&|c| c.max_per_client = Some(0)), "max_per_client");
    assert_eq!(field(&|c| c.max_running = 0), "max_running");
    assert_eq!(field(&|c| c.queue = 0), "queue");
    assert_eq!(field(&|c| c.step_tokens = 0), "step_tokens");
    assert_eq!(field(&|c| c.kv_bytes = 1), "kv_bytes");
    assert_eq!(field(&|c| c.stall = Duration::ZERO), "stall");
    assert_eq!(field(&|c| c.unread = 3), "unread");
    assert_eq!(field(&|c| c.threads = 1025), "threads");
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1001.0] {
        assert_eq!(
            field(&|c| c.weights = BTreeMap::from([("a".to_owned(), weight)])),
            "weights"
        );
    }
}

#[test]
fn mix_has_so_many_parts_at_most_and_counts_as_its_largest_weight_of_either_sign() {
    let limits = EngineConfig {
        max_parts: 2,
        max_per_variant: Some(1),
        ..config()
    };
    let (network, gate) = Fake::new(1).gated();
    let engine = start(limits, network);
    assert_eq!(engine.status().max_parts, 2);
    let mixed = |parts: &[(&str, f32)]| Request {
        mix: parts
            .iter()
            .map(|&(name, weight)| (name.to_owned(), weight))
            .collect::<Vec<_>>()
            .into(),
        ..request("x", 4, 1)
    };
    let three = mixed(&[("a", 1.0), ("b", 1.0), ("c", 1.0)]);
    match engine.submit(three).expect_err("refused") {
        Error::BadField { field, reason } => {
            assert!(field == "mix" && reason.contains("at most 2"), "{reason}")
        }
        other => panic!("{other}"),
    }
    let held = engine
        .submit(mixed(&[("b", -0.9), ("a", 0.6)]))
        .expect("submit");
    gate.wait();
    let refused = engine.submit(to("b", 4, 1)).expect_err("refused");
    assert!(
        matches!(&refused, Error::TooMany { capped: Capped::Variant(name), .. } if name == "b"),
        "{refused}"
    );
    drop(engine.submit(to("a", 4, 1)).expect("submit"));
    drop(gate);
    assert_eq!(outcome(&events(held)).1.len(), 4);
}

#[test]
fn preparation_is_for_few_at_once_and_as_many_wait_as_may_for_the_engine() {
    let limits = EngineConfig {
        queue: 3,
        ..config()
    };
    let engine = start(limits, Fake::new(1));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("runtime").block_on(async {
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(engine.prepare(None, 0).await.expect("a place"));
        }
        let waits = |engine: EngineHandle| async move { engine.prepare(None, 0).await.map(drop) };
        let waiting: Vec<_> = (0..3)
            .map(|_| tokio::spawn(waits(engine.clone())))
            .collect();
        tokio::task::yield_now().await;
        let refused = engine.prepare(None, 0).await.map(drop);
        assert!(
            matches!(refused, Err(Error::QueueFull { .. })),
            "{refused:?}"
        );
        waiting[0].abort(); // who leaves makes room for another
        tokio::task::yield_now().await;
        let late = tokio::spawn(waits(engine.clone()));
        tokio::task::yield_now().await;
        drop(held);
        assert!(late.await.expect("a task").is_ok());
        for (index, waits) in waiting.into_iter().enumerate() {
            assert_eq!(waits.await.is_ok_and(|place| place.is_ok()), index > 0);
        }
        engine.drain().await;
        assert_eq!(engine.prepare(None, 0).await.map(drop), Err(Error::Stopped));
    });
}

#[test]
fn preparation_of_short_texts_is_not_behind_that_of_long_ones() {
    let limits = EngineConfig {
        queue: 3,
        ..config()
    };
    let engine = start(limits, Fake::new(1));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("runtime").block_on(async {
        let waits = |engine: EngineHandle| async move { engine.prepare(None, LONG_TEXT + 1).await };
        let held = waits(engine.clone()).await.expect("a place");
        // More than have a place on any machine, and may wait.
        let long: Vec<_> = (0..20)
            .map(|_| tokio::spawn(waits(engine.clone())))
            .collect();
        tokio::task::yield_now().await;
        let refused = waits(engine.clone()).await.map(drop);
        assert!(
            matches!(refused, Err(Error::QueueFull { .. })),
            "{refused:?}"
        );
        for _ in 0..16 {
            engine
                .prepare(None, LONG_TEXT)
                .await
                .map(drop)
                .expect("a place");
        }
        drop((held, long));
    });
}

#[test]
fn evaluations_of_one_request_have_a_bound() {
    let limits = EngineConfig {
        max_evaluations: 10,
        ..config()
    };
    let engine = start(limits, Fake::new(1));
    assert_eq!(engine.status().max_evaluations, 10);
    let score = |length, samples| ScoreRequest {
        mix: Default::default(),
        tokens: vec![1; length],
        given: 0,
        samples,
        seed: None,
        deadline: None,
        client: None,
    };
    drop(engine.submit(to("a", 10, 1)).expect("a token each"));
    drop(engine.score(score(2 * BLOCK, 5)).expect("two blocks"));
    let refused = [
        engine.submit(to("a", 11, 1)).map(drop),
        engine.score(score(2 * BLOCK + 1, 5)).map(drop),
        engine.score(score(2 * BLOCK, 6)).map(drop),
    ];
    for (refused, field) in refused
        .into_iter()
        .zip(["max_tokens", "samples", "samples"])
    {
        match refused {
            Err(Error::BadField {
                field: name,
                reason,
            }) => {
                assert!(
                    name == field && reason.contains("ask for 10"),
                    "{name}: {reason}"
                );
            }
            other => panic!("{field}: {other:?}"),
        }
    }
}
