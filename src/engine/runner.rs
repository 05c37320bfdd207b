//! The model thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Error;
use super::admission::Admission;
use super::pages::Pool;
use super::scheduler::{Claim, choose};
use super::sequence::Sequence;
use super::step::{Failure, Group};
use crate::model::kv_cache::KvCache;

/// What the model thread owns.
pub struct Runner {
    admission: Arc<Admission>,
    cache: KvCache,
    pool: Pool,
    /// In the order in which they started.
    running: Vec<Sequence>,
    /// Steps so far.
    step: u64,
    tally: Tally,
    /// Why nothing can be evaluated any more.
    lost: Option<String>,
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    tokens: u64,
    finished: u64,
    cancelled: u64,
    failed: u64,
    typical_compute: Duration,
}

impl Runner {
    pub fn new(admission: Arc<Admission>, cache: KvCache) -> Self {
        let pool = Pool::new(cache.pages());
        Runner {
            admission,
            cache,
            pool,
            running: Vec::new(),
            step: 0,
            tally: Tally::default(),
            lost: None,
        }
    }

    /// Schedule, forward, sample, deliver, until the engine is drained or the device is lost.
    pub fn run(mut self) {
        while self.lost.is_none() && self.admit() {
            for mut group in self.schedule() {
                if let Some(detail) = self.lost.clone() {
                    self.fail(group, &detail);
                    continue;
                }
                match group.forward(&mut self.cache, &self.admission.materialised) {
                    Ok(outcome) => {
                        group.sample(&outcome);
                        self.deliver(group);
                    }
                    Err(Failure { detail, lost }) => {
                        self.fail(group, &detail);
                        self.lost = lost.then_some(detail);
                    }
                }
            }
        }
    }

    /// Drops sequences that nobody waits for, and lets in as many as there is room for. Waits while there is nothing to do;
    /// false once there never will be.
    fn admit(&mut self) -> bool {
        let now = Instant::now();
        for sequence in std::mem::take(&mut self.running) {
            match sequence.given_up(now) {
                None => self.running.push(sequence),
                Some(error) => self.give_up(sequence, error),
            }
        }
        self.running.sort_by_key(|sequence| sequence.id);
        self.admission.materialised.sweep();
        self.report();

        let mut slots = self.admission.config.max_running.saturating_sub(self.running.len());
        let (pool, mut reserved) = (&mut self.pool, Vec::new());
        let room = |next: &Sequence| {
            let pages = if slots > 0 { pool.take(next.pages_needed) } else { None };
            slots = slots.saturating_sub(1);
            pages.map(|pages| reserved.push(pages)).is_some()
        };
        let Some(arrivals) = self.admission.arrivals(self.running.is_empty(), room) else {
            return false;
        };
        let now = Instant::now();
        for (mut sequence, pages) in arrivals.started.into_iter().zip(reserved) {
            sequence.start(pages, self.step, now);
            self.running.push(sequence);
        }
        for (sequence, error) in arrivals.given_up {
            self.give_up(sequence, error);
        }
        true
    }

    /// Moves the sequences of the next step into groups.
    fn schedule(&mut self) -> Vec<Group> {
        self.step += u64::from(!self.running.is_empty());
        let claims: Vec<Claim> = self.running.iter_mut().map(Sequence::claim).collect();
        let mut tokens = vec![0; claims.len()];
        for share in choose(&claims, self.admission.config.step_tokens) {
            tokens[share.index] = share.tokens;
        }
        let mut chosen = Vec::new();
        for (mut sequence, tokens) in std::mem::take(&mut self.running).into_iter().zip(tokens) {
            if tokens == 0 {
                self.running.push(sequence);
                continue;
            }
            sequence.served = self.step;
            match sequence.segments(tokens, self.cache.page_tokens()) {
                Some(segments) => chosen.push((sequence, segments)),
                None => {
                    let error = Error::OutOfPages {
                        needed: sequence.pages_needed + 1,
                        total: self.pool.total(),
                    };
                    self.give_up(sequence, error);
                }
            }
        }
        Group::of(chosen, &self.admission.materialised)
    }

    fn deliver(&mut self, group: Group) {
        let now = Instant::now();
        for mut member in group.members {
            let (tokens, ended) = member.sequence.deliver(member.after, now);
            self.tally.tokens += tokens as u64;
            if ended {
                self.tally.finished += 1;
                self.tally.took(member.sequence.computed(now));
                member.sequence.end(&mut self.pool);
            } else {
                self.running.push(member.sequence);
            }
        }
    }

    /// The network failed: so do the sequences that took part, and nothing else.
    fn fail(&mut self, group: Group, detail: &str) {
        for member in group.members {
            let request_id = member.sequence.id;
            tracing::error!(
                request_id,
                generation = member.sequence.lease.number,
                detail,
                "the device failed"
            );
            let error = Error::Device {
                request_id,
                detail: detail.into(),
            };
            self.give_up(member.sequence, error);
        }
    }

    fn give_up(&mut self, sequence: Sequence, error: Error) {
        match error {
            Error::Cancelled | Error::DeadlinePassed { .. } => self.tally.cancelled += 1,
            _ => self.tally.failed += 1,
        }
        sequence.fail(error, &mut self.pool);
    }

    fn report(&self) {
        let (running, pages_used, step, tally) = (self.running.len(), self.pool.used(), self.step, self.tally);
        self.admission.report(|status| {
            status.running = running;
            status.pages_used = pages_used;
            status.steps = step;
            status.tokens_generated = tally.tokens;
            status.finished = tally.finished;
            status.cancelled = tally.cancelled;
            status.failed = tally.failed;
            status.typical_compute = tally.typical_compute;
        });
    }
}

impl Tally {
    /// Follows the time that recent requests took.
    fn took(&mut self, time: Duration) {
        let before = if self.finished > 1 { self.typical_compute } else { time };
        self.typical_compute = before.mul_f64(0.8) + time.mul_f64(0.2);
    }
}

impl Drop for Runner {
    /// Also where the thread ends by a panic: nobody is left waiting.
    fn drop(&mut self) {
        let lost = self.lost.take();
        let mut left = self.admission.stop(lost.clone());
        left.append(&mut self.running);
        for sequence in left {
            let request_id = sequence.id;
            let error = match lost.clone() {
                Some(detail) => Error::Device { request_id, detail },
                None => Error::Stopped,
            };
            self.give_up(sequence, error);
        }
        self.report();
    }
}
