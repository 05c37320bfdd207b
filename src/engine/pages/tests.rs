use super::*;
use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use crate::engine::{Generation, Sampling};
use crate::model::kv_cache::KvCache;
use crate::model::tokenizer::Tokenizer;
use crate::model::{
    Batch, CacheShape, Denoiser, Logits, Mix, NetworkFacts, Process, Regime, VariantId,
};

/// A generation is only looked at for which one it is.
struct Nothing(NetworkFacts);

impl Denoiser for Nothing {
    fn facts(&self) -> &NetworkFacts {
        &self.0
    }

    fn forward(&self, _: &Batch, _: &mut KvCache) -> candle_core::Result<Logits> {
        candle_core::bail!("there is no network")
    }
}

fn generation() -> Arc<Generation> {
    let facts = NetworkFacts {
        family: "dit",
        slides: true,
        rows: 4,
        tokens: 3,
        mask: Some(3),
        context: 8,
        regime: Regime {
            process: Process::Absorbing,
            block: Some(2),
            time_conditioned: false,
        },
        hidden: 2,
        parameters: 0,
        cache: CacheShape {
            layers: 1,
            heads: 1,
            head_dim: 2,
        },
    };
    let tokenizer = br#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
    Arc::new(Generation {
        number: 1,
        denoiser: Arc::new(Nothing(facts)),
        tokenizer: Arc::new(Tokenizer::from_bytes(tokenizer).unwrap()),
        defaults: Sampling::default(),
        variants: BTreeMap::new(),
        memory: Vec::new(),
    })
}

const LENGTH: usize = 24;
const WINDOW: usize = 8;

/// What stands in one slot of a page: whose it is, and all the text that decided it.
type Content = (usize, usize, usize, Vec<u32>);

/// A sequence: whose, which text, and how much of it is written.
struct Live {
    table: Table,
    generation: usize,
    mix: usize,
    block: usize,
    text: Vec<u32>,
    written: usize,
}

impl Live {
    fn content(&self, serial: &[usize], position: usize) -> Content {
        let end = (position + 1).next_multiple_of(self.block);
        (
            serial[self.generation],
            self.mix,
            self.block,
            self.text[..end].to_vec(),
        )
    }
}

struct World {
    pool: Pool,
    slots: Vec<Vec<Option<Content>>>,
    generations: Vec<Arc<Generation>>,
    /// Tells one generation from those before it.
    serial: Vec<usize>,
    live: Vec<Option<Live>>,
    reused: usize,
}

#[derive(Clone, Debug)]
enum Action {
    Begin {
        at: usize,
        whose: (usize, usize, usize),
        text: u32,
        clean: usize,
    },
    Write {
        at: usize,
        blocks: usize,
    },
    End {
        at: usize,
    },
    Replace {
        generation: usize,
    },
}

fn weighted(chance: f64) -> impl Strategy<Value = usize> {
    prop::bool::weighted(chance).prop_map(usize::from)
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0usize..4, (weighted(0.2), weighted(0.2), 2usize..4), 0u32..4, 0usize..=LENGTH)
            .prop_map(|(at, whose, text, clean)| Action::Begin { at, whose, text, clean }),
        6 => (0usize..4, 1usize..4).prop_map(|(at, blocks)| Action::Write { at, blocks }),
        3 => (0usize..4).prop_map(|at| Action::End { at }),
        1 => (0usize..2).prop_map(|generation| Action::Replace { generation }),
    ]
}

impl World {
    fn new(pages: usize, page_tokens: usize) -> Self {
        World {
            pool: Pool::new(pages, page_tokens, true),
            slots: vec![vec![None; page_tokens]; pages],
            generations: vec![generation(), generation()],
            serial: vec![0, 1],
            live: (0..4).map(|_| None).collect(),
            reused: 0,
        }
    }

