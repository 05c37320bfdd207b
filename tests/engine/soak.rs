//! Ten thousand requests that are read, left, late or cancelled in every way, while generations come and go: nothing is left of
//! them.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use choir::engine::{
    EngineConfig, EngineHandle, Error, Event, EventStream, Generation, Priority, Request,
    ScoreRequest,
};
use choir::model::Denoiser;
use choir::rng::{Key, Stream};

use super::fake::*;
use super::uniform::{both, mixed};

const CLIENTS: u64 = 8;
const REQUESTS: usize = 10_000 / CLIENTS as usize;

/// How a client treats a request.
enum Manner {
    /// Reads so many events and goes.
    Reads(usize),
    /// Comes back to it when it has asked for more.
    Later,
    ToTheEnd,
}

/// What became of a client's requests.
#[derive(Debug, Default)]
struct Ends {
    refused: u64,
    left: u64,
    finished: u64,
    late: u64,
}

impl Ends {
    /// Reads `stream` until it has said so many things, or all.
    fn read(&mut self, mut stream: EventStream, most: usize) {
        for _ in 0..most {
            match stream.blocking_recv() {
                Some(Event::Finished(_)) => return self.finished += 1,
                Some(Event::Failed(error)) if late(&error) => return self.late += 1,
                Some(Event::Failed(Error::QueueFull { .. })) => return self.refused += 1, // to make room for another
                Some(Event::Failed(error)) => panic!("{error}"),
                Some(_) => {}
                None => panic!("a stream without an end"),
            }
        }
        self.left += 1;
    }
}

fn late(error: &Error) -> bool {
    matches!(
        error,
        Error::DeadlinePassed { .. } | Error::DeadlineOutOfReach { .. }
    )
}

fn refused(error: &Error) -> bool {
    matches!(
        error,
        Error::QueueFull { .. } | Error::TooMany { .. } | Error::Overloaded { .. }
    )
}

fn client(engine: &EngineHandle, number: u64) -> Ends {
    let mut chance = Stream::new(Key::derive(&[b"soak", &number.to_le_bytes()]));
    let (mut ends, mut later) = (Ends::default(), Vec::new());
    for _ in 0..REQUESTS {
        let index = chance.below(1000);
        let deadline = chance.below(4) == 0;
        let deadline =
            deadline.then(|| Instant::now() + Duration::from_micros(chance.below(4_000) as u64));
        if chance.below(10) == 0 {
            let scored = engine.score(ScoreRequest {
                mix: Vec::new().into(),
                tokens: tokens("a text that is scored"),
                given: 1,
                samples: 1 + chance.below(8),
                seed: Some(index as u64),
                deadline,
                client: None,
            });
            match scored.map(|reply| (chance.below(2) == 0).then(|| reply.blocking_recv())) {
                Ok(None) => ends.left += 1,
                Ok(Some(Ok(Ok(_)))) => ends.finished += 1,
                Ok(Some(Ok(Err(error)))) | Err(error) if late(&error) => ends.late += 1,
                Ok(Some(Ok(Err(error)))) | Err(error) if refused(&error) => ends.refused += 1,
                other => panic!("{other:?}"),
            }
            continue;
        }
        let asked = Request {
            max_tokens: 1 + chance.below(12),
            deadline,
            priority: [Priority::Interactive, Priority::Batch][chance.below(2)],
            client: Some(["one", "two", "three"][chance.below(3)].into()),
            ..mixed(index)
        };
        let stream = match engine.submit(asked) {
            Ok(stream) => stream,
            Err(error) if refused(&error) => {
                ends.refused += 1;
                continue;
            }
            Err(error) if late(&error) => {
                ends.late += 1;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let manner = match chance.below(4) {
            0 => Manner::Reads(chance.below(4)),
            1 => Manner::Later,
            _ => Manner::ToTheEnd,
        };
        match manner {
            Manner::Reads(events) => ends.read(stream, events),
            Manner::Later => later.push(stream),
            Manner::ToTheEnd => ends.read(stream, usize::MAX),
        }
        if later.len() == 5 {
            later
                .drain(..)
                .for_each(|stream| ends.read(stream, usize::MAX));
        }
    }
    later
        .into_iter()
        .for_each(|stream| ends.read(stream, usize::MAX));
    ends
}

#[test]
fn nothing_is_left_of_ten_thousand_requests() {
    let serve = |salt| both(Fake::new(salt).letters());
    let config = EngineConfig {
        max_running: 8,
        queue: 6,
        max_per_client: Some(5),
        kv_bytes: 30 * Fake::new(0).page_bytes(config().page()), // so few pages that some lose theirs
        step_tokens: 48,
        ..config()
    };
    let engine = choir::engine::Engine::start(config, serve(0)).expect("engine");
    let over = AtomicBool::new(false);
    let (ends, generations) = std::thread::scope(|scope| {
        let engine = &engine;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(engine, number)))
            .collect();
        let operator = scope.spawn(|| {
            let mut generations: Vec<Weak<Generation>> = Vec::new();
            let mut seen = 0;
            while !over.load(Ordering::Relaxed) {
                let steps = engine.status().steps;
                if steps > seen + 200 {
                    seen = steps;
                    generations.push(std::sync::Arc::downgrade(&engine.generation()));
                    engine.publish(Generation {
                        number: generations.len() as u64 + 1,
                        ..serve(generations.len() as u64)
                    });
                }
                std::thread::yield_now();
            }
            generations
        });
        let ends: Vec<Ends> = clients
            .into_iter()
            .map(|client| client.join().expect("client"))
            .collect();
        over.store(true, Ordering::Relaxed);
        (ends, operator.join().expect("operator"))
    });
    drain(&engine);
    let status = engine.status();
    let sum = |of: fn(&Ends) -> u64| ends.iter().map(of).sum::<u64>();
    assert_eq!(
        (status.running, status.waiting, status.pages_used),
        (0, 0, 0),
        "{status:?}"
    );
    assert_eq!(
        (
            status.streams,
            status.paused,
            status.leases,
            status.generations
        ),
        (0, 0, 0, 1)
    );
    assert!(
        status
            .variants
            .values()
            .all(|load| load.waiting + load.running == 0)
    );
    let reasons = status.refused;
    assert!(
        reasons.queue > 0 && reasons.variant == 0, // a full queue is said before a client's share is
        "{reasons:?}"
    );
    assert!(
        generations.len() > 5
            && generations
                .iter()
                .all(|generation| generation.strong_count() == 0)
    );
    let asked = [
        sum(|e| e.refused),
        sum(|e| e.left),
        sum(|e| e.finished),
        sum(|e| e.late),
    ];
    assert_eq!(asked.iter().sum::<u64>(), CLIENTS * REQUESTS as u64);
    assert!(asked.iter().all(|&count| count > 0), "{asked:?}");
    assert!(
        status.preempted > 0 && status.tokens_reused > 0 && status.failed == 0,
        "{status:?}"
    );
    // Who left may have had all that there was to come.
    assert!(status.finished >= sum(|e| e.finished), "{status:?}");
}
