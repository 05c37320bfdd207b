//! How fast steps are, and what follows for a request that has until some time.
//!
//! Two figures, since two questions are asked. Who is accepted is asked of the usual pace: whoever is let in should be finished in time.
//! Whether work that was accepted is given up is asked of the best pace: nothing is dropped that could still be finished.

use std::collections::VecDeque;
use std::time::Duration;

/// Steps that are remembered, and that must have been seen before anything is said.
const WINDOW: usize = 128;
/// How much the usual pace follows the last step.
const FOLLOW: f64 = 1.0 / 32.0;
/// Of the time that is left at the door, so much must be enough: estimates err, and what is refused costs less than what is
/// accepted and late.
pub const TRUSTED: f64 = 0.8;

/// The last steps' times.
#[derive(Debug, Default)]
pub struct Pace {
    recent: VecDeque<Duration>,
    /// Seconds.
    usual: f64,
}

/// Times from one evaluation of a sequence to its next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Of the fastest step among the last ones, for a sequence that takes part in every step.
    pub best: Duration,
    pub usual: Duration,
}

impl Pace {
    /// A step in which `took_part` of the `ready` sequences took part.
    pub fn record(&mut self, took: Duration, ready: usize, took_part: usize) {
        let own = took.as_secs_f64() * ready as f64 / took_part.max(1) as f64;
        let follow = if self.recent.is_empty() { 1.0 } else { FOLLOW };
        self.usual += follow * (own - self.usual);
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
    }

    /// `None` until enough is known.
    pub fn measured(&self) -> Option<Measured> {
        let best = self
            .recent
            .iter()
            .min()
            .filter(|_| self.recent.len() == WINDOW)?;
        Some(Measured {
            best: *best,
            usual: Duration::from_secs_f64(self.usual),
        })
    }
}

/// What is ahead of a request at the door, in evaluations still to be made, those of running sequences included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ahead {
    /// Of all requests that are not of a lower priority, and of those of its own variant among them.
    pub all: u64,
    pub own: u64,
    /// Sequences that may run at once.
    pub places: usize,
    /// Its variant's fair share of them, above 0 and at most 1.
    pub share: f64,
    /// Whether a place is free.
    pub free: bool,
}

impl Ahead {
    /// Time until a request of so many evaluations would be finished, at the usual pace.
    ///
    /// It waits for all that is ahead of it, shared by all places; or, since its variant gets its share whatever others have in the
    /// queue, for what is ahead of its own variant, in that share of the places: whichever is sooner.
    pub fn finished_after(&self, evaluations: u64, measured: Measured) -> Duration {
        let places = self.places as f64;
        let wait = (self.all as f64 / places).min(self.own as f64 / (places * self.share));
        let wait = if self.free { 0.0 } else { wait };
        measured.usual.mul_f64(wait + evaluations as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn nothing_is_said_before_enough_is_known_and_old_steps_are_forgotten() {
        let mut pace = Pace::default();
        for step in 1..WINDOW as u64 {
            pace.record(ms(step), 1, 1);
            assert_eq!(pace.measured(), None);
        }
        pace.record(ms(500), 1, 1);
        assert_eq!(pace.measured().unwrap().best, ms(1));
        pace.record(ms(500), 1, 1);
        assert_eq!(pace.measured().unwrap().best, ms(2));
    }

    #[test]
    fn an_evaluation_of_ones_own_takes_as_many_steps_as_it_is_left_out_of() {
        let mut pace = Pace::default();
        (0..WINDOW).for_each(|_| pace.record(ms(10), 12, 4));
        let measured = pace.measured().unwrap();
        assert_eq!(measured.best, ms(10));
        assert!((measured.usual.as_secs_f64() - 0.03).abs() < 1e-9);
        (0..20 * WINDOW).for_each(|_| pace.record(ms(4), 1, 1));
        assert!((pace.measured().unwrap().usual.as_secs_f64() - 0.004).abs() < 1e-9);
    }

    #[test]
    fn a_request_waits_for_all_or_for_its_own_whichever_is_sooner() {
        let measured = Measured {
            best: ms(1),
            usual: ms(10),
        };
        let ahead = Ahead {
            all: 400,
            own: 50,
            places: 4,
            share: 0.5,
            free: false,
        };
        let after = |ahead: Ahead| ahead.finished_after(20, measured);
        assert_eq!(after(ahead), ms(10 * (25 + 20)));
        assert_eq!(after(Ahead { own: 400, ..ahead }), ms(10 * (100 + 20)));
        assert_eq!(
            after(Ahead { own: 0, ..ahead }),
            ms(200),
            "a quiet variant does not wait"
        );
        assert_eq!(
            after(Ahead {
                free: true,
                ..ahead
            }),
            ms(200)
        );
    }
}