    fn act(&mut self, action: Action) {
        let mixes = [Mix::base(), Mix::single(VariantId(0))];
        match action {
            Action::Begin {
                at,
                whose: (generation, mix, block),
                text,
                clean,
            } if self.live[at].is_none() => {
                // Four texts, of which two each begin alike: for less than a block of 3, and not with any page.
                let text: Vec<u32> = (0..LENGTH)
                    .map(|position| text >> (position / 5) & 1)
                    .collect();
                let mut table = Table::default();
                let owner = Owner {
                    generation: &self.generations[generation],
                    mix: &mixes[mix],
                    block,
                };
                let clean = clean / block * block;
                let written = table.begin(&mut self.pool, owner, &text[..clean]);
                assert!(written <= clean && written.is_multiple_of(block));
                self.reused += written;
                self.live[at] = Some(Live {
                    table,
                    generation,
                    mix,
                    block,
                    text,
                    written,
                });
            }
            Action::Write { at, blocks } => {
                let Some(mut live) = self.live[at].take() else {
                    return;
                };
                let end = (live.written + blocks * live.block).min(LENGTH);
                let from = (live.written + live.block).saturating_sub(WINDOW);
                if !live.table.cover(&mut self.pool, from, end) {
                    live.table.end(&mut self.pool);
                    return;
                }
                for position in live.written..end {
                    let offset = position - live.table.start();
                    let page = live.table.held()[offset / self.pool.page_tokens];
                    self.slots[page.0 as usize][offset % self.pool.page_tokens] =
                        Some(live.content(&self.serial, position));
                }
                live.written = end;
                let generation = &self.generations[live.generation];
                let owner = Owner {
                    generation,
                    mix: &mixes[live.mix],
                    block: live.block,
                };
                live.table.note(&mut self.pool, owner, &live.text[..end]);
                self.live[at] = Some(live);
            }
            Action::End { at } => self.end(at),
            Action::Replace { generation: which } => {
                for at in 0..self.live.len() {
                    if self.live[at]
                        .as_ref()
                        .is_some_and(|live| live.generation == which)
                    {
                        self.end(at);
                    }
                }
                self.generations[which] = generation();
                self.serial[which] += 2;
            }
            Action::Begin { .. } => {}
        }
    }

    fn end(&mut self, at: usize) {
        if let Some(mut live) = self.live[at].take() {
            live.table.end(&mut self.pool);
        }
    }

    /// Every sequence finds in its window what it wrote or would have written, and every page is where it should be.
    fn check(&self) {
        let mut held = HashSet::new();
        for live in self.live.iter().flatten() {
            let pages = live.table.held();
            held.extend(pages.iter().copied());
            for position in
                live.table.start().max(live.written.saturating_sub(WINDOW))..live.written
            {
                let offset = position - live.table.start();
                let found = &self.slots[pages[offset / self.pool.page_tokens].0 as usize]
                    [offset % self.pool.page_tokens];
                assert_eq!(
                    found.as_ref(),
                    Some(&live.content(&self.serial, position)),
                    "position {position}"
                );
            }
        }
        assert_eq!(held.len(), self.pool.used());
        assert!(self.pool.idle() <= self.pool.available());
        let free: HashSet<PageId> = self
            .pool
            .free
            .iter()
            .chain(self.pool.idle.values())
            .copied()
            .collect();
        assert_eq!(free.len(), self.pool.available());
        assert!(free.is_disjoint(&held));
    }
}

proptest! {
    #[test]
    fn everyone_finds_what_was_written(
        pages in 3usize..80, page_tokens in 1usize..5, actions in prop::collection::vec(action(), 1..400),
    ) {
        let mut world = World::new(pages, page_tokens);
        for action in actions {
            world.act(action);
            world.check();
        }
        (0..4).for_each(|at| world.end(at));
        prop_assert_eq!((world.pool.used(), world.pool.available()), (0, pages));
    }
}

#[test]
fn what_was_idle_longest_goes_first_and_its_end_before_its_beginning() {
    let mut world = World::new(6, 2);
    let begin = |at, text| Action::Begin {
        at,
        whose: (0, 0, 2),
        text,
        clean: LENGTH,
    };
    for text in [0, 1] {
        world.act(begin(0, text));
        world.act(Action::Write { at: 0, blocks: 3 });
        world.act(Action::End { at: 0 });
    }
    assert_eq!((world.pool.idle(), world.reused), (6, 0));
    // Two pages are needed: the last two of the text that ended first.
    world.act(Action::Begin {
        at: 1,
        whose: (0, 1, 2),
        text: 0,
        clean: 0,
    });
    world.act(Action::Write { at: 1, blocks: 2 });
    assert_eq!((world.pool.used(), world.pool.idle()), (2, 4));
    for (text, reused) in [(1, 6), (0, 2)] {
        world.reused = 0;
        world.act(begin(0, text));
        assert_eq!(world.reused, reused);
        world.act(Action::End { at: 0 });
    }
}

#[test]
fn what_is_needed_suffices_for_every_stretch() {
    let (generation, mix) = (generation(), Mix::base());
    for page_tokens in [1, 3, 4, 16] {
        for block in [1, 4, 5] {
            let (window, written) = (24, 40 * block);
            let span = window + block;
            let owner = Owner {
                generation: &generation,
                mix: &mix,
                block,
            };
            let mut pool = Pool::new(needed(written, span, page_tokens), page_tokens, true);
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
