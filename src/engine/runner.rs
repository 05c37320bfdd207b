//! The model thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Error;
use super::admission::{Admission, Work};
use super::pace::{Allowance, Pace};
use super::pages::Pool;
use super::scheduler::{Claim, Step, choose, short};
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
    pace: Pace,
    allowance: Allowance,
    tally: Tally,
    /// There was no room for somebody who could have started.
    crowded: bool,
    /// Why nothing can be evaluated any more.
    lost: Option<String>,
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    tokens: u64,
    finished: u64,
    cancelled: u64,
    late: u64,
    stalled: u64,
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
            pace: Pace::default(),
            allowance: Allowance::new(),
            tally: Tally::default(),
            crowded: false,
            lost: None,
        }
    }

    /// Schedule, forward, sample, deliver, until the engine is drained or the device is lost.
    pub fn run(mut self) {
        while self.lost.is_none() && self.admit() {
            let (begun, before) = (Instant::now(), self.running.len());
            let (groups, short) = self.schedule();
            let (took_part, ready) = (before - self.running.len(), before - self.paused());
            for mut group in groups {
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
            if took_part > 0 {
                let took = begun.elapsed();
                self.pace.record(took, ready, took_part);
                self.allowance.record(took, short && took_part < ready);
            }
        }
    }

    /// Drops sequences that nobody waits for, and lets in as many as there is room for. Waits while there is nothing to do;
    /// false once there never will be.
    fn admit(&mut self) -> bool {
        let now = Instant::now();
        let (best, stall) = (self.pace.measured().map(|pace| pace.best), self.admission.config.stall);
        for mut sequence in std::mem::take(&mut self.running) {
            match sequence.over(now, best, stall) {
                None => self.running.push(sequence),
                Some(error) => self.give_up(sequence, error),
            }
        }
        self.running.sort_by_key(|sequence| sequence.id);
        self.admission.materialised.sweep();
        self.report();

        if self.crowded {
            // Who waits for a reader leaves its place and its pages to who does not.
            for sequence in std::mem::take(&mut self.running) {
                match sequence.paused {
                    None => self.running.push(sequence),
                    Some(_) => self.preempt(sequence),
                }
            }
        }
        let max_running = self.admission.config.max_running;
        if self.running.len() >= max_running
            && let Some(index) = self.admission.victim(&self.running)
        {
            let latest = self.running.remove(index);
            self.preempt(latest);
        }
        // Whoever runs may need another page soon.
        let mut spare = self.pool.available().saturating_sub(self.running.len());
        let mut slots = max_running.saturating_sub(self.running.len());
        let page_tokens = self.pool.page_tokens();
        let room = |next: &Sequence| {
            let left = spare
                .checked_sub(next.pages_to_start(page_tokens))
                .filter(|_| slots > 0);
            spare = left.unwrap_or(spare);
            slots -= usize::from(left.is_some());
            left.is_some()
        };
        let Some(arrivals) = self.admission.arrivals(&self.running, room) else {
            return false;
        };
        self.crowded = arrivals.crowded;
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

    /// How many tokens each running sequence may bring to the next step, and whether that is kept short. Whoever is paused
    /// brings none.
    fn plan(&mut self) -> (Vec<usize>, bool) {
        let ready: Vec<usize> = (0..self.running.len())
            .filter(|&index| self.running[index].paused.is_none())
            .collect();
        self.step += u64::from(!ready.is_empty());
        let tenants = ready.iter().map(|&index| &self.running[index].tenant);
        let (accounts_of, accounts) = self.admission.ledger(|ledger| ledger.accounts(tenants));
        let mut alone = vec![0; accounts.len()];
        accounts_of.iter().for_each(|&account| alone[account] += 1);
        let claim = |(&index, &account): (&usize, &usize)| self.running[index].claim(account, alone[account] == 1);
        let claims: Vec<Claim> = ready.iter().zip(&accounts_of).map(claim).collect();
        let all = self.admission.config.step_tokens;
        let budget = if self.allowance.is_left() {
            short(&claims, all)
        } else {
            all
        };
        let Step { shares, passed_over } = choose(&claims, &accounts, budget, self.step);
        let mut tokens = vec![0; self.running.len()];
        for share in shares {
            tokens[ready[share.index]] = share.tokens;
        }
        for (claim, &index) in ready.iter().enumerate() {
            self.running[index].passed_over = passed_over.contains(&claim);
        }
        (tokens, budget < all)
    }

    /// Moves the sequences of the next step into groups. Where there are too few pages, the latest sequences give theirs up: the
    /// first one always goes on. Also says whether the step is kept short.
    fn schedule(&mut self) -> (Vec<Group>, bool) {
        let (tokens, short) = self.plan();
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
                Some(segments) => {
                    let tokens = segments.iter().map(|segment| segment.tokens.len()).sum();
                    self.admission.ledger(|ledger| ledger.charge(&sequence.tenant, tokens));
                    chosen.push((sequence, segments));
                }
                None => self.preempt(sequence),
            }
        }
        (Group::of(chosen, &self.admission.materialised), short)
    }

    /// Takes a sequence's pages and lets it wait again, before all others.
    fn preempt(&mut self, mut sequence: Sequence) {
        self.tally.preempted += 1;
        sequence.give_up_pages(&mut self.pool);
        self.admission.put_back(sequence);
    }

    fn deliver(&mut self, group: Group) {
        let now = Instant::now();
        for mut member in group.members {
            member.sequence.note(&mut self.pool);
            let (tokens, ended) = member.sequence.deliver(member.after, now);
            self.tally.tokens += tokens as u64;
            if tokens > 0 {
                self.admission
                    .ledger(|ledger| ledger.made(&member.sequence.tenant.variant, tokens));
            }
            if ended {
                self.tally.finished += 1;
                self.tally.took(member.sequence.computed(now));
                if let Some(made) = member.sequence.evaluations_made() {
                    let variant = &member.sequence.tenant.variant;
                    self.admission.ledger(|ledger| ledger.took(variant, made));
                }
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
            Error::Cancelled => self.tally.cancelled += 1,
            Error::DeadlinePassed { .. } | Error::DeadlineOutOfReach { .. } => self.tally.late += 1,
            Error::Stalled { .. } => self.tally.stalled += 1,
            _ => self.tally.failed += 1,
        }
        sequence.fail(error, &mut self.pool);
    }

    /// Sequences that wait for their readers.
    fn paused(&self) -> usize {
        self.running.iter().filter(|sequence| sequence.paused.is_some()).count()
    }

    fn report(&self) {
        let (step, tally, paused) = (self.step, self.tally, self.paused());
        let (pages_used, pages_idle) = (self.pool.used(), self.pool.idle());
        let running: Vec<Work> = self.admission.ledger(|ledger| {
            let work = |sequence: &Sequence| Work {
                tenant: sequence.tenant.clone(),
                evaluations: sequence.usual_evaluations_left(ledger.usual(&sequence.tenant.variant)),
            };
            self.running.iter().map(work).collect()
        });
        let count = running.len();
        self.admission.report(running, self.pace.measured(), |status| {
            status.running = count;
            status.paused = paused;
            status.late = tally.late;
            status.stalled = tally.stalled;
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
