//! What others see of the engine.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ledger::ServiceShare;

/// What the engine is doing, at one moment between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStatus {
    pub generation: u64,
    pub waiting: usize,
    pub queue_limit: usize,
    /// Those that wait for their readers are among them.
    pub running: usize,
    pub max_running: usize,
    /// Variants in one mix at most.
    pub max_parts: usize,
    /// Evaluations of the network that one request may ask for.
    pub max_evaluations: u32,
    /// Running sequences that wait for their readers.
    pub paused: usize,
    /// Streams of events that somebody still reads, or could.
    pub streams: usize,
    /// Model instances in memory: the one in force and those that requests still run on.
    pub generations: usize,
    /// Handles that keep those alive, besides the engine's own: one for each request.
    pub leases: usize,
    pub pages_used: usize,
    /// Pages that no sequence holds, kept for those that begin with the same text.
    pub pages_idle: usize,
    pub pages_total: usize,
    pub kv_bytes: u64,
    pub kv_on_device: bool,
    /// Bytes of materialised variants, on the device where the cache is.
    pub materialised_bytes: u64,
    /// Network evaluations since the start, all sequences of a step together counting once.
    pub steps: u64,
    /// Time that they took, the sequences in them, and the tokens.
    pub step_time: Duration,
    pub step_sequences: u64,
    pub step_tokens: u64,
    pub tokens_generated: u64,
    pub finished: u64,
    /// Their clients left.
    pub cancelled: u64,
    /// Accepted, and given up since their deadlines passed or could not be met any more.
    pub late: u64,
    /// Given up since their clients did not read.
    pub stalled: u64,
    pub failed: u64,
    pub refused: RefusalCounts,
    /// By name, the base among them.
    pub variants: BTreeMap<String, VariantLoad>,
    /// Times that a running sequence had to give its pages up, and wait to go on.
    pub preempted: u64,
    /// Tokens of texts that were found in the cache instead of computed.
    pub tokens_reused: u64,
    pub draining: bool,
    /// What was said of the device's loss, after which the engine has ended.
    pub lost: Option<String>,
    /// Mean time of recent requests from leaving the queue to the end.
    pub typical_compute: Duration,
}

/// Requests that were turned away at the door, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusalCounts {
    /// The queue was full.
    pub queue: u64,
    /// Their variant, or their client, had as many as it may have.
    pub variant: u64,
    pub client: u64,
    /// They could not have been finished before their deadlines.
    pub deadline: u64,
}

/// What one variant has and had of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VariantLoad {
    pub weight: f64,
    pub waiting: usize,
    pub running: usize,
    pub service: ServiceShare,
}
