//! The model thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Error;
use super::admission::Admission;
use super::ledger::Tenant;
use super::pace::{Allowance, Pace};
use super::pages::Pool;
use super::scheduler::{Account, Claim, Step, choose, short};
use super::sequence::{BoxedSequence, Sequence};
use super::step::{Failure, Group, Member};
use crate::model::kv_cache::KvCache;

/// What the model thread owns, but for the cache.
pub struct Runner {
    admission: Arc<Admission>,
    pool: Pool,
    /// In the order in which they started. Those of the step under way are not among them.
    running: Vec<BoxedSequence>,
    /// Those of the step under way, where others may have steps of their own inside it.
    away: Vec<Away>,
    /// Steps so far.
    step: u64,
    pace: Pace,
    allowance: Allowance,
    /// Time that went to steps inside others.
    inside: Duration,
    tally: Tally,
    /// There was no room for somebody who could have started.
    crowded: bool,
    /// Why nothing can be evaluated any more.
    lost: Option<String>,
}

/// A sequence that takes part in the step under way.
struct Away {
    id: u64,
    tenant: Tenant,
    /// Its place is somebody else's when the step is over.
    leaves: bool,
}

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
            away: Vec::new(),
            step: 0,
            pace: Pace::default(),
            allowance: Allowance::new(),
            inside: Duration::ZERO,
            tally: Tally::default(),
            crowded: false,
            lost: None,
        }
    }

    /// Schedule, forward, sample, deliver, until the engine is drained or the device is lost.
    pub fn run(mut self, mut cache: KvCache) {
        while self.lost.is_none() && self.admit() {
            let claims = self.claims();
            let short = self.short(&claims);
            self.step(&claims, short, &mut cache);
        }
    }

    /// The tokens of a step that is kept short for those whom somebody waits for, if there are any and time for it.
    fn short(&self, claims: &Claims) -> Option<usize> {
        let all = self.admission.config.step_tokens;
        let budget = short(&claims.claims, all);
        (self.allowance.is_left() && budget < all).then_some(budget)
    }

    /// One step of about as many tokens as it may have, or as a `short` one has.
    fn step(&mut self, claims: &Claims, short: Option<usize>, cache: &mut KvCache) {
        let begun = self.now();
        let outer = self.away.is_empty();
        let ready = claims.ready.len() + self.away.len();
        let groups = self.schedule(claims, short.unwrap_or(self.admission.config.step_tokens));
        let members = || groups.iter().flat_map(|group| &group.members);
        let took_part = members().count();
        if outer {
            let away = |member: &Member| Away {
                id: member.sequence.id,
                tenant: member.sequence.tenant.clone(),
                leaves: false,
            };
            self.away = members().map(away).collect();
        }
        for group in groups {
            match self.lost.clone() {
                None => self.evaluate(group, outer, cache),
                Some(detail) => self.fail(group, &detail),
            }
        }
        if took_part > 0 {
            let took = self.since(begun);
            self.pace.record(took, ready, took_part);
            self.allowance
                .record(took, short.is_some() && took_part < ready);
        }
    }

    /// Now, and the time that went to steps inside others until now.
    fn now(&self) -> (Instant, Duration) {
        (Instant::now(), self.inside)
    }

    /// The time since then, but for steps inside.
    fn since(&self, (begun, inside): (Instant, Duration)) -> Duration {
        begun.elapsed().saturating_sub(self.inside - inside)
    }

    fn evaluate(&mut self, mut group: Group, outer: bool, cache: &mut KvCache) {
        let begun = self.now();
        let mut broken = None;
        let outcome = group.forward(cache, &mut |cache| {
            if outer && broken.is_none() {
                // Not to be taken for a panic of the network.
                broken = catch_unwind(AssertUnwindSafe(|| self.between(cache))).err();
            }
        });
        if let Some(panic) = broken {
            resume_unwind(panic);
        }
        match outcome {
            Ok(outcome) => {
                group.learn(&self.admission.materialised, self.since(begun));
                group.sample(&outcome);
                self.deliver(group);
            }
            Err(Failure { detail, lost }) => {
                self.fail(group, &detail);
                self.lost = lost.then_some(detail);
            }
        }
    }

    /// Inside a step, between two parts of it: who has come since it began and is all that its variant has running gets its first
    /// block now, from steps of its own.
    fn between(&mut self, cache: &mut KvCache) {
        if !self.allowance.is_left() || !self.admission.has_called() {
            return;
        }
        let begun = Instant::now();
        self.make_room();
        let mut room = self.room();
        let running = self.running.iter().map(|sequence| &sequence.tenant);
        let placed: Vec<_> = running
            .chain(self.away.iter().map(|away| &away.tenant))
            .collect();
        let alone = |next: &Sequence| !placed.iter().any(|tenant| tenant.shares_with(&next.tenant));
        let admit = |next: &Sequence| next.is_waited_for() && alone(next) && room.take(next);
        let started = self.admission.callers(&placed, admit);
        self.begin(started);
        while self.lost.is_none() {
            let claims = self.claims();
            let short = self.short(&claims);
            if short.is_none() {
                break;
            }
            self.step(&claims, short, cache);
            self.drop_over();
        }
        self.inside += begun.elapsed();
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
        let running = self
            .running
            .iter()
            .map(|sequence| (sequence.id, &sequence.tenant));
        let away = self.away.iter().filter(|away| !away.leaves);
        let placed: Vec<_> = running
            .chain(away.map(|away| (away.id, &away.tenant)))
            .collect();
        if placed.len() < self.admission.config.max_running {
            return;
        }
        let Some(victim) = self.admission.victim(&placed) else {
            return;
        };
        let id = placed[victim].0;
        match self.away.iter_mut().find(|away| away.id == id) {
            Some(away) => away.leaves = true,
            None => {
                let latest = self.running.remove(victim);
                self.preempt(latest);
            }
        }
    }

    fn room(&self) -> Room {
        let away = self.away.iter().filter(|away| !away.leaves).count();
        Room {
            places: (self.admission.config.max_running).saturating_sub(self.running.len() + away),
            // Whoever runs may need another page soon.
            pages: (self.pool.available()).saturating_sub(self.running.len() + self.away.len()),
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
        let tenants = tenants.chain(self.away.iter().map(|away| &away.tenant));
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

    /// A sequence's part of a step is over. Returns whether somebody else has its place.
    fn back(&mut self, id: u64) -> bool {
        let away = self.away.iter().position(|away| away.id == id);
        away.is_some_and(|index| self.away.swap_remove(index).leaves)
    }

    fn deliver(&mut self, group: Group) {
        let now = Instant::now();
        for mut member in group.members {
            let leaves = self.back(member.sequence.id);
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
            } else if leaves {
                self.preempt(member.sequence);
            } else {
                self.running.push(member.sequence);
            }
        }
    }

    /// The network failed: so do the sequences that took part, and nothing else.
    fn fail(&mut self, group: Group, detail: &str) {
        for member in group.members {
            let request_id = member.sequence.id;
            self.back(request_id);
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
