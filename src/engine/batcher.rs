//! The batcher: which sequences run, which pages they hold, and what the next step has of each. A state machine that takes time as
//! an argument; the model thread owns it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::config::EngineConfig;
use super::door::Door;
use super::ledger::{Order, Tenant};
use super::pages::PagePool;
use super::request::Priority;
use super::schedule::{Claim, RunningSequence, StepShare, choose, short, victim};
use super::sequence::{Failed, Job, Sequence};

/// Steps kept short that may follow one another: enough for a first block. Every full step gives one back, so that no more
/// than half of all steps are short.
const SHORT_STEPS: u32 = 32;

pub struct Batcher<J> {
    /// In the order in which they came. Those of the step under way are not among them.
    running: Vec<Box<Sequence<J>>>,
    pool: PagePool,
    places: usize,
    step_tokens: usize,
    stall: Duration,
    /// Steps so far.
    steps: u64,
    /// Steps that may still be kept short.
    short_steps: u32,
    /// Times that a running sequence had to give its pages up.
    preempted: u64,
    /// Tokens of texts that were in the cache already.
    reused: u64,
}

/// A sequence's part of a step.
pub struct StepPart<J> {
    pub sequence: Box<Sequence<J>>,
    /// Tokens that it may bring.
    pub tokens: usize,
}

impl<J: Job> Batcher<J> {
    /// One for a cache of so many pages.
    pub fn new(config: &EngineConfig, pages: usize) -> Self {
        Batcher {
            running: Vec::new(),
            pool: PagePool::new(pages, config.page_tokens, config.prefix_reuse),
            places: config.max_running,
            step_tokens: config.step_tokens,
            stall: config.stall,
            steps: 0,
            short_steps: SHORT_STEPS,
            preempted: 0,
            reused: 0,
        }
    }

    pub fn running(&self) -> impl ExactSizeIterator<Item = &Sequence<J>> + Clone {
        self.running.iter().map(|sequence| &**sequence)
    }

    /// Whether somebody runs who does not wait for its reader.
    pub fn can_go_on(&self) -> bool {
        self.running().any(|sequence| sequence.paused.is_none())
    }

    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn preempted(&self) -> u64 {
        self.preempted
    }

    pub fn reused(&self) -> u64 {
        self.reused
    }

    /// Takes out, here and at the door, whatever nobody waits for any more.
    pub fn retire(&mut self, door: &mut Door<J>, now: Instant) -> Vec<Failed<J>> {
        let mut over = door.overdue(now);
        for mut sequence in std::mem::take(&mut self.running) {
            match sequence.over(now, &door.throughput, self.stall) {
                None => self.running.push(sequence),
                Some(error) => {
                    self.end(&mut sequence);
                    door.failed(&sequence, &error);
                    over.push((sequence, error));
                }
            }
        }
        over
    }

    /// Lets in as many as there is room for. Who waits for a reader leaves its place and its pages to who does not, and one of a
    /// variant that has too many places leaves its own to one that has too few.
    pub fn admit(&mut self, door: &mut Door<J>, now: Instant) {
        self.running.sort_by_key(|sequence| sequence.id);
        if self.running.len() >= self.places
            && let Some(victim) = self.victim(door)
        {
            let latest = self.running.remove(victim);
            self.preempt(door, latest);
        }
        if self.let_in(door, now) {
            let paused = self
                .running
                .extract_if(.., |sequence| sequence.paused.is_some());
            let paused: Vec<_> = paused.collect();
            let again = !paused.is_empty();
            paused
                .into_iter()
                .for_each(|sequence| self.preempt(door, sequence));
            if again {
                self.let_in(door, now);
            }
        }
    }

    /// True if somebody is left who could have started.
    fn let_in(&mut self, door: &mut Door<J>, now: Instant) -> bool {
        let placed: Vec<Tenant> = self.running.iter().map(|one| one.tenant.clone()).collect();
        let mut places = self.places.saturating_sub(placed.len());
        // Whoever runs may need another page soon.
        let mut pages = self.pool.available().saturating_sub(placed.len());
        let page_tokens = self.pool.page_tokens();
        let room = |next: &Sequence<J>| {
            let left = pages.checked_sub(next.pages_to_start(page_tokens));
            match left.filter(|_| places > 0) {
                Some(left) => (places, pages) = (places - 1, left),
                None => return false,
            }
            true
        };
        let mut started = Vec::new();
        let crowded = door.start(&placed, room, |next| started.push(next));
        for mut sequence in started {
            self.start(&mut sequence, now);
            self.running.push(sequence);
        }
        crowded
    }

    /// Leaves the queue, the first time or again, and holds what others have computed of its text already.
    fn start(&mut self, sequence: &mut Sequence<J>, now: Instant) {
        sequence.served = self.steps;
        sequence.started.get_or_insert(now);
        let mut known = 0;
        if let Some((owner, text, _)) = sequence.job.text() {
            known = sequence.table.begin(&mut self.pool, owner, text);
        }
        sequence.job.start(sequence.id, known);
        sequence.demand = sequence.job.demand();
        self.reused += known as u64;
    }

