//! The trait that evaluates a batch.

use super::batch::{Batch, Logits, Mix, StepOutcome};
use super::error::Result;
use super::facts::NetworkFacts;
use super::kv_cache::{KvCache, PageLayout};
use super::profile::StageHook;
use std::sync::Arc;

/// One network evaluation. Implemented by the executors on the host and on a device, and by a fake for tests.
///
/// `Cache` is the state that changes (keys and values); the weights do not. The engine owns one cache and
/// passes it to whichever generation's instance evaluates, one generation to a call.
pub trait Denoiser: Send + Sync {
    fn facts(&self) -> &NetworkFacts;

    /// Bytes of one page of its cache.
    fn page_bytes(&self, page: PageLayout) -> usize {
        KvCache::page_bytes(self.facts().cache, page)
    }

    /// A cache of so many pages that this network can use.
    fn cache(&self, page: PageLayout, pages: usize) -> Result<KvCache> {
        KvCache::within_memory(self.facts().cache, page, pages)
    }

    /// Evaluates `batch`, writes the keys and values of clean tokens into `cache`. Gives the logits of all rows: what is to
    /// be drawn from them does not matter here.
    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> Result<Logits>;

    /// Evaluates `batch` as [`forward`](Self::forward) does; `ended` is told as each stage ends, where stages are known.
    fn profiled(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        ended: &mut StageHook,
    ) -> Result<Logits> {
        let _ = ended;
        self.forward(batch, cache)
    }

    /// Evaluates `batch` as [`forward`](Self::forward) does, and draws from the rows of segments that say how.
    fn step(&self, batch: &Batch, cache: &mut KvCache) -> Result<StepOutcome> {
        let logits = self.forward(batch, cache)?;
        logits.check(batch.logit_rows(), self.facts().rows)?;
        let (outcome, spent) = logits.draw(batch);
        cache.recycle(spent);
        Ok(outcome)
    }

    /// Bytes held now, but for banks and what variants keep for themselves.
    fn bytes(&self) -> usize {
        0
    }

    /// An instance whose base is this one's with the mix added to its weights, without variants; `None` where there are
    /// no weights to add to.
    fn materialise(&self, _mix: &Mix) -> Result<Option<Arc<dyn Denoiser>>> {
        Ok(None)
    }
}
