//! A sequence: one accepted request as the door and the batcher know it, from the queue to its end.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::Error;
use super::ledger::Tenant;
use super::pages::Table;
use super::prefix::Owner;
use super::throughput::Throughput;

/// Whether what a sequence makes is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// There is room for what a step may have to say.
    Ready,
    /// There is not: the sequence is paused.
    Behind,
    /// Nobody reads it any more.
    Gone,
}

/// What a sequence asks of the next step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Tokens of its next evaluation: all or nothing, or the least it can use.
    pub tokens: usize,
    /// It can use any number of tokens above that, as scoring can.
    pub elastic: bool,
    /// Somebody waits for its first block.
    pub first_block: bool,
}

/// What a sequence computes, as far as scheduling has to know. The engine's is `ModelJob`, which has samplers and channels; tests
/// drive the door and the batcher with one that has neither.
pub trait Job {
    fn reader(&self) -> Reader;

    /// What it asks of the next step.
    fn demand(&mut self) -> Demand;

    /// The positions that its next evaluation, in so many tokens, sees and writes in the cache.
    fn reach(&mut self, tokens: usize) -> Range<usize>;

    /// Evaluations still to be made: at least, or, where its variant's texts take the part `usual` of those that they could, usually.
    fn evaluations_left(&self, usual: Option<f64>) -> u64;

    /// Positions that it fills before its first block is made, that block included.
    fn positions_to_start(&self) -> usize;

    /// What the cache may hold of it that others can use: whose text, its tokens, and how many of them are written.
    fn text(&self) -> Option<(Owner<'_>, &[u32], usize)>;

    /// It leaves the queue, the first time or again, with so many of its leading positions in the cache.
    fn start(&mut self, id: u64, cached: usize);

    /// Nothing of it is in the cache any more; it will start again later.
    fn stop(&mut self);
}

/// A job, whose it is, and what it holds.
pub struct Sequence<J> {
    /// Given by the door.
    pub id: u64,
    pub tenant: Tenant,
    /// Who asks, where requests of one client are counted.
    pub client: Option<Arc<str>>,
    pub deadline: Option<Instant>,
    pub accepted: Instant,
    pub started: Option<Instant>,
    /// Pages that it may need at most.
    pub pages_needed: usize,
    pub table: Table,
    pub demand: Demand,
    /// The last step it took part in.
    pub served: u64,
    /// Since when its reader has to catch up.
    pub paused: Option<Instant>,
    pub job: J,
}

/// A sequence that ends without a result, and why.
pub type Failed<J> = (Box<Sequence<J>>, Error);

impl<J: Job> Sequence<J> {
    /// One that comes now.
    pub fn new(tenant: Tenant, pages_needed: usize, now: Instant, job: J) -> Self {
        Sequence {
            id: 0,
            tenant,
            client: None,
            deadline: None,
            accepted: now,
            started: None,
            pages_needed,
            table: Table::default(),
            demand: Demand::default(),
            served: 0,
            paused: None,
            job,
        }
    }

    /// Why nothing more is to be done for it, if so. Also looks whether its reader keeps up.
    pub fn over(&mut self, now: Instant, speed: &Throughput, stall: Duration) -> Option<Error> {
        match self.job.reader() {
            Reader::Gone => return Some(Error::Cancelled),
            Reader::Ready => self.paused = None,
            Reader::Behind => _ = self.paused.get_or_insert(now),
        }
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                let waited = now.duration_since(self.accepted);
                return Some(Error::DeadlinePassed { waited });
            }
            let step = speed.step(self.tenant.cost, self.tenant.parts > 0, now);
            let evaluations = self.job.evaluations_left(None) as f64;
            if let Some(needed) = step.map(|step| step.best.mul_f64(evaluations))
                && needed > left
            {
                return Some(Error::DeadlineOutOfReach { needed, left });
            }
        }
        let waited = now.duration_since(self.paused?);
        (waited >= stall).then_some(Error::Stalled { waited })
    }

    /// When it is over if nothing happens.
    pub fn ends(&self, stall: Duration) -> Option<Instant> {
        let stalled = self.paused.and_then(|since| since.checked_add(stall));
        self.deadline.into_iter().chain(stalled).min()
    }

    /// Pages without which it had better not start.
    pub fn pages_to_start(&self, page_tokens: usize) -> usize {
        let pages = self.job.positions_to_start().div_ceil(page_tokens);
        pages.min(self.pages_needed)
    }

    /// Time since it left the queue.
    pub fn computed(&self, now: Instant) -> Duration {
        let started = self.started.unwrap_or(now);
        now.saturating_duration_since(started)
    }
}
