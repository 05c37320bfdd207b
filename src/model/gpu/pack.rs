//! A batch as one piece of memory that the device reads: tokens, positions, which tables, segments, pages, variants' parts,
//! draws. Its layout depends on the batch's shape alone, rounded up, so that a recorded step can be replayed.

use super::parts::{List, MixRun, Placement, Routing, RowSet, Sources, Wave, WaveShape};
use super::parts::{parts, shapes, wave, waves};
use super::writer::{Writer, rounded};
use crate::model::batch::{Batch, Segment};
use crate::model::error::{Error, Result};
use crate::ops::categorical::Draw;
use crate::ops::gpu::attention::{Cut, QueryTile, SegmentFacts};
use crate::ops::gpu::draw::DrawnFacts;
use crate::ops::gpu::pointwise::NONE;
use crate::ops::gpu::products::{PartFacts, TILES};
use crate::ops::gpu::{Address, Buffer};
use std::sync::Arc;

/// The size of a batch, rounded up: batches of one shape lie in memory alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchShape {
    pub rows: usize,
    pub wanted: usize,
    segments: usize,
    pages: usize,
    embedded: usize,
    /// Tiles of queries.
    pub tiles: usize,
    pub cut: Cut,
    /// By list.
    pub waves: Arc<[Sources<Vec<WaveShape>>]>,
    pub routing: Arc<Routing>,
}

impl BatchShape {
    /// Whether no row has a part.
    pub fn bare(&self) -> bool {
        let waves = self.waves.iter();
        waves
            .flat_map(|list| list.by_ref().each())
            .all(Vec::is_empty)
    }

    /// Whether a batch of this shape is launched alike whatever its rows hold. Mixes of variants of several banks are rare, and
    /// dense banks are asked for one by one.
    pub fn recordable(&self) -> bool {
        let recordable = |list: &Sources<Vec<WaveShape>>| {
            list.dense.is_empty() && list.tiled.len() <= 1 && list.own.len() <= 1
        };
        self.waves.iter().all(recordable)
    }
}

/// Where everything lies: addresses, or offsets in a batch's memory.
#[derive(Clone, Debug)]
pub struct Places<A = Address> {
    pub tokens: A,
    pub positions: A,
    pub line: A,
    pub mix: A,
    pub segment: A,
    pub slots: A,
    pub wanted: A,
    pub segments: A,
    pub pages: A,
    pub tiles: A,
    pub embedded: A,
    pub first_embedded: A,
    pub draws: A,
    /// By list: [rows] u32, 1 for rows that have parts.
    pub parted: Vec<A>,
    pub lists: Vec<Sources<Vec<Wave<A>>>>,
}

/// A batch, packed.
#[derive(Debug)]
pub struct PackedBatch {
    pub shape: BatchShape,
    pub bytes: Vec<u8>,
    pub places: Places<usize>,
}

/// What attention needs to know of a segment whose rows begin at `first_row`, and whose pages at `pages`.
fn facts(segment: &Segment, first_row: usize, pages: usize) -> SegmentFacts {
    let first = segment.first_position;
    // Blocks begin at the phase, and the text's beginning may be part of one.
    let begun = segment
        .block
        .map_or(0, |block| (first + block - segment.phase % block) % block);
    SegmentFacts {
        first_row: first_row as u32,
        tokens: segment.tokens.len() as u32,
        first_position: first as u32,
        block: segment.block.unwrap_or(segment.tokens.len()).max(1) as u32,
        pages: pages as u32,
        pages_start: segment.pages_start as u32,
        oldest: if first == 0 { 0 } else { segment.pages_start } as u32,
        begun: begun as u32,
    }
}

/// What batches are packed for.
pub struct Packing<'a> {
    pub lists: &'a [List],
    pub routing: &'a Arc<Routing>,
    /// Of the embedding's matrix.
    pub embedding: &'a Sources<Placement>,
    pub page_tokens: usize,
    pub vocab: usize,
    /// Heads that share a key.
    pub group: usize,
}

