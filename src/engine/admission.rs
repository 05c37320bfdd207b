//! The door: checks requests, holds those that wait, and is the only thing that clients and the model thread share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::caps::{Caps, Full};
use super::error::Capped;
use super::handle::VariantLoad;
use super::ledger::{BASE, Ledger, Order, Tenant, Work};
use super::materialised::Materialised;
use super::pace::{Ahead, Measured, TRUSTED};
use super::scheduler::{Place, victim};
use super::sequence::{BoxedSequence, Sequence};
use super::{EngineConfig, Error, Generation, Priority, Status};
use crate::model::kv_cache::KvCache;

pub struct Admission {
    pub config: EngineConfig,
    pub pages_total: usize,
    pub materialised: Arc<Materialised>,
    caps: Arc<Caps>,
    streams: AtomicUsize,
    state: Mutex<State>,
    /// Something has come, or somebody has read.
    arrival: Condvar,
}

struct State {
    generation: Arc<Generation>,
    /// Those that were in force before, while they last.
    before: Vec<Weak<Generation>>,
    waiting: VecDeque<BoxedSequence>,
    ledger: Ledger,
    /// What the model thread last reported.
    status: Status,
    running: Vec<Work>,
    measured: Option<Measured>,
    /// Clients that left and whose requests made room at the door, which the model thread does not know of.
    left: u64,
    last_id: u64,
    stopped: bool,
}

/// What the model thread takes from the queue.
#[derive(Default)]
pub struct Arrivals {
    pub started: Vec<BoxedSequence>,
    /// Waited too long, or their clients left.
    pub given_up: Vec<(BoxedSequence, Error)>,
    /// There was no room for somebody who could start.
    pub crowded: bool,
}

/// Bounds of the retry-after hint.
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(60);

impl Admission {
    pub fn new(
        config: EngineConfig,
        cache: &KvCache,
        generation: Generation,
        materialised: Arc<Materialised>,
    ) -> Self {
        let pages_total = cache.pages();
        let status = Status {
            queue_limit: config.queue,
            max_running: config.max_running,
            pages_total,
            kv_bytes: cache.bytes() as u64,
            kv_on_device: cache.on_device().is_some(),
            ..Status::default()
        };
        let state = State {
            generation: Arc::new(generation),
            before: Vec::new(),
            waiting: VecDeque::new(),
            ledger: Ledger::new(config.weights.clone()),
            status,
            running: Vec::new(),
            measured: None,
            left: 0,
            last_id: 0,
            stopped: false,
        };
        Admission {
            caps: Caps::new(config.max_per_variant, config.max_per_client),
            config,
            pages_total,
            materialised,
            streams: AtomicUsize::new(0),
            state: Mutex::new(state),
            arrival: Condvar::new(),
        }
    }

