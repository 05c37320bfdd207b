//! Ten thousand requests that end in every way there is: nothing is left behind.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use choir::engine::{EngineConfig, Error, Event, Priority, Request};
use choir::rng::{Key, Stream};

use super::fake::*;

#[test]
fn nothing_is_left_of_ten_thousand_requests() {
    const THREADS: usize = 8;
    const EACH: usize = 1250;
    let limits = EngineConfig {
        max_running: 8,
        max_per_client: Some(20),
        max_per_variant: Some(30),
        stall: Duration::from_millis(20),
        kv_bytes: 60 * 4 * 16,
        ..config()
    };
    let engine = start(limits, Fake::new(1));
    let (refused, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (engine, refused, ended) = (&engine, &refused, &ended);
            scope.spawn(move || {
                let mut chance = Stream::new(Key::derive(&[b"soak", &[thread as u8]]));
                let mut unread = Vec::new();
                for index in 0..EACH {
                    if thread == 0 && index % 100 == 50 {
                        engine.publish(generation(index as u64, Fake::new(1)));
                    }
                    let wanted = Request {
                        deadline: (chance.below(4) == 0)
                            .then(|| Instant::now() + Duration::from_micros(chance.below(5000) as u64)),
                        priority: [Priority::Interactive, Priority::Batch][chance.below(2)],
                        client: Some(["one", "two", "three"][chance.below(3)].into()),
                        ..assorted(chance.below(16))
                    };
                    let Ok(mut stream) = engine.submit(wanted).inspect_err(|error| {
                        let at_the_door = matches!(
                            error,
                            Error::QueueFull { .. }
                                | Error::TooMany { .. }
                                | Error::Overloaded { .. }
                                | Error::DeadlinePassed { .. }
                                | Error::OutOfPages { .. }
                        );
                        assert!(at_the_door, "{error}");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }) else {
                        continue;
                    };
                    match chance.below(4) {
                        // Read to the end.
                        0 | 1 => {
                            let last = std::iter::from_fn(|| stream.blocking_recv()).last();
                            assert!(matches!(last, Some(Event::Finished(_) | Event::Failed(_))), "{last:?}");
                            ended.fetch_add(1, Ordering::Relaxed);
                        }
                        // Leave at once, or after some events.
                        2 => (0..chance.below(6)).for_each(|_| _ = stream.blocking_recv()),
                        // Do not read for a while.
                        _ => {
                            unread.push(stream);
                            unread.truncate(3);
                        }
                    }
                }
            });
        }
    });
    let status = until(&engine, |now| now.running == 0 && now.waiting == 0 && now.leases == 0);
    assert_eq!((status.pages_used, status.streams, status.paused), (0, 0, 0));
    assert_eq!((status.generations, status.failed), (1, 0));
    assert!(status.variants.values().all(|load| load.waiting + load.running == 0));
    assert!(
        status.finished > 0 && status.cancelled > 0 && status.late > 0,
        "{status:?}"
    );
    assert!(ended.into_inner() > 1000 && refused.into_inner() > 0);
    // And every permit: as many as may are let in again.
    let _held: Vec<_> = (0..20)
        .map(|seed| Request {
            client: Some("one".into()),
            ..request("again", 4, seed)
        })
        .map(|request| engine.submit(request).expect("submit"))
        .collect();
    drain(&engine);
}