impl PackedBatch {
    /// `slots`: the slots of modulation tables and of biases of every segment. `memory` is written to: new memory for every batch
    /// costs more than what is done with it.
    pub fn new(
        mut memory: Vec<u8>,
        batch: &Batch,
        slots: &[(u32, u32)],
        packing: &Packing,
    ) -> Result<Self> {
        let (lists, vocab, page_tokens) = (packing.lists, packing.vocab, packing.page_tokens);
        let (mut tokens, mut positions, mut line, mut mix) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut segment_of, mut cache_slots, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        let (mut segments, mut pages) = (Vec::new(), Vec::new());
        let (mut runs, mut wanted_runs) = (Vec::new(), Vec::new());
        for (index, (segment, &(line_slot, mix_slot))) in
            batch.segments.iter().zip(slots).enumerate()
        {
            let first_row = tokens.len();
            if let Some(&token) = segment
                .tokens
                .iter()
                .find(|&&token| token as usize >= vocab)
            {
                return Err(Error::Token { token, rows: vocab });
            }
            segments.push(facts(segment, first_row, pages.len()));
            pages.extend(segment.pages.iter().map(|page| page.0));
            let count = segment.tokens.len();
            tokens.extend_from_slice(&segment.tokens);
            positions.extend(
                (segment.first_position..)
                    .take(count)
                    .map(|position| position as u32),
            );
            line.resize(tokens.len(), line_slot);
            mix.resize(tokens.len(), mix_slot);
            segment_of.resize(tokens.len(), index as u32);
            let clean = segment.first_position..segment.first_position + segment.clean;
            cache_slots.extend(clean.map(|position| {
                let offset = position - segment.pages_start;
                let page = segment.pages[offset / page_tokens].0 as usize;
                (page * page_tokens + offset % page_tokens) as u32
            }));
            cache_slots.resize(tokens.len(), NONE);
            let first_wanted = wanted.len();
            wanted.extend(segment.rows.iter().map(|&row| (first_row + row) as u32));
            let run = |first: usize, end: usize| MixRun {
                rows: first as u32..end as u32,
                mix: &segment.mix,
            };
            runs.push(run(first_row, tokens.len()));
            wanted_runs.push(run(first_wanted, wanted.len()));
        }
        let (rows, logit_rows) = (rounded(tokens.len()), rounded(wanted.len()));
        let (segment_count, page_count) = (rounded(segments.len()), rounded(pages.len()).max(64));

        let longest = batch.segments.iter().map(|s| s.tokens.len()).max();
        let cut = Cut::of(longest.unwrap_or(0), packing.group);
        let tiles: Vec<QueryTile> = (0..)
            .zip(&batch.segments)
            .flat_map(|(segment, facts)| {
                let starts = (0..facts.tokens.len()).step_by(cut.tokens(packing.group));
                starts.map(move |first| QueryTile {
                    segment,
                    first: first as u32,
                })
            })
            .collect();
        let tile_count = rounded(tiles.len());

        let mut first_embedded = vec![0u32];
        let mut embedded: Vec<PartFacts> = Vec::new();
        for MixRun { rows, mix } in &runs {
            let tiled = parts(&packing.embedding.tiled, mix).map(|part| PartFacts {
                bank: part.bank | TILES,
                ..part
            });
            let dense = parts(&packing.embedding.dense, mix);
            let all: Vec<PartFacts> = tiled.chain(dense).collect();
            for row in rows.clone() {
                embedded.extend(all.iter().map(|&part| PartFacts { row, ..part }));
                first_embedded.push(embedded.len() as u32);
            }
        }
        let (embedded_count, last) = (rounded(embedded.len()), embedded.len() as u32);

        memory.clear();
        let mut writer = Writer(memory);
        let draws = batch
            .segments
            .iter()
            .flat_map(|s| (0..s.rows.len()).map(|at| s.draws.get(at)));
        let draws: Vec<Option<&Draw>> = draws.collect();
        let parts_of = |list: &List| {
            let runs = match list.rows {
                RowSet::All => &runs,
                RowSet::Wanted => &wanted_runs,
            };
            list.placement
                .by_ref()
                .map(|placement| waves(placement, runs))
        };
        let all_parts: Vec<Sources<_>> = lists.iter().map(parts_of).collect();
        let parted = (lists.iter().zip(&all_parts)).map(|(list, waves)| {
            let count = match list.rows {
                RowSet::All => rows,
                RowSet::Wanted => logit_rows,
            };
            let mut parted = vec![0u32; count];
            let parts = waves.by_ref().each().into_iter().flatten().flatten();
            parts.for_each(|part| parted[part.row as usize] = 1);
            parted
        });
        let parted: Vec<Vec<u32>> = parted.collect();
        let places = Places {
            tokens: writer.put(tokens, rows, NONE),
            positions: writer.put(positions, rows, 0),
            line: writer.put(line, rows, 0),
            mix: writer.put(mix, rows, 0),
            segment: writer.put(segment_of, rows, NONE),
            slots: writer.put(cache_slots, rows, NONE),
            wanted: writer.put(wanted, logit_rows, NONE),
            segments: writer.put(segments, segment_count, SegmentFacts::default()),
            pages: writer.put(pages, page_count, 0),
            tiles: writer.put(tiles, tile_count, QueryTile::default()),
            embedded: writer.put(embedded, embedded_count, PartFacts::default()),
            first_embedded: writer.put(first_embedded, rows + 1, last),
            draws: writer.put_draws(&draws, logit_rows, vocab),
            parted: (parted.into_iter())
                .map(|parted| writer.put(parted, 0, 0))
                .collect(),
            lists: (lists.iter().zip(all_parts))
                .map(|(list, parts)| {
                    let mut put = |parts| wave(parts, list.most, &mut writer);
                    parts.map(|waves: Vec<_>| waves.into_iter().map(&mut put).collect())
                })
                .collect(),
        };
        let shape = BatchShape {
            rows,
            wanted: logit_rows,
            segments: segment_count,
            pages: page_count,
            embedded: embedded_count,
            tiles: tile_count,
            cut,
            waves: shapes(&places.lists),
            routing: packing.routing.clone(),
        };
        Ok(Self {
            shape,
            bytes: writer.0,
            places,
        })
    }
}

impl Places<usize> {
    /// The same in `memory`, to which the batch's is copied.
    pub fn within(self, memory: &Buffer) -> Places {
        let at = |offset: usize| memory.address() + offset;
        let waves = |waves: Vec<Wave<usize>>| {
            let waves = waves.into_iter().map(|wave| Wave {
                shape: wave.shape,
                parts: at(wave.parts),
                groups: at(wave.groups),
                banks: wave.banks,
            });
            waves.collect()
        };
        Places {
            tokens: at(self.tokens),
            positions: at(self.positions),
            line: at(self.line),
            mix: at(self.mix),
            segment: at(self.segment),
            slots: at(self.slots),
            wanted: at(self.wanted),
            segments: at(self.segments),
            pages: at(self.pages),
            tiles: at(self.tiles),
            embedded: at(self.embedded),
            first_embedded: at(self.first_embedded),
            draws: at(self.draws),
            parted: self.parted.into_iter().map(at).collect(),
            lists: self.lists.into_iter().map(|list| list.map(waves)).collect(),
        }
    }
}

/// Bytes of what is drawn from `rows` rows.
pub fn drawn_bytes(rows: usize) -> usize {
    rows * size_of::<DrawnFacts>()
}
