//! The model thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Error;
use super::admission::Admission;
use super::pace::Pace;
use super::pages::Pool;
use super::scheduler::{Account, Claim, Step, choose, short};
use super::sequence::{BoxedSequence, Sequence};
use super::step::{Failure, Group};
use crate::model::kv_cache::KvCache;

/// What the model thread owns, but for the cache.
pub struct Runner {
    admission: Arc<Admission>,
    pool: Pool,
    /// In the order in which they started. Those of the step under way are not among them.
    running: Vec<BoxedSequence>,
    /// Steps so far.
    step: u64,
    pace: Pace,
    /// Steps that may still be kept short.
    short_steps: u32,
    tally: Tally,
    /// There was no room for somebody who could have started.
    crowded: bool,
    /// Why nothing can be evaluated any more.
    lost: Option<String>,
}

/// Steps kept short that may follow one another: enough for a first block. Every full step gives one back, so that no more
/// than half of all steps are short.
const SHORT_STEPS: u32 = 32;

/// What running sequences ask of a step.
struct Claims {
    /// Indices of those that are not paused.
    ready: Vec<usize>,
    /// One for each of them.
    claims: Vec<Claim>,
    accounts: Vec<Account>,
}

/// What there is for sequences that are to start.
struct Room {
    places: usize,
    pages: usize,
    page_tokens: usize,
}

impl Room {
    fn take(&mut self, next: &Sequence) -> bool {
        let pages = self
            .pages
            .checked_sub(next.pages_to_start(self.page_tokens));
        let fits = pages.filter(|_| self.places > 0);
        self.pages = fits.unwrap_or(self.pages);
        self.places -= usize::from(fits.is_some());
        fits.is_some()
    }
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
    pub fn new(admission: Arc<Admission>, cache: &KvCache) -> Self {
        let pool = Pool::new(
            cache.pages(),
            cache.page_tokens(),
            admission.config.prefix_reuse,
        );
        Runner {
            admission,
            pool,
            running: Vec::new(),
            step: 0,
            pace: Pace::default(),
            short_steps: SHORT_STEPS,
            tally: Tally::default(),
            crowded: false,
            lost: None,
        }
    }

    /// Schedule, forward, sample, deliver, until the engine is drained or the device is lost.
    pub fn run(mut self, mut cache: KvCache) {
        while self.lost.is_none() && self.admit() {
            let claims = self.claims();
            self.step(&claims, &mut cache);
        }
    }

    /// The tokens of the next step: few where somebody waits for a first block, as long as steps may be kept short.
    fn budget(&mut self, claims: &Claims) -> usize {
        let all = self.admission.config.step_tokens;
        let budget = short(&claims.claims, all);
        if budget == all {
            self.short_steps = (self.short_steps + 1).min(SHORT_STEPS);
            return all;
        }
        match self.short_steps.checked_sub(1) {
            Some(left) => {
                self.short_steps = left;
                budget
            }
            None => {
                self.short_steps = 1;
                all
            }
        }
    }

    fn step(&mut self, claims: &Claims, cache: &mut KvCache) {
        let begun = Instant::now();
        let ready = claims.ready.len();
        let budget = self.budget(claims);
        let groups = self.schedule(claims, budget);
        let took_part = groups.iter().map(|group| group.members.len()).sum();
        for group in groups {
            match self.lost.clone() {
                None => self.evaluate(group, cache),
                Some(detail) => self.fail(group, &detail),
            }
        }
        if took_part > 0 {
            self.pace.record(begun.elapsed(), ready, took_part);
        }
    }

    fn evaluate(&mut self, mut group: Group, cache: &mut KvCache) {
        let begun = Instant::now();
        match group.forward(cache) {
            Ok(outcome) => {
                group.learn(&self.admission.materialised, begun.elapsed());
                group.sample(&outcome);
                self.deliver(group);
            }
            Err(Failure { detail, lost }) => {
                self.fail(group, &detail);
                self.lost = lost.then_some(detail);
            }
        }
    }

    /// Drops sequences that nobody waits for.
    fn drop_over(&mut self) {
        let now = Instant::now();
        let (best, stall) = (
            self.pace.measured().map(|pace| pace.best),
            self.admission.config.stall,
        );
        for mut sequence in std::mem::take(&mut self.running) {
            match sequence.over(now, best, stall) {
                None => self.running.push(sequence),
                Some(error) => self.give_up(sequence, error),
            }
        }
    }

    /// Has one of those that have places make room for the next that waits, where all are taken and not as they should be shared.
    fn make_room(&mut self) {
        let running = self.running.iter();
        let placed: Vec<_> = running
            .map(|sequence| (sequence.id, &sequence.tenant))
            .collect();
        if placed.len() < self.admission.config.max_running {
            return;
        }
        if let Some(victim) = self.admission.victim(&placed) {
            let latest = self.running.remove(victim);
            self.preempt(latest);
        }
    }

