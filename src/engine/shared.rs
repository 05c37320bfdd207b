//! What the way in and the model thread share.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::config::EngineConfig;
use super::door::Door;
use super::error::Error;
use super::generation::{BASE, Generation};
use super::status::{EngineStatus, VariantLoad};
use super::wake::Wake;
use super::work::ModelJob;
use crate::model::kv_cache::KvCache;

/// Both hold its locks for moments only, and never while they wait or compute.
pub struct Shared {
    pub config: EngineConfig,
    pub pages_total: usize,
    pub wake: Arc<Wake>,
    current: Mutex<Current>,
    door: Mutex<Door<ModelJob>>,
}

/// The generation in force, and those that were before, while they last.
struct Current(Arc<Generation>, Vec<Weak<Generation>>);

/// Nothing is left half done under these locks, so a poisoned one is as good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(config: EngineConfig, cache: &KvCache, generation: Generation) -> Self {
        let mut door = Door::new(config.clone());
        door.status = EngineStatus {
            queue_limit: config.queue,
            max_running: config.max_running,
            max_parts: config.max_parts,
            max_evaluations: config.max_evaluations,
            pages_total: cache.pages(),
            kv_bytes: cache.bytes() as u64,
            kv_on_device: cache.on_device().is_some(),
            ..EngineStatus::default()
        };
        Shared {
            config,
            pages_total: cache.pages(),
            wake: Arc::default(),
            current: Mutex::new(Current(Arc::new(generation), Vec::new())),
            door: Mutex::new(door),
        }
    }

    pub fn door(&self) -> MutexGuard<'_, Door<ModelJob>> {
        lock(&self.door)
    }

    pub fn generation(&self) -> Arc<Generation> {
        lock(&self.current).0.clone()
    }

    /// Returns what was in force before, for the caller to drop outside the lock.
    pub fn publish(&self, generation: Arc<Generation>) -> Arc<Generation> {
        let mut current = lock(&self.current);
        let Current(now, old) = &mut *current;
        let before = std::mem::replace(now, generation);
        old.retain(|old| old.strong_count() > 0);
        old.push(Arc::downgrade(&before));
        self.door()
            .ledger
            .keep(|name| now.variants.contains_key(name));
        before
    }

    /// Takes nothing new from now on.
    pub fn close(&self) {
        self.door().close(Error::Draining);
        self.wake.call();
    }

    pub fn status(&self) -> EngineStatus {
        let current = lock(&self.current);
        let Current(now, old) = &*current;
        let old = old
            .iter()
            .map(Weak::strong_count)
            .filter(|&leases| leases > 0);
        let leases = old.clone().sum::<usize>() + Arc::strong_count(now) - 1;
        let names = now.variants.keys().map(String::as_str).chain([BASE]);
        let mut variants: BTreeMap<String, VariantLoad> = names
            .map(|name| (name.to_owned(), VariantLoad::default()))
            .collect();
        let door = self.door();
        for sequence in door.waiting() {
            let name = sequence.tenant.payer.name.to_string();
            variants.entry(name).or_default().waiting += 1;
        }
        for one in door.running() {
            let name = one.payer.name.to_string();
            variants.entry(name).or_default().running += one.sequences;
        }
        for (name, load) in &mut variants {
            (load.weight, load.service) = door.ledger.standing(name);
        }
        let paused = door.waiting().filter(|sequence| sequence.paused.is_some());
        EngineStatus {
            generation: now.number,
            waiting: door.waiting().len(),
            paused: door.status.paused + paused.count(),
            streams: self.wake.streams.load(Ordering::Relaxed),
            generations: 1 + old.count(),
            leases,
            variants,
            draining: door.closed().is_some(),
            ..door.status.clone()
        }
    }
}
