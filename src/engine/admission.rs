//! The door: checks requests, holds those that wait, and is the only thing that clients and the model thread share.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::materialised::Materialised;
use super::sequence::Sequence;
use super::{EngineConfig, Error, Generation, Status};
use crate::model::kv_cache::KvCache;

pub struct Admission {
    pub config: EngineConfig,
    pub pages_total: usize,
    pub materialised: Arc<Materialised>,
    state: Mutex<State>,
    arrival: Condvar,
}

struct State {
    generation: Arc<Generation>,
    waiting: VecDeque<Sequence>,
    /// What the model thread last reported.
    status: Status,
    last_id: u64,
    stopped: bool,
}

/// What the model thread takes from the queue.
#[derive(Default)]
pub struct Arrivals {
    pub started: Vec<Sequence>,
    /// Waited too long, or their clients left.
    pub given_up: Vec<(Sequence, Error)>,
}

/// Bounds of the retry-after hint.
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(60);

impl Admission {
    pub fn new(config: EngineConfig, cache: &KvCache, generation: Generation, materialised: Arc<Materialised>) -> Self {
        let pages_total = cache.pages();
        let status = Status {
            queue_limit: config.queue,
            max_running: config.max_running,
            pages_total,
            kv_bytes: cache.bytes() as u64,
            kv_on_device: cache.on_device().is_some(),
            ..Status::default()
        };
        let generation = Arc::new(generation);
        let state = State {
            generation,
            waiting: VecDeque::new(),
            status,
            last_id: 0,
            stopped: false,
        };
        Admission {
            config,
            pages_total,
            materialised,
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
        std::mem::replace(&mut self.state().generation, generation)
    }

    /// Lets a checked sequence wait and returns its id, unless the queue is full of living ones.
    pub fn wait(&self, mut sequence: Sequence) -> Result<u64, Error> {
        let mut dead = VecDeque::new();
        let mut state = self.state();
        if state.stopped {
            return Err(Error::Stopped);
        }
        if state.status.draining {
            return Err(Error::Draining);
        }
        if state.waiting.len() >= self.config.queue {
            (dead, state.waiting) = state.waiting.drain(..).partition(Sequence::client_left);
            state.status.cancelled += dead.len() as u64;
        }
        let waiting = state.waiting.len();
        if waiting >= self.config.queue {
            let rounds = (waiting as f64 / self.config.max_running as f64).max(1.0);
            let retry_after = state.status.typical_compute.mul_f64(rounds).clamp(SOONEST, LATEST);
            return Err(Error::QueueFull {
                waiting,
                limit: self.config.queue,
                retry_after,
            });
        }
        state.last_id += 1;
        let id = state.last_id;
        sequence.id = id;
        state.waiting.push_back(sequence);
        drop(state);
        drop::<VecDeque<Sequence>>(dead); // a lease may go with them, so outside the lock
        self.arrival.notify_one();
        Ok(id)
    }

    /// Lets a sequence that ran wait again, before all others and whether or not the queue is full.
    pub fn put_back(&self, sequence: Sequence) {
        self.state().waiting.push_front(sequence);
    }

    /// The sequences that may start now: in order, while `room` has some for the next. Waits for one
    /// if the model thread is `idle`; `None` once it should end.
    pub fn arrivals(&self, idle: bool, mut room: impl FnMut(&Sequence) -> bool) -> Option<Arrivals> {
        let mut arrivals = Arrivals::default();
        let mut state = self.state();
        loop {
            let now = Instant::now();
            while let Some(next) = state.waiting.front() {
                let given_up = next.given_up(now);
                if given_up.is_none() && !room(next) {
                    break;
                }
                let Some(next) = state.waiting.pop_front() else { break };
                match given_up {
                    Some(error) => arrivals.given_up.push((next, error)),
                    None => arrivals.started.push(next),
                }
            }
            if !idle || !arrivals.started.is_empty() || !arrivals.given_up.is_empty() {
                return Some(arrivals);
            }
            if state.status.draining && state.waiting.is_empty() {
                return None;
            }
            state = self.arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes nothing new from now on.
    pub fn close(&self) {
        self.state().status.draining = true;
        self.arrival.notify_one();
    }

    /// The model thread has ended, since the device is `lost` where that is why: whoever still waits will not be served.
    pub fn stop(&self, lost: Option<String>) -> Vec<Sequence> {
        let mut state = self.state();
        state.stopped = true;
        state.status.lost = lost;
        state.status.draining = true;
        state.waiting.drain(..).collect()
    }

    /// Lets the model thread write down how it stands.
    pub fn report(&self, write: impl FnOnce(&mut Status)) {
        write(&mut self.state().status);
    }

    pub fn status(&self) -> Status {
        let state = self.state();
        let (generation, waiting) = (state.generation.number, state.waiting.len());
        Status {
            generation,
            waiting,
            materialised_bytes: self.materialised.bytes() as u64,
            ..state.status.clone()
        }
    }
}
