//! The model thread.

use std::collections::VecDeque;
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
    /// Times that a running sequence had to give its pages up.
    preempted: u64,
    /// Tokens of texts that were in the cache already.
    reused: u64,
    typical_compute: Duration,
}

impl Runner {
    pub fn new(admission: Arc<Admission>, cache: KvCache) -> Self {
        let pool = Pool::new(cache.pages(), cache.page_tokens(), admission.config.prefix_reuse);
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
                match group.forward(&mut self.cache) {
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

        let (mut slots, mut spare) = (
            self.admission.config.max_running.saturating_sub(self.running.len()),
            // Whoever runs may need another page soon.
            self.pool.available().saturating_sub(self.running.len()),
        );
        let page_tokens = self.pool.page_tokens();
        let mut room = |next: &Sequence| {
            let left = spare
                .checked_sub(next.pages_to_start(page_tokens))
                .filter(|_| slots > 0);
            spare = left.unwrap_or(spare);
            slots -= usize::from(left.is_some());
            left.is_some()
        };
        let Some(arrivals) = self.admission.arrivals(self.running.is_empty(), &mut room) else {
            return false;
        };
        let now = Instant::now();
        for mut sequence in arrivals.started {
            self.tally.reused += sequence.start(&mut self.pool, self.step, now) as u64;
            self.running.push(sequence);
        }
        for (sequence, error) in arrivals.given_up {
            self.give_up(sequence, error);
        }
        true
    }

    /// Moves the sequences of the next step into groups. Where there are too few pages, the latest sequences give theirs up: the
    /// first one always goes on.
    fn schedule(&mut self) -> Vec<Group> {
        self.step += u64::from(!self.running.is_empty());
        let claims: Vec<Claim> = self.running.iter_mut().map(Sequence::claim).collect();
        let mut tokens = vec![0; claims.len()];
        for share in choose(&claims, self.admission.config.step_tokens) {
            tokens[share.index] = share.tokens;
        }
        let mut chosen = Vec::new();
        let mut left: VecDeque<_> = std::mem::take(&mut self.running).into_iter().zip(tokens).collect();
        while let Some((mut sequence, tokens)) = left.pop_front() {
            if tokens == 0 {
                self.running.push(sequence);
                continue;
            }
            sequence.served = self.step;
            let segments = loop {
                let segments = sequence.segments(tokens, &mut self.pool);
                match (segments, left.pop_back()) {
                    (None, Some((latest, _))) => self.preempt(latest),
                    (segments, latest) => {
                        left.extend(latest);
                        break segments;
                    }
                }
            };
            match segments {
                Some(segments) => chosen.push((sequence, segments)),
                None => self.preempt(sequence),
            }
        }
        Group::of(chosen, &self.admission.materialised)
    }

    /// Takes a sequence's pages and lets it wait again, before all others.
    fn preempt(&mut self, mut sequence: Sequence) {
        self.tally.preempted += 1;
        sequence.pause(&mut self.pool);
        self.admission.put_back(sequence);
    }

    fn deliver(&mut self, group: Group) {
        let now = Instant::now();
        for mut member in group.members {
            member.sequence.note(&mut self.pool);
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
        let (running, step, tally) = (self.running.len(), self.step, self.tally);
        let (pages_used, pages_idle) = (self.pool.used(), self.pool.idle());
        self.admission.report(|status| {
            status.running = running;
            (status.pages_used, status.pages_idle) = (pages_used, pages_idle);
            (status.preempted, status.tokens_reused) = (tally.preempted, tally.reused);
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
