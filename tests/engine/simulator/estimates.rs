//! What the door expects of a request, with a clock that is a number.

use std::time::{Duration, Instant};

use choir::engine::door::Door;
use choir::engine::ledger::Tenant;
use choir::engine::sequence::Sequence;
use choir::engine::{Error, Priority};

use super::job::Sim;
use super::limits;

/// A request of so many evaluations of so many rows each.
fn request(
    door: &mut Door<Sim>,
    evaluations: u32,
    rows: usize,
    now: Instant,
) -> Box<Sequence<Sim>> {
    let tenant = Tenant {
        payer: door
            .ledger
            .payer(if rows > 100 { "large" } else { "small" }),
        priority: Priority::Interactive,
        parts: 1,
        cost: rows,
    };
    let job = Sim::of(rows, evaluations);
    Box::new(Sequence::new(tenant, 1, now, job))
}

#[test]
fn door_estimates_by_a_requests_own_evaluations() {
    let (mut door, now) = (Door::<Sim>::new(limits((4, 4))), Instant::now());
    // A few requests of many rows have been served, the last of which still runs.
    for _ in 0..100 {
        door.throughput
            .record(240, true, Duration::from_millis(19), now);
    }
    let within = |door: &mut Door<Sim>, evaluations, seconds, now: Instant| {
        let mut sequence = request(door, evaluations, 16, now);
        sequence.deadline = Some(now + Duration::from_secs(seconds));
        door.enter(sequence, now)
            .0
            .map(drop)
            .map_err(|(_, error)| error)
    };
    let refused = |answer| matches!(answer, Err(Error::Overloaded { .. }));
    assert_eq!(
        within(&mut door, 40_000, 1, now),
        Ok(()),
        "nothing is ahead of it"
    );
    let mut door = Door::<Sim>::new(limits((4, 4)));
    for _ in 0..100 {
        door.throughput
            .record(240, true, Duration::from_millis(19), now);
    }
    let large = request(&mut door, 5, 240, now);
    door.report([&*large].into_iter(), now);
    assert_eq!(
        within(&mut door, 4_000, 20, now),
        Ok(()),
        "small evaluations take less"
    );
    assert!(refused(within(&mut door, 40_000, 20, now)));
    assert_eq!(
        within(&mut door, 40_000, 20, now + Duration::from_secs(60)),
        Ok(()),
        "what is old is not known"
    );
    // As many rows beside it in every step take as much time as its own.
    let large = request(&mut door, 100_000, 240, now);
    door.report([&*large].into_iter(), now);
    assert!(refused(within(&mut door, 4_000, 20, now)));
}
