//! The model thread and its loop.

use std::sync::Arc;
use std::time::Instant;

use super::batcher::Batcher;
use super::door::Door;
use super::error::Error;
use super::materialised::Materialised;
use super::sequence::{Failed, Sequence};
use super::shared::Shared;
use super::step::{Member, StepFailure, StepGroup};
use super::work::{JobEnd, ModelJob};
use crate::model::kv_cache::KvCache;

/// What the model thread owns, but for the cache.
pub struct Runner {
    shared: Arc<Shared>,
    batcher: Batcher<ModelJob>,
    materialised: Materialised,
    /// Why nothing can be evaluated any more.
    lost: Option<String>,
}

impl Runner {
    pub fn new(shared: Arc<Shared>, cache: &KvCache, materialised: Materialised) -> Self {
        Runner {
            batcher: Batcher::new(&shared.config, cache.pages()),
            shared,
            materialised,
            lost: None,
        }
    }

    /// Step after step, until the engine is drained or the device is lost.
    pub fn run(mut self, mut cache: KvCache) {
        let shared = self.shared.clone();
        while self.lost.is_none() {
            self.materialised.sweep();
            let (mut door, now) = (shared.door(), Instant::now());
            let over = self.batcher.retire(&mut door, now);
            self.batcher.admit(&mut door, now);
            let parts = self.batcher.choose(&mut door);
            self.report(&mut door, parts.iter().map(|part| &*part.sequence), now);
            drop(door);
            tell(over);
            if parts.is_empty() {
                // Whoever was chosen may have found no page and given its own up: then others go on.
                match self.batcher.can_go_on() || self.wait() {
                    true => continue,
                    false => return,
                }
            }
            let groups = StepGroup::of(parts, &mut self.materialised);
            let (mut groups, failed) = self.evaluate(groups, &mut cache);
            self.account(&mut groups, &failed, now);
            self.deliver(groups);
            tell(failed);
        }
    }

    /// Waits until somebody comes, leaves or has read. False where nobody will.
    fn wait(&self) -> bool {
        let door = self.shared.door();
        let sequences = || self.batcher.running().chain(door.waiting());
        if door.closed().is_some() && sequences().next().is_none() {
            return false;
        }
        let ends = sequences().filter_map(|sequence| sequence.ends(self.shared.config.stall));
        let until = ends.min();
        drop(door);
        self.shared.wake.wait(until);
        true
    }

    /// Evaluates what has been chosen. A group whose network fails, fails as a whole, and nothing else does.
    fn evaluate(
        &mut self,
        groups: Vec<StepGroup>,
        cache: &mut KvCache,
    ) -> (Vec<StepGroup>, Vec<Failed<ModelJob>>) {
        let (mut evaluated, mut failed) = (Vec::with_capacity(groups.len()), Vec::new());
        for mut group in groups {
            let outcome = match &self.lost {
                None => group.evaluate(cache),
                Some(detail) => Err(StepFailure {
                    detail: detail.clone(),
                    lost: true,
                }),
            };
            let Err(StepFailure { detail, lost }) = outcome else {
                evaluated.push(group);
                continue;
            };
            for Member { mut sequence, .. } in group.members {
                let (request_id, generation) = (sequence.id, sequence.job.lease.number);
                tracing::error!(request_id, generation, detail, "the device failed");
                self.batcher.end(&mut sequence);
                let detail = detail.clone();
                failed.push((sequence, Error::Device { request_id, detail }));
            }
            if lost {
                self.lost = Some(detail);
            }
        }
        (evaluated, failed)
    }

    /// Charges the step that began then, counts who is through, and takes back what they held: all of it before anybody is told.
    fn account(&mut self, groups: &mut [StepGroup], failed: &[Failed<ModelJob>], begun: Instant) {
        let members = groups.iter_mut().flat_map(|group| &mut group.members);
        for member in members.filter(|member| member.made.ended.is_some()) {
            self.batcher.end(&mut member.sequence);
        }
        let (mut door, now) = (self.shared.door(), Instant::now());
        let members = || groups.iter().flat_map(|group| &group.members);
        let charged = |member: &Member| member.sequence.tenant.charge(member.tokens);
        let rows: usize = members().map(charged).sum();
        let variants = members().any(|member| member.sequence.tenant.parts > 0);
        if rows > 0 {
            door.throughput.record(rows, variants, now - begun, now);
            door.status.step_time += now - begun;
            door.status.step_sequences += members().count() as u64;
            door.status.step_tokens += members().map(|member| member.tokens as u64).sum::<u64>();
        }
        for Member {
            sequence,
            tokens,
            made,
            ..
        } in members()
        {
            door.charge(sequence, *tokens, made.tokens);
            match made.ended {
                None => {}
                Some(JobEnd::NotFinite) => {
                    let request_id = sequence.id;
                    tracing::error!(request_id, "the network's logits are not finite");
                    door.failed(sequence, &Error::NotFinite { request_id });
                }
                Some(_) => door.finished(sequence, sequence.job.evaluations_made(), now),
            }
        }
        for (sequence, error) in failed {
            door.failed(sequence, error);
        }
        let go_on = members().filter(|member| member.made.ended.is_none());
        self.report(&mut door, go_on.map(|member| &*member.sequence), now);
    }

    /// Tells clients what the step has made, and takes back those that go on.
    fn deliver(&mut self, groups: Vec<StepGroup>) {
        let now = Instant::now();
        for Member {
            mut sequence, made, ..
        } in groups.into_iter().flat_map(|group| group.members)
        {
            let ended = made.ended.is_some();
            sequence.deliver(made, now);
            if !ended {
                self.batcher.go_on(sequence);
            }
        }
    }

    /// Writes down how the engine stands, with these in the step.
    fn report<'a>(
        &'a self,
        door: &mut Door<ModelJob>,
        step: impl Iterator<Item = &'a Sequence<ModelJob>> + Clone,
        now: Instant,
    ) {
        let batcher = &self.batcher;
        let running = batcher.running().chain(step);
        door.report(running.clone(), now);
        let status = &mut door.status;
        status.running = running.clone().count();
        status.paused = running.filter(|one| one.paused.is_some()).count();
        (status.pages_used, status.pages_idle) = (batcher.pool().used(), batcher.pool().idle());
        (status.preempted, status.tokens_reused) = (batcher.preempted(), batcher.reused());
        status.steps = batcher.steps();
        status.materialised_bytes = self.materialised.bytes() as u64;
    }
}

/// Tells who ends without a result.
fn tell(failed: Vec<Failed<ModelJob>>) {
    for (mut sequence, error) in failed {
        sequence.job.fail(error);
    }
}

impl Drop for Runner {
    /// Also where the thread ends by a panic: nobody is left waiting.
    fn drop(&mut self) {
        let error = |request_id| match self.lost.clone() {
            Some(detail) => Error::Device { request_id, detail },
            None => Error::Stopped,
        };
        let mut left = self.batcher.empty();
        let shared = self.shared.clone();
        let mut door = shared.door();
        door.close(Error::Stopped);
        door.status.lost = self.lost.clone();
        left.iter().for_each(|one| door.failed(one, &error(one.id)));
        left.extend(door.empty(error));
        self.report(&mut door, std::iter::empty(), Instant::now());
        drop(door);
        let failed = left.into_iter().map(|one| {
            let error = error(one.id);
            (one, error)
        });
        tell(failed.collect());
    }
}