    /// Index of the running sequence that is to make room for the next one that waits, if any, where no place is free.
    fn victim(&self, door: &Door<J>) -> Option<usize> {
        let (waiting, ledger) = (|| door.ready().map(|(_, tenant)| tenant), &door.ledger);
        let placed = || self.running.iter().map(|sequence| &sequence.tenant);
        let next = Order::new(ledger, placed()).next(waiting().enumerate())?;
        let (accounts_of, accounts) = ledger.accounts(waiting().chain(placed()));
        let mut wanted = vec![0; accounts.len()];
        for (tenant, &account) in waiting().zip(&accounts_of) {
            wanted[account] += usize::from(tenant.priority == Priority::Interactive);
        }
        let ids = self.running.iter().map(|sequence| sequence.id);
        let started = waiting().map(|_| u64::MAX).chain(ids);
        let tenants = waiting().chain(placed()).zip(&accounts_of);
        let place = |((tenant, &account), started): ((&Tenant, &usize), u64)| RunningSequence {
            account,
            priority: tenant.priority,
            started,
        };
        let mut places: Vec<RunningSequence> = tenants.zip(started).map(place).collect();
        let running = places.split_off(waiting().count());
        let victim = victim(
            &running,
            *places.get(next)?,
            &wanted,
            &accounts,
            self.places,
        )?;
        // Not where it would be the next one itself.
        let others = placed().enumerate().filter(|(index, _)| *index != victim);
        let after = Order::new(ledger, others.map(|(_, tenant)| tenant));
        let own = (None, &self.running.get(victim)?.tenant);
        let all = std::iter::once(own).chain(waiting().map(|tenant| (Some(()), tenant)));
        after.next(all)?.map(|()| victim)
    }

    /// Takes out whoever is in the next step, with pages for it. Where there are too few pages, the latest sequences give theirs up:
    /// the first one always goes on.
    pub fn choose(&mut self, door: &mut Door<J>) -> Vec<StepPart<J>> {
        let (ready, shares) = self.share(door);
        self.steps += u64::from(!ready.is_empty());
        let mut tokens = vec![0; self.running.len()];
        for share in shares {
            tokens[ready[share.index]] = share.tokens;
        }
        let mut parts = Vec::new();
        let mut left: VecDeque<_> = std::mem::take(&mut self.running)
            .into_iter()
            .zip(tokens)
            .collect();
        while let Some((mut sequence, charged)) = left.pop_front() {
            if charged == 0 {
                self.running.push(sequence);
                continue;
            }
            sequence.served = self.steps;
            let tokens = charged / sequence.tenant.parts.max(1);
            let reach = sequence.job.reach(tokens);
            let mut held = sequence.table.cover(&mut self.pool, reach.start, reach.end);
            while !held && let Some((latest, _)) = left.pop_back() {
                self.preempt(door, latest);
                held = sequence.table.cover(&mut self.pool, reach.start, reach.end);
            }
            match held {
                true => parts.push(StepPart { sequence, tokens }),
                false => self.preempt(door, sequence),
            }
        }
        parts
    }

    /// The indices of those that could be in the next step, and what each is given of it. Whoever is paused asks nothing.
    fn share(&mut self, door: &Door<J>) -> (Vec<usize>, Vec<StepShare>) {
        let ready = (0..self.running.len()).filter(|&index| self.running[index].paused.is_none());
        let ready: Vec<usize> = ready.collect();
        let sequences = || ready.iter().map(|&index| &*self.running[index]);
        let (accounts_of, accounts) = door.ledger.accounts(sequences().map(|one| &one.tenant));
        let mut alone = vec![0; accounts.len()];
        accounts_of.iter().for_each(|&account| alone[account] += 1);
        let claim = |(one, &account): (&Sequence<J>, &usize)| Claim {
            account,
            priority: one.tenant.priority,
            tokens: one.tenant.charge(one.demand.tokens),
            elastic: one.demand.elastic,
            served: one.served,
            urgent: one.demand.first_block
                && one.tenant.priority == Priority::Interactive
                && alone[account] == 1,
        };
        let claims: Vec<Claim> = sequences().zip(&accounts_of).map(claim).collect();
        let budget = short(&claims, self.step_tokens);
        let budget = self.keep_short(budget);
        let shares = choose(&claims, &accounts, budget, self.steps + 1);
        (ready, shares)
    }

    /// The tokens of a step that would be kept as short as this, as long as steps may be.
    fn keep_short(&mut self, budget: usize) -> usize {
        let is_short = budget < self.step_tokens && self.short_steps > 0;
        self.short_steps = match is_short {
            true => self.short_steps - 1,
            false => (self.short_steps + 1).min(SHORT_STEPS),
        };
        if is_short { budget } else { self.step_tokens }
    }

    /// Takes a sequence's pages and lets it wait again, before all others.
    fn preempt(&mut self, door: &mut Door<J>, mut sequence: Box<Sequence<J>>) {
        self.preempted += 1;
        self.end(&mut sequence);
        sequence.job.stop();
        door.put_back(sequence);
    }

    /// A sequence goes on after a step. What it has written is known to others that begin alike.
    pub fn go_on(&mut self, mut sequence: Box<Sequence<J>>) {
        if let Some((owner, text, written)) = sequence.job.text() {
            sequence.table.note(&mut self.pool, owner, &text[..written]);
        }
        sequence.demand = sequence.job.demand();
        self.running.push(sequence);
    }

    /// Takes back a sequence's pages.
    pub fn end(&mut self, sequence: &mut Sequence<J>) {
        if let Some((owner, text, written)) = sequence.job.text() {
            sequence.table.note(&mut self.pool, owner, &text[..written]);
        }
        sequence.table.end(&mut self.pool);
    }

    /// All that run, without their pages.
    pub fn empty(&mut self) -> Vec<Box<Sequence<J>>> {
        let mut running = std::mem::take(&mut self.running);
        running.iter_mut().for_each(|sequence| self.end(sequence));
        running
    }
}
