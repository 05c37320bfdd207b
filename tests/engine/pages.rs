//! Pages that are shared, and pages that run out: neither changes a text.

use choir::engine::{EngineConfig, Event, Request, ScoreRequest};
use choir::model::Denoiser;

use super::fake::*;
use super::requests::*;
use std::time::{Duration, Instant};

fn mix_of(name: &str) -> Vec<(String, f32)> {
    match name {
        "" => Vec::new(),
        name => vec![(name.to_owned(), 1.0)],
    }
}

#[test]
fn a_text_that_begins_like_another_is_not_computed_again() {
    let (prompt, other) = (
        "It was in the morning, and nobody ",
        "It was in the morning, but nobody ",
    );
    let ask = |mix: &str, prompt: &str, seed| Request {
        mix: mix_of(mix).into(),
        ..request(prompt, 20, seed)
    };
    let asked = [
        ask("a", prompt, 1),
        ask("a", prompt, 2),
        ask("b", prompt, 1),
        ask("a", other, 1),
        ask("", prompt, 1),
        ask("a", prompt, 1),
    ];
    for page_tokens in [1, 4, 6, 8] {
        let config = |prefix_reuse| EngineConfig {
            page_tokens,
            prefix_reuse,
            ..config()
        };
        let (anew, again) = (
            start(config(false), Fake::new(1)),
            start(config(true), Fake::new(1)),
        );
        let mut reused = Vec::new();
        for asked in &asked {
            let before = again.status().tokens_reused;
            assert_eq!(
                run(&again, asked.clone()).1,
                run(&anew, asked.clone()).1,
                "pages of {page_tokens}"
            );
            while again.status().running > 0 {
                std::thread::yield_now();
            }
            reused.push(again.status().tokens_reused - before);
        }
        // Whole pages that end with a block of 4: of 34 tokens, or of the 23 that both texts begin with.
        let both = if page_tokens == 6 {
            12
        } else {
            page_tokens.max(4)
        };
        let shared = [0, 34, 0, 23, 0, 34].map(|tokens| (tokens / both * both) as u64);
        assert_eq!(reused, shared, "pages of {page_tokens}");
        assert_eq!(anew.status().tokens_reused, 0);
        let status = again.status();
        assert!(
            status.pages_used == 0 && status.pages_idle > 0,
            "{status:?}"
        );
    }
}

#[test]
fn a_finished_text_can_be_gone_on_from() {
    let engine = start(config(), Fake::new(2).letters());
    let first = request("abcdefgh", 56, 1);
    let (_, tokens, _) = run(&engine, first.clone());
    let next = Request {
        prompt: [first.prompt, tokens].concat(),
        ..request("", 24, 2)
    };
    let went_on = run(&engine, next.clone()).1;
    // The last block was never written.
    assert_eq!(engine.status().tokens_reused, 60);
    assert_eq!(
        went_on,
        run(&start(config(), Fake::new(2).letters()), next).1
    );
}

#[test]
fn another_generation_computes_its_own() {
    let engine = start(config(), Fake::new(3));
    let asked = || request("the same prompt for both", 12, 1);
    let before = run(&engine, asked()).1;
    engine.publish(generation(2, Fake::new(4)));
    let after = run(&engine, asked()).1;
    assert_eq!(engine.status().tokens_reused, 0);
    assert_ne!(before, after);
    assert_eq!(after, run(&start(config(), Fake::new(4)), asked()).1);
    // Nobody uses the first generation's pages any more, so nothing of them is kept: 36 positions make 8 whole blocks.
    assert_eq!(engine.status().pages_idle, 8);
}

#[test]
fn sequences_that_lose_their_pages_say_the_same() {
    for (pages, page_tokens) in [(14, 4), (20, 4), (50, 1)] {
        for prefix_reuse in [false, true] {
            let config = |kv_bytes| EngineConfig {
                kv_bytes,
                page_tokens,
                step_tokens: 32,
                prefix_reuse,
                ..config()
            };
            let asked = |index: usize| Request {
                max_tokens: 40,
                ..assorted(index)
            };
            let (wide, tight) = (
                start(config(1 << 20), Fake::new(5)),
                start(
                    config(pages * Fake::new(5).page_bytes(page_tokens.into())),
                    Fake::new(5),
                ),
            );
            let scored = |seed| ScoreRequest {
                mix: mix_of("b").into(),
                tokens: tokens("a text that is scored beside the others"),
                given: 1,
                samples: 3,
                seed: Some(seed),
                deadline: None,
                client: None,
            };
            let streams: Vec<_> = (0..12)
                .map(|index| tight.submit(asked(index)).expect("submit"))
                .collect();
            let scores = [1, 2].map(|seed| tight.score(scored(seed)).expect("score"));
            for (index, stream) in streams.into_iter().enumerate() {
                let (events, alone) = (events(stream), events_of(&wide, asked(index)));
                assert_eq!(
                    without_times(&events),
                    without_times(&alone),
                    "request {index}"
                );
            }
            for (seed, score) in (1..).zip(scores) {
                let alone = wide.score(scored(seed)).expect("score");
                let nats = [score, alone].map(|reply| {
                    reply
                        .blocking_recv()
                        .expect("reply")
                        .expect("score")
                        .nats_per_token
                });
                assert_eq!(nats[0], nats[1]);
            }
            drain(&tight);
            let status = tight.status();
            assert!(status.preempted > 0, "{status:?}");
            assert_eq!(
                (status.pages_used, status.running, status.failed),
                (0, 0, 0)
            );
            assert_eq!(wide.status().preempted, 0);
        }
    }
}

/// Texts take turns, one to a step. Where a later one finds no page, it gives up its own, and the step is nobody's: an earlier one has the
/// next.
#[test]
fn a_step_that_found_no_page_is_followed_by_another() {
    let mut preempted = 0;
    // Room for all that one of them sees, and for less than all see.
    for pages in WINDOW / 4 + 2..WINDOW {
        let (network, gate) = Fake::new(6).letters().gated();
        let config = EngineConfig {
            kv_bytes: pages * network.page_bytes(config().page()),
            step_tokens: BLOCK,
            prefix_reuse: false,
            unread: 1000,
            ..config()
        };
        let engine = start(config, network);
        let asked = |variant| Request {
            deadline: Some(Instant::now() + Duration::from_secs(20)),
            ..to(variant, 60, 1)
        };
        let streams = ["a", "b", "c"].map(|variant| engine.submit(asked(variant)).expect("submit"));
        drop(gate);
        for stream in streams {
            assert_eq!(outcome(&events(stream)).1.len(), 60, "{pages} pages");
        }
        preempted += engine.status().preempted;
    }
    assert!(preempted > 0);
}

fn events_of(engine: &choir::engine::EngineHandle, request: Request) -> Vec<Event> {
    events(engine.submit(request).expect("submit"))
}

/// All that a client is told, but numbers and times.
fn without_times(events: &[Event]) -> Vec<Event> {
    let told = |event: &Event| match event.clone() {
        Event::Started {
            generation, seed, ..
        } => Event::Started {
            request_id: 0,
            generation,
            seed,
        },
        Event::Finished(summary) => Event::Finished(choir::engine::Summary {
            queued: std::time::Duration::ZERO,
            computed: std::time::Duration::ZERO,
            ..summary
        }),
        other => other,
    };
    events.iter().map(told).collect()
}
