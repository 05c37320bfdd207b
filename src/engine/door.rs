//! The door: who may wait, who of a full queue leaves for another, and who starts next. A state machine that takes time as an
//! argument: it stands behind a short lock and answers at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::caps::{Caps, Full};
use super::config::EngineConfig;
use super::error::{Capped, Error};
use super::ledger::{Ledger, Order, Tenant, Underway};
use super::request::Priority;
use super::sequence::{Failed, Job, Reader, Sequence};
use super::status::EngineStatus;
use super::throughput::Throughput;

/// Of the time that is left to a request, so much must be enough: estimates err, and what is refused costs less than what is
/// accepted and late.
const TRUSTED: f64 = 0.8;
/// Bounds of the retry-after hint.
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(60);

/// Who waits, and all that is known of variants, clients and times.
pub struct Door<J> {
    config: EngineConfig,
    waiting: VecDeque<Box<Sequence<J>>>,
    /// What runs, as the batcher last said.
    running: Vec<Underway>,
    pub ledger: Ledger,
    pub throughput: Throughput,
    caps: Caps,
    /// What others see, but for what is counted when they look.
    pub status: EngineStatus,
    last_id: u64,
    closed: Option<Error>,
}

/// A request that was let in. Whoever is in here is to be told and dropped outside the lock.
pub struct Entered<J> {
    pub id: u64,
    /// Whose place it took, and what to tell it.
    pub displaced: Option<Failed<J>>,
}

/// Those that left a full queue because their clients had, to be dropped outside the lock.
pub type Gone<J> = VecDeque<Box<Sequence<J>>>;

impl<J: Job> Door<J> {
    pub fn new(config: EngineConfig) -> Self {
        Door {
            waiting: VecDeque::new(),
            running: Vec::new(),
            ledger: Ledger::new(config.weights.clone()),
            throughput: Throughput::default(),
            caps: Caps::new(config.max_per_variant, config.max_per_client),
            status: EngineStatus::default(),
            last_id: 0,
            closed: None,
            config,
        }
    }

    /// Takes nothing new from now on, and says why. One that has stopped stays so.
    pub fn close(&mut self, why: Error) {
        if self.closed != Some(Error::Stopped) {
            self.closed = Some(why);
        }
    }

    pub fn closed(&self) -> Option<&Error> {
        self.closed.as_ref()
    }

    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Sequence<J>> + Clone {
        self.waiting.iter().map(|sequence| &**sequence)
    }

    pub fn running(&self) -> &[Underway] {
        &self.running
    }

