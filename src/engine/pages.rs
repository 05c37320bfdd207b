//! Who owns which page of the key-value cache.
//!
//! A sequence is given, before it starts, every page that it may need at most; pages that slide out of its window
//! serve it again further on. So no running sequence ever waits for a page and none is ever put back.

use std::collections::VecDeque;

use crate::model::PageId;

/// The pages nobody has.
#[derive(Debug)]
pub struct Pool {
    free: Vec<PageId>,
    total: usize,
}

impl Pool {
    pub fn new(total: usize) -> Self {
        let free = (0..total as u32).rev().map(PageId).collect();
        Pool { free, total }
    }

    pub fn total(&self) -> usize {
        self.total
    }

    pub fn used(&self) -> usize {
        self.total - self.free.len()
    }

    /// `count` pages, or none at all.
    pub fn take(&mut self, count: usize) -> Option<Vec<PageId>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    pub fn give_back(&mut self, pages: impl IntoIterator<Item = PageId>) {
        self.free.extend(pages);
    }
}

/// How many pages hold any stretch of `span` consecutive positions of a sequence that writes `written` in all.
pub fn needed(written: usize, span: usize, page_tokens: usize) -> usize {
    // A stretch that does not begin with a page may touch one page more than its length fills.
    let sliding = (span + page_tokens - 1).div_ceil(page_tokens);
    written.div_ceil(page_tokens).min(sliding)
}

/// One sequence's pages: those that hold its window, in order, and those that hold nothing at present.
#[derive(Debug, Default)]
pub struct Table {
    held: VecDeque<PageId>,
    spare: Vec<PageId>,
    /// Position of the first slot of `held[0]`; a multiple of the page size.
    start: usize,
}

impl Table {
    pub fn new(spare: Vec<PageId>) -> Self {
        Table {
            held: VecDeque::new(),
            spare,
            start: 0,
        }
    }

    /// Lets go of pages that end at or before position `from`, then holds pages up to position `to`.
    ///
    /// `from` must not go down from call to call. False where the pages given at the start do not suffice.
    #[must_use]
    pub fn cover(&mut self, from: usize, to: usize, page_tokens: usize) -> bool {
        while !self.held.is_empty() && self.start + page_tokens <= from {
            self.spare.extend(self.held.pop_front());
            self.start += page_tokens;
        }
        if self.held.is_empty() {
            self.start = from / page_tokens * page_tokens;
        }
        while self.start + self.held.len() * page_tokens < to {
            match self.spare.pop() {
                Some(page) => self.held.push_back(page),
                None => return false,
            }
        }
        true
    }

    pub fn start(&self) -> usize {
        self.start
    }

    pub fn held(&self) -> Vec<PageId> {
        self.held.iter().copied().collect()
    }

    /// Every page, for the pool.
    pub fn into_pages(self) -> impl Iterator<Item = PageId> {
        self.held.into_iter().chain(self.spare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_nothing() {
        let mut pool = Pool::new(4);
        let three = pool.take(3).unwrap();
        assert_eq!((pool.used(), pool.take(2)), (3, None));
        pool.give_back(three);
        assert_eq!((pool.used(), pool.take(4).map(|pages| pages.len())), (0, Some(4)));
    }

    #[test]
    fn what_is_needed_suffices_for_every_stretch() {
        for page_tokens in [1, 3, 4, 16] {
            for block in [1, 4, 5] {
                let (window, written) = (24, 40 * block);
                let span = window + block;
                let mut pool = Pool::new(needed(written, span, page_tokens));
                let mut table = Table::new(pool.take(pool.total()).unwrap());
                for end in (block..=written).step_by(block) {
                    let from = end.saturating_sub(span);
                    assert!(
                        table.cover(from, end, page_tokens),
                        "page {page_tokens}, block {block}, end {end}"
                    );
                    assert!(table.start() <= from && table.start().is_multiple_of(page_tokens));
                    assert!(table.start() + table.held().len() * page_tokens >= end);
                }
                pool.give_back(table.into_pages());
                assert_eq!(pool.used(), 0);
            }
        }
    }
}
