//! A request's tokens do not depend on its neighbours, on pages, on the step's size or on threads.

use choir::engine::{EngineConfig, Event, Reason, Request};
use choir::model::Denoiser;

use super::fake::*;
use super::requests::*;

/// Every request alone in an engine, then all together.
fn alone_and_together(config: EngineConfig, network: impl Fn() -> Fake) {
    let engine = start(config.clone(), network());
    let alone: Vec<_> = (0..16)
        .map(|index| run(&engine, assorted(index)).1)
        .collect();
    let streams: Vec<_> = (0..16)
        .map(|index| engine.submit(assorted(index)).expect("submit"))
        .collect();
    for (index, stream) in streams.into_iter().enumerate() {
        assert_eq!(
            outcome(&events(stream)).1,
            alone[index],
            "request {index}, {config:?}"
        );
    }
    drain(&engine);
    let status = engine.status();
    assert_eq!(
        (
            status.running,
            status.waiting,
            status.pages_used,
            status.finished
        ),
        (0, 0, 0, 32)
    );
}

#[test]
fn the_same_tokens_alone_and_in_a_mixed_batch() {
    for page_tokens in [1, 4, 6, 16] {
        for step_tokens in [8, 40, 512] {
            for threads in [1, 2] {
                let config = EngineConfig {
                    page_tokens,
                    step_tokens,
                    threads,
                    ..config()
                };
                alone_and_together(config, || Fake::new(1));
            }
        }
    }
}

#[test]
fn tokens_do_not_depend_on_page_size_or_step_size() {
    let long = || Request {
        max_tokens: 200,
        ..assorted(3)
    };
    let tokens = [(1, 8), (5, 64), (16, 512)].map(|(page_tokens, step_tokens)| {
        run(
            &start(
                EngineConfig {
                    page_tokens,
                    step_tokens,
                    ..config()
                },
                Fake::new(2),
            ),
            long(),
        )
        .1
    });
    assert_eq!(tokens[0].len(), 200, "far past the window of {WINDOW}");
    assert!(tokens.iter().all(|other| *other == tokens[0]));
}

#[test]
fn one_window_of_pages_is_enough_for_any_length() {
    // A window, the chunk that is written before it slides (half a step), and the page that both may overlap.
    let pages = (WINDOW + 8) / 4 + 1;
    let network = Fake::new(3);
    let kv_bytes = pages * network.page_bytes(4.into());
    let engine = start(
        EngineConfig {
            kv_bytes,
            step_tokens: 16,
            ..config()
        },
        network,
    );
    let (_, tokens, _) = run(&engine, request(&"x".repeat(120), 150, 1));
    assert_eq!(tokens.len(), 150);
    assert_eq!(engine.status().pages_total, pages);
}

#[test]
fn events_come_in_order_and_add_up() {
    let engine = start(config(), Fake::new(4).letters());
    let wanted = Request {
        steps_wanted: true,
        ..request("abcdef", 21, 9)
    };
    let events = events(engine.submit(wanted).expect("submit"));
    assert_eq!(
        events[0],
        Event::Started {
            request_id: 1,
            generation: 1,
            seed: 9
        }
    );
    let (text, tokens, summary) = outcome(&events);
    assert_eq!(
        (
            summary.reason,
            summary.prompt_tokens,
            summary.generated_tokens
        ),
        (Reason::Length, 6, 21)
    );
    assert_eq!(text, engine.generation().tokenizer.decode(&tokens));
    let mut revealed = Vec::new();
    for event in &events {
        if let Event::Step { positions } = event {
            revealed.extend(positions.iter().map(|token| (token.position, token.token)));
        }
    }
    revealed.sort_unstable();
    let expected: Vec<_> = tokens
        .iter()
        .enumerate()
        .map(|(index, &token)| (6 + index, token))
        .collect();
    assert_eq!(revealed, expected);
    let blocks = events
        .iter()
        .filter(|event| matches!(event, Event::Block { .. }))
        .count();
    assert_eq!(
        blocks, 6,
        "27 tokens end in the seventh block, of which the first is all prompt"
    );
    assert!(matches!(events.last(), Some(Event::Finished(_))));
}

#[test]
fn a_seed_is_drawn_and_told_where_none_is_given() {
    let engine = start(config(), Fake::new(5));
    let mut seeds = Vec::new();
    for _ in 0..2 {
        let events = events(
            engine
                .submit(Request {
                    seed: None,
                    ..request("ab", 8, 0)
                })
                .expect("submit"),
        );
        let Event::Started { seed, .. } = events[0] else {
            panic!("{:?}", events[0])
        };
        let again = run(&engine, request("ab", 8, seed));
        assert_eq!(outcome(&events).1, again.1);
        seeds.push(seed);
    }
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn a_network_without_blocks_denoises_everything_at_once() {
    let engine = start(config(), Fake::new(6).without_blocks().letters());
    let (_, tokens, summary) = run(&engine, request("abcde", 20, 1));
    assert_eq!((tokens.len(), summary.nfe), (20, 20));
    assert!(
        engine.submit(request("abcde", WINDOW, 1)).is_err(),
        "longer than the network reads"
    );
}
