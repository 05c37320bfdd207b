//! Who holds which page of the key-value cache.
//!
//! Pages are taken when they are written to and not before; when there are none left, the engine takes those of the sequence that
//! came last. A page that nobody holds any more keeps what it has until it is needed: a sequence of the same weights whose text
//! begins alike holds it again instead of computing it.

use std::collections::{BTreeMap, VecDeque};

use super::prefix::{NodeId, Owner, Prefixes};
use crate::model::PageId;

/// All pages: free, held by one sequence or more, or idle (held by nobody, but known by what they have).
#[derive(Debug)]
pub struct PagePool {
    free: Vec<PageId>,
    /// How many sequences hold each page.
    holders: Vec<u32>,
    /// By when they became idle.
    idle: BTreeMap<u64, PageId>,
    /// When each page last became idle; a key of `idle` while it is.
    since: Vec<u64>,
    now: u64,
    known: Prefixes,
    page_tokens: usize,
    /// Whether anything is kept for whom it may help.
    reuse: bool,
}

impl PagePool {
    pub fn new(total: usize, page_tokens: usize, reuse: bool) -> Self {
        PagePool {
            free: (0..total as u32).rev().map(PageId).collect(),
            holders: vec![0; total],
            idle: BTreeMap::new(),
            since: vec![0; total],
            now: 0,
            known: Prefixes::default(),
            page_tokens,
            reuse,
        }
    }

    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Pages held.
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// Pages that nobody holds but whose content is known.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Pages that can be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A page to write to: a free one, else the one that was idle longest.
    fn take(&mut self) -> Option<PageId> {
        if self.free.is_empty() {
            let (_, &oldest) = self.idle.first_key_value()?;
            let forgotten = self.known.forget(oldest);
            self.reclaim(forgotten);
        }
        let page = self.free.pop()?;
        self.holders[page.0 as usize] = 1;
        Some(page)
    }

    /// Holds the pages that are known to have the beginning of `text`.
    fn hold_known(&mut self, owner: Owner, text: &[u32]) -> (Vec<PageId>, Option<NodeId>) {
        let forgotten = self.known.prune();
        self.reclaim(forgotten);
        if !self.reuse {
            return (Vec::new(), None);
        }
        let (pages, node) = self.known.find(owner, text, self.page_tokens);
        for page in &pages {
            let at = page.0 as usize;
            if self.holders[at] == 0 {
                self.idle.remove(&self.since[at]);
            }
            self.holders[at] += 1;
        }
        (pages, node)
    }

    /// Idle pages that are known no more are free.
    fn reclaim(&mut self, forgotten: Vec<PageId>) {
        for page in forgotten {
            if self.holders[page.0 as usize] == 0 {
                self.idle.remove(&self.since[page.0 as usize]);
                self.free.push(page);
            }
        }
    }

    fn let_go(&mut self, page: PageId) {
        let at = page.0 as usize;
        self.holders[at] -= 1;
        if self.holders[at] > 0 {
            return;
        }
        if self.known.knows(page) {
            self.now += 1;
            self.since[at] = self.now;
            self.idle.insert(self.now, page);
        } else {
            self.free.push(page);
        }
    }
}

/// How many pages hold any stretch of `span` consecutive positions of a sequence that writes `written` in all.
pub fn needed(written: usize, span: usize, page_tokens: usize) -> usize {
    // A stretch that does not begin with a page may touch one page more than its length fills.
    let sliding = (span + page_tokens - 1).div_ceil(page_tokens);
    written.div_ceil(page_tokens).min(sliding)
}

/// One sequence's pages: those that hold its window, in order.
#[derive(Debug, Default)]
pub struct Table {
    held: VecDeque<PageId>,
    /// Position of the first slot of `held[0]`; a multiple of the page size.
    start: usize,
    /// How many pages from the beginning of the text are known, and the last one's node.
    noted: usize,
    last: Option<NodeId>,
}

impl Table {
    /// Holds what is known of the beginning of `text`, of an empty table. Returns the positions that need not be computed:
    /// whole blocks.
    pub fn begin(&mut self, pool: &mut PagePool, owner: Owner, text: &[u32]) -> usize {
        let (pages, last) = pool.hold_known(owner, text);
        *self = Table {
            noted: pages.len(),
            held: pages.into(),
            start: 0,
            last,
        };
        self.noted * pool.page_tokens
    }

    /// Lets go of pages that end at or before position `from`, then holds pages up to position `to`.
    ///
    /// `from` must not go down from call to call. False where too few can be taken; those that could are held.
    #[must_use]
    pub fn cover(&mut self, pool: &mut PagePool, from: usize, to: usize) -> bool {
        while self.start + pool.page_tokens <= from {
            match self.held.pop_front() {
                Some(page) => pool.let_go(page),
                None => break,
            }
            self.start += pool.page_tokens;
        }
        if self.held.is_empty() {
            self.start = from / pool.page_tokens * pool.page_tokens;
        }
        while self.start + self.held.len() * pool.page_tokens < to {
            match pool.take() {
                Some(page) => self.held.push_back(page),
                None => return false,
            }
        }
        true
    }

    /// Makes known what was written: `text` is all of the sequence that stands in the cache.
    pub fn note(&mut self, pool: &mut PagePool, owner: Owner, text: &[u32]) {
        let page_tokens = pool.page_tokens;
        while pool.reuse && (self.noted + 1) * page_tokens <= text.len() {
            let held = (self.noted * page_tokens).checked_sub(self.start);
            let Some(&page) = held.and_then(|offset| self.held.get(offset / page_tokens)) else {
                return;
            };
            let node = (pool.known).note(owner, self.last, text, self.noted, (page, page_tokens));
            if node.is_none() {
                return;
            }
            (self.noted, self.last) = (self.noted + 1, node);
        }
    }

    pub fn start(&self) -> usize {
        self.start
    }

    pub fn held(&self) -> Vec<PageId> {
        self.held.iter().copied().collect()
    }

    /// Lets go of every page: the first one last, so that what others are most likely to begin with stays longest.
    pub fn end(&mut self, pool: &mut PagePool) {
        for page in std::mem::take(self).held.into_iter().rev() {
            pool.let_go(page);
        }
    }
}

#[cfg(test)]
mod tests;