    /// Nobody is counted as being in the engine.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.caps.is_empty()
    }

    /// Lets a sequence wait, or says why it may not and gives it back. In a full queue it may take the place of another whose variant
    /// has more there. Whoever is gone leaves a full queue whether or not the sequence is let in.
    pub fn enter(
        &mut self,
        sequence: Box<Sequence<J>>,
        now: Instant,
    ) -> (Result<Entered<J>, Failed<J>>, Gone<J>) {
        let gone = self.clear();
        (self.let_in(sequence, now), gone)
    }

    /// Takes those from a full queue whose clients are gone.
    pub fn clear(&mut self) -> Gone<J> {
        let mut gone = Gone::new();
        if self.waiting.len() >= self.config.queue {
            (gone, self.waiting) = std::mem::take(&mut self.waiting)
                .into_iter()
                .partition(|one| one.job.reader() == Reader::Gone);
            gone.iter()
                .for_each(|one| self.failed(one, &Error::Cancelled));
        }
        gone
    }

    fn let_in(
        &mut self,
        mut sequence: Box<Sequence<J>>,
        now: Instant,
    ) -> Result<Entered<J>, Failed<J>> {
        let displaced = match self.check(&sequence, now) {
            Ok(index) => index,
            Err(error) => return Err((sequence, error)),
        };
        let displaced = displaced.and_then(|index| {
            let error = self.crowded();
            let displaced = self.waiting.remove(index)?;
            self.leave(&displaced);
            Some((displaced, error))
        });
        self.caps
            .enter(&sequence.tenant.payer.name, sequence.client.as_ref());
        self.last_id += 1;
        let id = self.last_id;
        sequence.id = id;
        self.waiting.push_back(sequence);
        Ok(Entered { id, displaced })
    }

    /// Whether a request may wait, and whose place it takes where all are taken.
    fn check(&mut self, sequence: &Sequence<J>, now: Instant) -> Result<Option<usize>, Error> {
        let place = self.room(&sequence.tenant, sequence.client.as_ref())?;
        if let Some(error) = self.overload(sequence, now) {
            self.status.refused.deadline += 1;
            return Err(error);
        }
        Ok(place)
    }

    /// Whether one more of these may wait, and whose place it takes where all are taken.
    ///
    /// # Errors
    /// `QueueFull`, `TooMany`, or why nothing new is taken.
    pub fn room(
        &mut self,
        tenant: &Tenant,
        client: Option<&Arc<str>>,
    ) -> Result<Option<usize>, Error> {
        if let Some(error) = &self.closed {
            return Err(error.clone());
        }
        let mut place = None;
        if self.waiting.len() >= self.config.queue {
            place = self.displaced_by(tenant);
            if place.is_none() {
                return Err(self.crowded());
            }
        }
        let capped = self.caps.check(&tenant.payer.name, client);
        if let Err(Full {
            capped,
            count,
            limit,
        }) = capped
        {
            match capped {
                Capped::Variant(_) => self.status.refused.variant += 1,
                Capped::Client => self.status.refused.client += 1,
            }
            let retry_after = self.retry_after();
            return Err(Error::TooMany {
                capped,
                count,
                limit,
                retry_after,
            });
        }
        Ok(place)
    }

    fn retry_after(&self) -> Duration {
        let rounds = (self.waiting.len() as f64 / self.config.max_running as f64).max(1.0);
        self.status
            .typical_compute
            .mul_f64(rounds)
            .clamp(SOONEST, LATEST)
    }

    /// The refusal of a full queue, which is counted.
    pub fn crowded(&mut self) -> Error {
        self.status.refused.queue += 1;
        Error::QueueFull {
            waiting: self.waiting.len(),
            limit: self.config.queue,
            retry_after: self.retry_after(),
        }
    }

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
        let waiting = self.waiting.iter().enumerate();
        let candidates = waiting.filter(|(_, one)| one.started.is_none());
        let crowded = candidates.map(|(index, one)| (index, crowding(&one.tenant, 0)));
        let (index, most) = crowded.max_by(|a, b| more(&a.1, &b.1))?; // the last of equals
        more(&most, &crowding(tenant, 1)).is_gt().then_some(index)
    }

    /// Why a request would not be finished in time, as far as can be known. Nobody is refused who has nothing ahead.
    ///
    /// It waits for all that is ahead of it, or, since its variant gets its share whatever others have in the queue, for what
    /// is ahead of its own variant in that share: whichever is sooner. Then it makes its own evaluations, in steps that have as much
    /// beside it as those that run now still bring.
    fn overload(&self, sequence: &Sequence<J>, now: Instant) -> Option<Error> {
        let (deadline, tenant) = (sequence.deadline?, &sequence.tenant);
        let waiting = self.waiting.iter();
        let waiting = waiting.map(|one| (&one.tenant, |usual| one.job.evaluations_left(usual)));
        let waiting = self.ledger.underway(waiting, now);
        let others = || waiting.iter().chain(&self.running);
        let running: usize = self.running.iter().map(|one| one.sequences).sum();
        if running + self.waiting.len() == 0 {
            return None;
        }
        let variants = tenant.parts > 0 || self.running.iter().any(|one| !one.payer.is_base());
        // Seconds of a step that has so much to do, or of as many full ones as that takes.
        let most = self.config.step_tokens.max(tenant.cost) as f64;
        let seconds = |rows: f64| {
            let step = self
                .throughput
                .step(rows.min(most) as usize, variants, now)?;
            Some(step.usual.as_secs_f64() * (rows / most).max(1.0))
        };
        let evaluations = sequence
            .job
            .evaluations_left(self.ledger.usual(&tenant.payer, now))
            as f64;
        let step: usize = self.running.iter().map(|one| one.step).sum();
        let left: u64 = self.running.iter().map(|one| one.left).sum();
        let beside = (step as f64).min(left as f64 / evaluations);
        let mut needed = evaluations * seconds(tenant.cost as f64 + beside)?;
        if self.waiting.len() + running >= self.config.max_running {
            let before = || others().filter(|one| one.priority <= tenant.priority);
            let own = |one: &&Underway| Arc::ptr_eq(&one.payer, &tenant.payer);
            let payers = others().map(|one| &one.payer).chain([&tenant.payer]);
            let share = self.ledger.weight(&tenant.payer) / self.ledger.weights(payers);
            let ahead = before().map(|one| one.left as f64).sum::<f64>();
            let ahead_own = before().filter(own).map(|one| one.left as f64).sum::<f64>();
            let step = (step as f64).clamp(1.0, most);
            needed += ahead.min(ahead_own / share) / step * seconds(step)?;
        }
        let needed = Duration::try_from_secs_f64(needed).unwrap_or(Duration::MAX);
        let left = deadline.saturating_duration_since(now);
        let over = needed.saturating_sub(left.mul_f64(TRUSTED));
        (!over.is_zero()).then(|| Error::Overloaded {
            needed,
            left,
            retry_after: over.clamp(SOONEST, LATEST),
        })
    }

    /// Takes those from the queue that nobody waits for any more, or not long enough.
    pub fn overdue(&mut self, now: Instant) -> Vec<Failed<J>> {
        let mut over = Vec::new();
        for mut sequence in std::mem::take(&mut self.waiting) {
            match sequence.over(now, &self.throughput, self.config.stall) {
                Some(error) => over.push((sequence, error)),
                None => self.waiting.push_back(sequence),
            }
        }
        over.iter()
            .for_each(|(sequence, error)| self.failed(sequence, error));
        over
    }

    /// Lets a sequence that ran wait again, before all others and whether or not the queue is full.
    pub fn put_back(&mut self, sequence: Box<Sequence<J>>) {
        self.waiting.push_front(sequence);
    }

    /// Those that could start: not who has begun and now waits for its reader.
    pub fn ready(&self) -> impl Iterator<Item = (usize, &Tenant)> + Clone {
        let waiting = self.waiting.iter().enumerate();
        let ready = waiting.filter(|(_, sequence)| sequence.paused.is_none());
        ready.map(|(index, sequence)| (index, &sequence.tenant))
    }

    /// Starts whom there is room for, in the order of their variants' shares beside those that are `placed`. True if somebody is left
    /// who could have started.
    pub fn start(
        &mut self,
        placed: &[Tenant],
        mut room: impl FnMut(&Sequence<J>) -> bool,
        mut begin: impl FnMut(Box<Sequence<J>>),
    ) -> bool {
        let waiting = self.waiting.iter().map(|sequence| &sequence.tenant);
        self.ledger.settle(placed.iter().chain(waiting));
        if self.waiting.is_empty() {
            return false;
        }
        let mut order = Order::new(&self.ledger, placed.iter());
        while let Some(index) = order.next(self.ready()) {
            match self.waiting.get(index) {
                Some(next) if room(next) => order.start(&next.tenant),
                _ => return true,
            }
            if let Some(next) = self.waiting.remove(index) {
                begin(next);
            }
        }
        false
    }

    /// What runs now.
    pub fn report<'a>(&mut self, running: impl Iterator<Item = &'a Sequence<J>>, now: Instant)
    where
        J: 'a,
    {
        let running = running.map(|one| (&one.tenant, |usual| one.job.evaluations_left(usual)));
        self.running = self.ledger.underway(running, now);
    }

    /// A sequence has brought so many tokens to a step, which made so many of its text.
    pub fn charge(&mut self, sequence: &Sequence<J>, tokens: usize, made: usize) {
        self.ledger.charge(&sequence.tenant, tokens);
        self.ledger.made(&sequence.tenant.payer, made);
        self.status.tokens_generated += made as u64;
    }

    /// A sequence has ended well; a text says how many evaluations it took, and how many it could have.
    pub fn finished(
        &mut self,
        sequence: &Sequence<J>,
        evaluations: Option<(u32, u32)>,
        now: Instant,
    ) {
        self.leave(sequence);
        self.status.finished += 1;
        let computed = sequence.computed(now);
        self.status.typical_compute = match self.status.finished {
            1 => computed,
            _ => self.status.typical_compute.mul_f64(0.8) + computed.mul_f64(0.2),
        };
        if let Some(made) = evaluations {
            self.ledger.took(&sequence.tenant.payer, made, now);
        }
    }

    /// A sequence that was let in has ended without a result.
    pub fn failed(&mut self, sequence: &Sequence<J>, error: &Error) {
        self.leave(sequence);
        let status = &mut self.status;
        let count = match error {
            Error::Cancelled => &mut status.cancelled,
            Error::DeadlinePassed { .. } | Error::DeadlineOutOfReach { .. } => &mut status.late,
            Error::Stalled { .. } => &mut status.stalled,
            _ => &mut status.failed,
        };
        *count += 1;
    }

    fn leave(&mut self, sequence: &Sequence<J>) {
        self.caps
            .leave(&sequence.tenant.payer.name, sequence.client.as_ref());
    }

    /// Nobody who still waits will be served, with an error for each id.
    pub fn empty(&mut self, error: impl Fn(u64) -> Error) -> VecDeque<Box<Sequence<J>>> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting
            .iter()
            .for_each(|sequence| self.failed(sequence, &error(sequence.id)));
        waiting
    }
}
