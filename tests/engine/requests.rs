//! Requests, and what comes of them.

use super::fake::tokens;
use choir::engine::{EngineHandle, Event, EventStream, Request, Sampling, Summary};
use choir::sampler::AbsorbingPredictor;

pub fn request(prompt: &str, max_tokens: usize, seed: u64) -> Request {
    Request {
        seed: Some(seed),
        ..Request::new(tokens(prompt), max_tokens, Sampling::default())
    }
}

/// A request that differs from its neighbours in all that a request has.
pub fn assorted(index: usize) -> Request {
    let predictors = [
        AbsorbingPredictor::FirstHitting,
        AbsorbingPredictor::Ancestral { steps: 5 },
        AbsorbingPredictor::Confidence {
            threshold: 0.02,
            steps: None,
        },
    ];
    let mixes: [&[(&str, f32)]; 5] = [
        &[],
        &[("a", 1.0)],
        &[("b", 1.0)],
        &[("c", 0.5), ("a", 0.25)],
        &[("c", 1.0)],
    ];
    let sampling = Sampling {
        temperature: [1.0, 0.7, 0.0, 1.3][index % 4],
        nucleus_p: [1.0, 0.9][index % 2],
        top_k: [None, Some(20)][index / 2 % 2],
        ..Sampling::plain(predictors[index % 3].into())
    };
    Request {
        mix: mixes[index % 5]
            .iter()
            .map(|&(name, weight)| (name.to_owned(), weight))
            .collect::<Vec<_>>()
            .into(),
        sampling,
        steps_wanted: index.is_multiple_of(2),
        ..request(
            &"In the beginning ".repeat(1 + index % 7)[index % 3..],
            3 + 13 * index % 60,
            index as u64,
        )
    }
}

/// All of a request's events.
pub fn events(mut stream: EventStream) -> Vec<Event> {
    std::iter::from_fn(|| stream.blocking_recv()).collect()
}

/// A finished request: its text, its tokens, and the summary.
pub fn outcome(events: &[Event]) -> (String, Vec<u32>, Summary) {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for event in events {
        match event {
            Event::Block {
                text: more,
                tokens: new,
            } => {
                text += more;
                tokens.extend(new);
            }
            Event::Finished(summary) => return (text, tokens, summary.clone()),
            Event::Failed(error) => panic!("failed: {error}"),
            Event::Started { .. } | Event::Step { .. } => {}
        }
    }
    panic!("no end")
}

pub fn run(engine: &EngineHandle, request: Request) -> (String, Vec<u32>, Summary) {
    outcome(&events(engine.submit(request).expect("submit")))
}

/// A request to one variant.
pub fn to(variant: &str, max_tokens: usize, seed: u64) -> Request {
    Request {
        mix: vec![(variant.into(), 1.0)].into(),
        ..request("x", max_tokens, seed)
    }
}

/// The sampling defaults of a mix.
pub fn defaults(engine: &EngineHandle, mix: &[(&str, f32)]) -> Sampling {
    let mix = mix.iter().map(|&(name, weight)| (name.to_owned(), weight));
    let resolved = engine.resolve(mix.collect()).expect("a mix");
    resolved.defaults().clone()
}
