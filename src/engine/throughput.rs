//! How long steps take, by how much is in them.
//!
//! Two figures, since two questions are asked. Who is accepted is asked of the usual time: whoever is let in should be finished in
//! time. Whether work that was accepted is given up is asked of the best time: nothing is dropped that could still be finished.

use std::time::{Duration, Instant};

/// Steps are told apart by the power of two that their rows reach.
const SIZES: usize = 24;
/// Steps of a size that must have been seen before anything is said of it.
const ENOUGH: u32 = 32;
/// How much the usual time follows the last step, and the best one the usual.
const FOLLOW: f64 = 1.0 / 32.0;
/// What was not seen for so long is not known any more.
const AGE: Duration = Duration::from_secs(30);

/// The time of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTime {
    pub best: Duration,
    pub usual: Duration,
}

/// The times of recent steps, of the base alone and with variants.
#[derive(Debug, Default)]
pub struct Throughput([[Option<Seen>; SIZES]; 2]);

#[derive(Clone, Copy, Debug)]
struct Seen {
    steps: u32,
    /// Seconds.
    best: f64,
    usual: f64,
    last: Instant,
}

fn size(rows: usize) -> usize {
    (rows.max(1).ilog2() as usize).min(SIZES - 1)
}

impl Throughput {
    /// A step of so many rows, a row counted once for every part of its mix, took so long.
    pub fn record(&mut self, rows: usize, variants: bool, took: Duration, now: Instant) {
        let (seconds, seen) = (
            took.as_secs_f64(),
            &mut self.0[usize::from(variants)][size(rows)],
        );
        let fresh = seen.filter(|seen| now.duration_since(seen.last) < AGE);
        let before = fresh.unwrap_or(Seen {
            steps: 0,
            best: seconds,
            usual: seconds,
            last: now,
        });
        let usual = before.usual + FOLLOW * (seconds - before.usual);
        *seen = Some(Seen {
            steps: before.steps.saturating_add(1),
            best: (before.best + FOLLOW * FOLLOW * (usual - before.best)).min(seconds),
            usual,
            last: now,
        });
    }

    /// What a step of so many rows takes; `None` where too little is known. Of a size that was not seen lately the nearest one that was
    /// says what it takes at least: a larger step in proportion, a smaller one as it is.
    pub fn step(&self, rows: usize, variants: bool, now: Instant) -> Option<StepTime> {
        let (of, own) = (&self.0[usize::from(variants)], size(rows));
        let fresh = |seen: &&Seen| seen.steps >= ENOUGH && now.duration_since(seen.last) < AGE;
        let known = (0..SIZES).filter_map(|at| Some((at, of[at].as_ref().filter(fresh)?)));
        let (at, seen) = known.min_by_key(|(at, _)| at.abs_diff(own))?;
        let part = match at > own {
            true => (rows as f64 / (2 << at) as f64).min(1.0),
            false => 1.0,
        };
        Some(StepTime {
            best: Duration::from_secs_f64(part * seen.best),
            usual: Duration::from_secs_f64(part * seen.usual),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn throughput_says_nothing_before_enough_is_known_and_forgets() {
        let (mut speed, start) = (Throughput::default(), Instant::now());
        for step in 0..ENOUGH {
            assert_eq!(speed.step(16, true, start), None);
            speed.record(16, true, (40 - step) * MS, start);
        }
        let known = speed.step(16, true, start).expect("known");
        assert!(known.best < 10 * MS && known.usual > 20 * MS, "{known:?}");
        assert_eq!(speed.step(16, false, start), None, "of the other kind");
        assert_eq!(speed.step(16, true, start + AGE), None, "too long ago");
        (0..3000).for_each(|_| speed.record(16, true, 50 * MS, start));
        let slower = speed.step(16, true, start).expect("known");
        assert!(
            slower.best > 40 * MS,
            "an old best is forgotten: {slower:?}"
        );
    }

    #[test]
    fn throughput_of_sizes_not_seen_comes_from_below() {
        let (mut speed, now) = (Throughput::default(), Instant::now());
        (0..ENOUGH).for_each(|_| speed.record(256, false, 32 * MS, now));
        let usual = |rows| {
            speed
                .step(rows, false, now)
                .map(|step| step.usual.as_millis())
        };
        assert_eq!(usual(256), Some(32));
        assert_eq!(
            usual(16),
            Some(1),
            "in proportion of the largest step of that size"
        );
        assert_eq!(usual(1024), Some(32));
    }
}
