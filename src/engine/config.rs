//! Settings of one engine, and what they must be.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Error;
use super::ledger::{LEAST_WEIGHT, MOST_WEIGHT};
use super::stream::ROOM;
use crate::model::PageLayout;
use crate::ops::gpu::Dtype;

/// More threads than any machine has processors.
const MOST_THREADS: usize = 1024;

/// Settings of one engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that share the steps at most.
    pub max_running: usize,
    /// Requests that wait at most; the next one is refused at once.
    pub queue: usize,
    /// Requests of one variant that wait or run at most.
    pub max_per_variant: Option<usize>,
    /// The same of one client.
    pub max_per_client: Option<usize>,
    /// Shares of variants by name, 0.001 to 1000; 1 for all others.
    pub weights: BTreeMap<String, f64>,
    /// Events that a request may be ahead of its reader, at least [`ROOM`](super::stream::ROOM): then it is paused.
    pub unread: usize,
    /// How long it may be.
    pub stall: Duration,
    /// Byte budget of the key-value cache.
    pub kv_bytes: usize,
    /// Positions in a page of the cache.
    pub page_tokens: usize,
    /// The type of the keys and values in it, where the network is on the host.
    pub kv_type: Dtype,
    /// Tokens in one step at most.
    pub step_tokens: usize,
    /// Limit of a prompt, in tokens.
    pub max_prompt: usize,
    /// Limit of `Request::max_tokens`.
    pub max_tokens: usize,
    /// Evaluations of the network that one request may ask for.
    pub max_evaluations: u32,
    /// Keep what sequences leave in the cache for those that begin with the same text under the same weights.
    pub prefix_reuse: bool,
    /// Compute threads, 1024 at most; 0 means one for each processor.
    pub threads: usize,
    /// Keep each of them on a processor of its own.
    pub pinned: bool,
    /// Variants in one mix at most.
    pub max_parts: usize,
    /// Bytes of materialised variants at most. With 0 every variant is read from its bank, always.
    pub materialise_bytes: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_running: 32,
            queue: 64,
            max_per_variant: None,
            max_per_client: None,
            weights: BTreeMap::new(),
            unread: 16,
            stall: Duration::from_secs(60),
            kv_bytes: 64 << 20,
            page_tokens: 16,
            kv_type: Dtype::F32,
            step_tokens: 512,
            max_prompt: 16_384,
            max_tokens: 16_384,
            max_evaluations: 32_768,
            prefix_reuse: true,
            threads: 0,
            pinned: false,
            max_parts: 8,
            materialise_bytes: 0,
        }
    }
}

impl EngineConfig {
    /// What a page of the cache is.
    pub fn page(&self) -> PageLayout {
        PageLayout {
            tokens: self.page_tokens,
            dtype: self.kv_type,
        }
    }

    /// Refuses what leaves no room for anything. A page of the cache takes so many bytes, a materialised variant so many at least.
    pub(super) fn check(&self, page_bytes: usize, variant_bytes: usize) -> Result<(), Error> {
        let bad = |field, reason: String| Err(Error::bad(field, reason));
        let limits = [
            ("max_running", self.max_running),
            ("queue", self.queue),
            ("page_tokens", self.page_tokens),
            ("step_tokens", self.step_tokens),
            ("max_prompt", self.max_prompt),
            ("max_tokens", self.max_tokens),
            ("max_evaluations", self.max_evaluations as usize),
            ("max_parts", self.max_parts),
            ("kv_bytes", self.kv_bytes / page_bytes.max(1)),
            ("max_per_variant", self.max_per_variant.unwrap_or(1)),
            ("max_per_client", self.max_per_client.unwrap_or(1)),
            ("unread", self.unread / ROOM),
            ("stall", self.stall.as_nanos().min(1) as usize),
        ];
        if let Some((field, _)) = limits.iter().find(|(_, value)| *value == 0) {
            return bad(field, "it is too small for anything to run".into());
        }
        if self.threads > MOST_THREADS {
            return bad("threads", format!("at most {MOST_THREADS} are of use"));
        }
        if (1..variant_bytes).contains(&self.materialise_bytes) {
            let reason = format!("one materialised variant takes {variant_bytes} bytes");
            return bad("materialise_bytes", reason);
        }
        let odd = |(_, weight): &(&String, &f64)| !(LEAST_WEIGHT..=MOST_WEIGHT).contains(*weight);
        if let Some((name, weight)) = self.weights.iter().find(odd) {
            let reason = format!(
                "that of {name:?} is {weight}, not within {LEAST_WEIGHT} and {MOST_WEIGHT}"
            );
            return bad("weights", reason);
        }
        Ok(())
    }
}