    fn room(&self) -> Room {
        let running = self.running.len();
        Room {
            places: self.admission.config.max_running.saturating_sub(running),
            // Whoever runs may need another page soon.
            pages: self.pool.available().saturating_sub(running),
            page_tokens: self.pool.page_tokens(),
        }
    }

    fn begin(&mut self, started: Vec<BoxedSequence>) {
        let now = Instant::now();
        for mut sequence in started {
            self.tally.reused += sequence.start(&mut self.pool, self.step, now) as u64;
            self.running.push(sequence);
        }
    }

    /// Drops sequences that nobody waits for, and lets in as many as there is room for. Waits while there is nothing to do;
    /// false once there never will be.
    fn admit(&mut self) -> bool {
        self.drop_over();
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
        self.make_room();
        let mut room = self.room();
        let Some(arrivals) = self
            .admission
            .arrivals(&self.running, |next| room.take(next))
        else {
            return false;
        };
        self.crowded = arrivals.crowded;
        self.begin(arrivals.started);
        for (sequence, error) in arrivals.given_up {
            self.give_up(sequence, error);
        }
        true
    }

    /// What the running sequences ask of the next step. Whoever is paused asks nothing.
    fn claims(&mut self) -> Claims {
        let ready: Vec<usize> = (0..self.running.len())
            .filter(|&index| self.running[index].paused.is_none())
            .collect();
        let tenants = ready.iter().map(|&index| &self.running[index].tenant);
        let (accounts_of, accounts) = self.admission.ledger(|ledger| ledger.accounts(tenants));
        let mut alone = vec![0; accounts.len()];
        accounts_of.iter().for_each(|&account| alone[account] += 1);
        let claim = |(&index, &account): (&usize, &usize)| {
            self.running[index].claim(account, alone[account] == 1)
        };
        let claims = ready.iter().zip(&accounts_of).map(claim).collect();
        Claims {
            ready,
            claims,
            accounts,
        }
    }

    /// Moves the sequences of the next step into groups. Where there are too few pages, the latest sequences give theirs up: the
    /// first one always goes on.
    fn schedule(&mut self, of: &Claims, budget: usize) -> Vec<Group> {
        self.step += u64::from(!of.ready.is_empty());
        let Step {
            shares,
            passed_over,
        } = choose(&of.claims, &of.accounts, budget, self.step);
        let mut tokens = vec![0; self.running.len()];
        for share in shares {
            tokens[of.ready[share.index]] = share.tokens;
        }
        for (claim, &index) in of.ready.iter().enumerate() {
            self.running[index].passed_over = passed_over.contains(&claim);
        }
        let mut chosen = Vec::new();
        let mut left: VecDeque<_> = std::mem::take(&mut self.running)
            .into_iter()
            .zip(tokens)
            .collect();
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
                    chosen.push((sequence, segments));
                }
                None => self.preempt(sequence),
            }
        }
        self.admission.ledger(|ledger| {
            for (sequence, segments) in &chosen {
                let tokens = segments.iter().map(|segment| segment.tokens.len()).sum();
                ledger.charge(&sequence.tenant, tokens);
            }
        });
        Group::of(chosen, &self.admission.materialised)
    }

    /// Takes a sequence's pages and lets it wait again, before all others.
    fn preempt(&mut self, mut sequence: BoxedSequence) {
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
            let payer = &member.sequence.tenant.payer;
            if tokens > 0 {
                self.admission.ledger(|ledger| ledger.made(payer, tokens));
            }
            if ended {
                self.tally.finished += 1;
                self.tally.took(member.sequence.computed(now));
                if let Some(made) = member.sequence.evaluations_made() {
                    self.admission.ledger(|ledger| ledger.took(payer, made));
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

    fn give_up(&mut self, sequence: BoxedSequence, error: Error) {
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
        self.running
            .iter()
            .filter(|sequence| sequence.paused.is_some())
            .count()
    }

    fn report(&self) {
        let (step, tally, paused) = (self.step, self.tally, self.paused());
        let (pages_used, pages_idle) = (self.pool.used(), self.pool.idle());
        let running = self.admission.ledger(|ledger| {
            let sequences = self.running.iter();
            ledger
                .work(sequences.map(|one| (&one.tenant, |usual| one.usual_evaluations_left(usual))))
        });
        let count = self.running.len();
        self.admission
            .report(running, self.pace.measured(), |status| {
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
        let before = if self.finished > 1 {
            self.typical_compute
        } else {
            time
        };
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