    /// Nothing is left half done under this lock, so a poisoned one is as good.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn generation(&self) -> Arc<Generation> {
        self.state().generation.clone()
    }

    /// Returns what was in force before, for the caller to drop outside the lock.
    pub fn publish(&self, generation: Arc<Generation>) -> Arc<Generation> {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.generation, generation);
        state.before.retain(|old| old.strong_count() > 0);
        state.before.push(Arc::downgrade(&before));
        let names = state.generation.clone();
        state.ledger.keep(|name| names.variants.contains_key(name));
        before
    }

    /// Lets a checked sequence wait and returns its id, or says why it may not. In a full queue it may take the place of another
    /// whose variant has more there.
    pub fn wait(
        &self,
        mut sequence: BoxedSequence,
        client: Option<Arc<str>>,
        now: Instant,
    ) -> Result<u64, Error> {
        let (mut dead, mut displaced) = (VecDeque::new(), None);
        let mut state = self.state();
        if state.stopped {
            return Err(Error::Stopped);
        }
        if state.status.draining {
            return Err(Error::Draining);
        }
        if state.waiting.len() >= self.config.queue {
            (dead, state.waiting) = state.waiting.drain(..).partition(|one| one.client_left());
            state.left += dead.len() as u64;
        }
        let waiting = state.waiting.len();
        let rounds = (waiting as f64 / self.config.max_running as f64).max(1.0);
        let retry_after = state
            .status
            .typical_compute
            .mul_f64(rounds)
            .clamp(SOONEST, LATEST);
        let full = Error::QueueFull {
            waiting,
            limit: self.config.queue,
            retry_after,
        };
        let place = if waiting < self.config.queue {
            None
        } else {
            Some(state.displaced_by(&sequence.tenant).ok_or_else(|| {
                state.status.refused.queue += 1;
                full.clone()
            })?)
        };
        match self.caps.permit(&sequence.tenant.payer.name, client) {
            Ok(permit) => sequence.permit = Some(permit),
            Err(Full {
                capped,
                count,
                limit,
            }) => {
                let refused = &mut state.status.refused;
                match capped {
                    Capped::Variant(_) => refused.variant += 1,
                    Capped::Client => refused.client += 1,
                }
                return Err(Error::TooMany {
                    capped,
                    count,
                    limit,
                    retry_after,
                });
            }
        }
        if let Some(error) = state.overload(&sequence, &self.config, now) {
            state.status.refused.deadline += 1;
            return Err(error);
        }
        if let Some(index) = place {
            state.status.refused.queue += 1;
            displaced = state.waiting.remove(index);
        }
        state.last_id += 1;
        let id = state.last_id;
        sequence.id = id;
        state.waiting.push_back(sequence);
        drop(state);
        drop::<VecDeque<BoxedSequence>>(dead); // a lease may go with them, so outside the lock
        if let Some(mut displaced) = displaced {
            displaced.tell(full);
        }
        self.arrival.notify_one();
        Ok(id)
    }

    /// Lets a sequence that ran wait again, before all others and whether or not the queue is full.
    pub fn put_back(&self, sequence: BoxedSequence) {
        self.state().waiting.push_front(sequence);
    }

    /// Index of the running sequence, given by its id and tenant, that is to make room for the next one that waits, if any, where
    /// there is no place free.
    pub fn victim(&self, running: &[(u64, &Tenant)]) -> Option<usize> {
        let state = self.state();
        let waiting = || state.ready().map(|(_, tenant)| tenant);
        let placed = || running.iter().map(|(_, tenant)| *tenant);
        let next = Order::new(&state.ledger, placed()).next(waiting().enumerate())?;
        let (accounts_of, accounts) = state.ledger.accounts(waiting().chain(placed()));
        let mut wanted = vec![0; accounts.len()];
        for (tenant, &account) in waiting().zip(&accounts_of) {
            wanted[account] += usize::from(tenant.priority == Priority::Interactive);
        }
        let starts = waiting()
            .map(|_| u64::MAX)
            .chain(running.iter().map(|(id, _)| *id));
        let place = |((tenant, &account), started): ((&Tenant, &usize), u64)| Place {
            account,
            priority: tenant.priority,
            started,
        };
        let mut places: Vec<Place> = waiting()
            .chain(placed())
            .zip(&accounts_of)
            .zip(starts)
            .map(place)
            .collect();
        let places_of_running = places.split_off(waiting().count());
        let victim = victim(
            &places_of_running,
            *places.get(next)?,
            &wanted,
            &accounts,
            self.config.max_running,
        )?;
        // Not where it would be the next one itself.
        let others = placed().enumerate().filter(|(index, _)| *index != victim);
        let after = Order::new(&state.ledger, others.map(|(_, tenant)| tenant));
        let all = std::iter::once((None, running.get(victim)?.1))
            .chain(waiting().map(|tenant| (Some(()), tenant)));
        after.next(all)?.map(|()| victim)
    }

    /// The sequences that may start now, beside those that are running: in the order of their variants' shares, while `room` has some
    /// for the next. Waits for one while there is nothing else to do; `None` once the model thread should end.
    pub fn arrivals(
        &self,
        running: &[BoxedSequence],
        mut room: impl FnMut(&Sequence) -> bool,
    ) -> Option<Arrivals> {
        let mut arrivals = Arrivals::default();
        let placed: Vec<_> = running.iter().map(|sequence| &sequence.tenant).collect();
        let mut state = self.state();
        loop {
            let now = Instant::now();
            state.give_up(now, self.config.stall, &mut arrivals.given_up);
            arrivals.crowded = state.start(&placed, &mut room, &mut arrivals.started);
            let busy = |sequence: &BoxedSequence| sequence.has_room() || sequence.client_left();
            if !arrivals.started.is_empty()
                || !arrivals.given_up.is_empty()
                || running.iter().any(busy)
            {
                return Some(arrivals);
            }
            if arrivals.crowded && !running.is_empty() {
                return Some(arrivals);
            }
            if state.status.draining && state.waiting.is_empty() && running.is_empty() {
                return None;
            }
            // All that run are paused. Some may have until then.
            let ends = running
                .iter()
                .chain(&state.waiting)
                .filter_map(|s| s.ends(self.config.stall));
            state = match ends.min() {
                None => self
                    .arrival
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let rest = end.saturating_duration_since(now);
                    let woken = self.arrival.wait_timeout(state, rest);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            if !running.is_empty() {
                return Some(arrivals);
            }
        }
    }

    /// The model thread looks again at who can go on.
    pub fn wake(&self) {
        drop(self.state()); // it may be on its way to sleep
        self.arrival.notify_one();
    }

    pub fn stream_opened(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub fn stream_closed(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
        self.wake();
    }

    /// Reads or charges what variants have had.
    pub fn ledger<T>(&self, with: impl FnOnce(&mut Ledger) -> T) -> T {
        with(&mut self.state().ledger)
    }

    /// Takes nothing new from now on.
    pub fn close(&self) {
        self.state().status.draining = true;
        self.arrival.notify_one();
    }

    /// The model thread has ended, since the device is `lost` where that is why: whoever still waits will not be served.
    pub fn stop(&self, lost: Option<String>) -> Vec<BoxedSequence> {
        let mut state = self.state();
        state.stopped = true;
        state.status.lost = lost;
        state.status.draining = true;
        state.waiting.drain(..).collect()
    }

    /// Lets the model thread write down how it stands.
    pub fn report(
        &self,
        running: Vec<Work>,
        measured: Option<Measured>,
        write: impl FnOnce(&mut Status),
    ) {
        let mut state = self.state();
        state.running = running;
        state.measured = measured;
        write(&mut state.status);
    }

    pub fn status(&self) -> Status {
        let state = self.state();
        let old = state
            .before
            .iter()
            .map(Weak::strong_count)
            .filter(|&leases| leases > 0);
        let leases = old.clone().sum::<usize>() + Arc::strong_count(&state.generation) - 1;
        Status {
            generation: state.generation.number,
            waiting: state.waiting.len(),
            materialised_bytes: self.materialised.bytes() as u64,
            streams: self.streams.load(Ordering::Relaxed),
            generations: 1 + old.count(),
            leases,
            paused: state.status.paused
                + state
                    .waiting
                    .iter()
                    .filter(|one| one.paused.is_some())
                    .count(),
            variants: state.variants(),
            cancelled: state.status.cancelled + state.left,
            ..state.status.clone()
        }
    }
}

impl State {
    /// Who leaves a full queue for another: of the variant with the most waiting by weight the one that came last, where it has
    /// more than the other's would with one more; a batch request before any other for an interactive one. Whoever has begun stays.
    fn displaced_by(&self, tenant: &Tenant) -> Option<usize> {
        let waiting = self
            .ledger
            .count(self.waiting.iter().map(|one| &one.tenant));
        let crowding = |other: &Tenant, more: usize| {
            let count = waiting(other) + more;
            (
                other.priority,
                count as f64 / self.ledger.weight(&other.payer),
            )
        };
        let more =
            |a: &(Priority, f64), b: &(Priority, f64)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1));
        let candidates = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, one)| one.started.is_none());
        let crowded = candidates.map(|(index, one)| (index, crowding(&one.tenant, 0)));
        let (index, most) = crowded.max_by(|a, b| more(&a.1, &b.1))?; // the last of equals
        more(&most, &crowding(tenant, 1)).is_gt().then_some(index)
    }

    /// Why a request would not be finished in time, as far as can be known.
    fn overload(&self, sequence: &Sequence, config: &EngineConfig, now: Instant) -> Option<Error> {
        let (deadline, measured) = (sequence.deadline?, self.measured?);
        let left = deadline.saturating_duration_since(now);
        let tenant = &sequence.tenant;
        let waiting = (self.waiting.iter())
            .map(|one| (&one.tenant, |usual| one.usual_evaluations_left(usual)));
        let waiting = self.ledger.work(waiting);
        let others = || waiting.iter().chain(&self.running);
        let before = || others().filter(|work| work.priority <= tenant.priority);
        let sum = |of: &mut dyn Iterator<Item = &Work>| of.map(|work| work.evaluations).sum();
        let payers = others().map(|work| &work.payer).chain([&tenant.payer]);
        let running = self
            .running
            .iter()
            .map(|work| work.sequences)
            .sum::<usize>();
        let ahead = Ahead {
            all: sum(&mut before()),
            own: sum(&mut before().filter(|work| Arc::ptr_eq(&work.payer, &tenant.payer))),
            places: config.max_running,
            share: self.ledger.weight(&tenant.payer) / self.ledger.weights(payers),
            free: self.waiting.len() + running < config.max_running,
        };
        let usual = self.ledger.usual(&tenant.payer);
        let needed = ahead.finished_after(sequence.usual_evaluations_left(usual), measured);
        let over = needed.saturating_sub(left.mul_f64(TRUSTED));
        (!over.is_zero()).then(|| Error::Overloaded {
            needed,
            left,
            retry_after: over.clamp(SOONEST, LATEST),
        })
    }

    /// Takes those from the queue that nobody waits for any more, or not long enough.
    fn give_up(
        &mut self,
        now: Instant,
        stall: Duration,
        given_up: &mut Vec<(BoxedSequence, Error)>,
    ) {
        let best = self.measured.map(|measured| measured.best);
        for mut sequence in std::mem::take(&mut self.waiting) {
            match sequence.over(now, best, stall) {
                Some(error) => given_up.push((sequence, error)),
                None => self.waiting.push_back(sequence),
            }
        }
    }

    /// Those that could start: not who has begun and now waits for its reader.
    fn ready(&self) -> impl Iterator<Item = (usize, &Tenant)> + Clone {
        let waiting = self.waiting.iter().enumerate();
        let ready = waiting.filter(|(_, sequence)| sequence.paused.is_none());
        ready.map(|(index, sequence)| (index, &sequence.tenant))
    }

    /// Starts whom there is room for; true if somebody is left.
    fn start(
        &mut self,
        running: &[&Tenant],
        room: &mut impl FnMut(&Sequence) -> bool,
        started: &mut Vec<BoxedSequence>,
    ) -> bool {
        let waiting = self.waiting.iter().map(|sequence| &sequence.tenant);
        self.ledger.settle(running.iter().copied().chain(waiting));
        if self.waiting.is_empty() {
            return false;
        }
        let mut order = Order::new(&self.ledger, running.iter().copied());
        while let Some(index) = order.next(self.ready()) {
            if !self.waiting.get(index).is_some_and(|next| room(next)) {
                return true;
            }
            if let Some(next) = self.waiting.remove(index) {
                order.start(&next.tenant);
                started.push(next);
            }
        }
        false
    }

    fn variants(&self) -> BTreeMap<String, VariantLoad> {
        let served = self
            .generation
            .variants
            .keys()
            .map(String::as_str)
            .chain([BASE]);
        let mut variants: BTreeMap<String, VariantLoad> = served
            .map(|name| (name.to_owned(), VariantLoad::default()))
            .collect();
        for sequence in &self.waiting {
            variants
                .entry(sequence.tenant.payer.name.to_string())
                .or_default()
                .waiting += 1;
        }
        for work in &self.running {
            variants
                .entry(work.payer.name.to_string())
                .or_default()
                .running += work.sequences;
        }
        for (name, load) in &mut variants {
            (load.weight, load.service) = self.ledger.standing(name);
        }
        variants
    }
}
