//! What this protocol's requests took, by model, for its own statistics call.

use super::ask::{InferForm, VERSION};
use crate::engine::Summary;
use crate::kserve as pb;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Clone, Copy, Default)]
struct Took {
    count: u64,
    time: Duration,
}

impl Took {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }

    fn wire(self) -> Option<pb::StatisticDuration> {
        Some(pb::StatisticDuration {
            count: self.count,
            ns: u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX),
        })
    }
}

#[derive(Clone, Copy, Default)]
struct Of {
    last: u64,
    success: Took,
    fail: Took,
    queue: Took,
    compute: Took,
    evaluations: u64,
}

/// By model; mixes, of which there are any number, are not kept.
#[derive(Clone, Default)]
pub struct Statistics(Arc<Mutex<BTreeMap<String, Of>>>);

impl Statistics {
    fn of(&self) -> MutexGuard<'_, BTreeMap<String, Of>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn finished(&self, shown: &InferForm, begun: Instant, summary: &Summary) {
        self.count(shown, |of| {
            of.success.add(begun.elapsed());
            of.queue.add(summary.queued);
            of.compute.add(summary.computed);
            of.evaluations += u64::from(summary.nfe);
        });
    }

    pub fn failed(&self, shown: &InferForm, begun: Instant) {
        self.count(shown, |of| of.fail.add(begun.elapsed()));
    }

    fn count(&self, shown: &InferForm, count: impl Fn(&mut Of)) {
        if shown.is_mix() {
            return;
        }
        let mut all = self.of();
        let of = all.entry(shown.model().to_owned()).or_default();
        count(of);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        of.last = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    }

    /// Of the models named; those of others are forgotten.
    pub fn of_models(&self, names: &[String], served: &[String]) -> Vec<pb::ModelStatistics> {
        let mut all = self.of();
        all.retain(|name, _| served.contains(name));
        let one = |name: &String| {
            let of = all.get(name).copied().unwrap_or_default();
            let nothing = Took {
                count: of.success.count,
                time: Duration::ZERO,
            };
            pb::ModelStatistics {
                name: name.clone(),
                version: VERSION.into(),
                last_inference: of.last,
                inference_count: of.success.count,
                execution_count: of.evaluations,
                inference_stats: Some(pb::InferStatistics {
                    success: of.success.wire(),
                    fail: of.fail.wire(),
                    queue: of.queue.wire(),
                    compute_input: nothing.wire(),
                    compute_infer: of.compute.wire(),
                    compute_output: nothing.wire(),
                }),
            }
        };
        names.iter().map(one).collect()
    }
}
