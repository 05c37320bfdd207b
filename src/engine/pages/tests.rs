use super::*;

use crate::engine::generation::tests::generation;
use crate::model::{Mix, VariantId};

#[test]
fn page_that_was_idle_longest_goes_first_and_an_end_before_its_beginning() {
    let (generation, mixes) = (generation(false), [Mix::base(), Mix::single(VariantId(0))]);
    let owner = |mix: usize| Owner {
        generation: &generation,
        mix: &mixes[mix],
        block: 2,
        phase: 0,
    };
    let mut pool = PagePool::new(6, 2, true);
    let text = |first: u32| [first, 1, 2, 3, 4, 5];
    // How much of a text is known; all of it is then.
    let write = |pool: &mut PagePool, mix, first, length| {
        let (mut table, text) = (Table::default(), &text(first)[..length]);
        let known = table.begin(pool, owner(mix), text);
        assert!(table.cover(pool, 0, length));
        table.note(pool, owner(mix), text);
        table.end(pool);
        known
    };
    assert_eq!([0, 9].map(|first| write(&mut pool, 0, first, 6)), [0, 0]);
    assert_eq!((pool.idle(), pool.used()), (6, 0));
    // Two pages are needed: the last two of the text that ended first.
    assert_eq!(write(&mut pool, 1, 0, 4), 0);
    assert_eq!(write(&mut pool, 0, 9, 6), 6);
    assert_eq!(write(&mut pool, 0, 0, 2), 2);
    assert_eq!((pool.idle(), pool.available()), (6, 6));
}

#[test]
fn pages_needed_suffice_for_every_stretch() {
    let (generation, mix) = (generation(false), Mix::base());
    for page_tokens in [1, 3, 4, 16] {
        for block in [1, 4, 5] {
            let (window, written) = (24, 40 * block);
            let span = window + block;
            let owner = Owner {
                generation: &generation,
                mix: &mix,
                block,
                phase: 0,
            };
            let mut pool = PagePool::new(needed(written, span, page_tokens), page_tokens, true);
            let mut table = Table::default();
            assert_eq!(table.begin(&mut pool, owner, &[]), 0);
            for end in (block..=written).step_by(block) {
                let from = end.saturating_sub(span);
                let covered = table.cover(&mut pool, from, end);
                assert!(covered, "page {page_tokens}, block {block}, end {end}");
                assert!(table.start() <= from && table.start().is_multiple_of(page_tokens));
                assert!(table.start() + table.held().len() * page_tokens >= end);
                table.note(&mut pool, owner, &vec![1; end]);
            }
            table.end(&mut pool);
            assert_eq!(pool.used(), 0);
        }
    }
}
