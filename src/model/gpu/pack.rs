//! A batch as one piece of memory that the device reads: tokens, positions, which tables, segments, pages, variants' parts,
//! draws. Its layout depends on the batch's shape alone, rounded up, so that a recorded step can be replayed.

use super::linear::Placement;
use crate::model::batch::{Batch, Mix};
use crate::model::error::{Error, Result};
use crate::ops::categorical::Draw;
use crate::ops::gpu::attention::{Cut, QueryTile, SegmentFacts};
use crate::ops::gpu::draw::{DrawFacts, DrawnFacts};
use crate::ops::gpu::pointwise::NONE;
use crate::ops::gpu::products::{Group, PartFacts, Split, TIERS};
use crate::ops::gpu::{Plain, bytes_of};
use rayon::prelude::*;
use std::ops::Range;

/// Which rows a list of parts speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowSet {
    /// All tokens of the batch.
    All,
    /// Those whose logits are wanted.
    Wanted,
}

/// What a list of parts is made for: matrices whose variants lie alike share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    pub placement: Placement,
    /// Variants that keep such a matrix by themselves, as banks of one.
    pub own: Placement,
    pub rows: RowSet,
    /// Parts to a group at most: more of them read a bank less often, fewer are done sooner, which is what small banks are about.
    pub most: usize,
}

/// The size of one launch for parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaveShape {
    /// Parts to a group at most.
    pub tier: usize,
    pub groups: usize,
    pub parts: usize,
}

impl WaveShape {
    pub fn split(&self, processors: u32, out: usize, input: usize) -> Split {
        Split::banks(processors, (self.tier, self.groups), (out, input))
    }
}

/// The size of a batch, rounded up: batches of one shape lie in memory alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub rows: usize,
    pub wanted: usize,
    segments: usize,
    pages: usize,
    embedded: usize,
    /// Tiles of queries.
    pub tiles: usize,
    pub cut: Cut,
    /// By list, by wave.
    waves: Vec<Vec<WaveShape>>,
    /// The same of what variants keep by themselves.
    own: Vec<Vec<WaveShape>>,
}

impl Shape {
    /// Waves of parts of one list.
    pub fn waves(&self, list: usize) -> impl Iterator<Item = &WaveShape> {
        self.waves.get(list).into_iter().flatten()
    }

    /// Waves of parts of one list that variants keep by themselves.
    pub fn own(&self, list: usize) -> impl Iterator<Item = &WaveShape> {
        self.own.get(list).into_iter().flatten()
    }

    /// Whether no row has a part.
    pub fn bare(&self) -> bool {
        self.waves.iter().chain(&self.own).all(Vec::is_empty)
    }

    /// Whether a batch of this shape is launched alike whatever its rows hold. Mixes of variants of several banks are rare, and
    /// dense banks are asked for one by one.
    pub fn recordable(&self) -> bool {
        let mut all = self.waves.iter().chain(&self.own);
        all.all(|waves| waves.len() <= 1)
    }
}

/// Parts of a list of which no two belong to one row.
#[derive(Clone, Debug)]
pub struct Wave {
    pub shape: WaveShape,
    /// Offsets until the memory is known, addresses then.
    pub parts: u64,
    pub groups: u64,
    /// Banks and their parts.
    pub dense: Vec<(u32, Range<usize>)>,
}

/// Where everything lies.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub tokens: u64,
    pub positions: u64,
    pub line: u64,
    pub mix: u64,
    pub segment: u64,
    pub slots: u64,
    pub wanted: u64,
    pub segments: u64,
    pub pages: u64,
    pub tiles: u64,
    pub embedded: u64,
    pub first_embedded: u64,
    pub draws: u64,
    /// By list: [rows] u32, 1 for rows that have parts.
    pub parted: Vec<u64>,
    pub lists: Vec<Vec<Wave>>,
    /// By list, of what variants keep by themselves.
    pub own: Vec<Vec<Wave>>,
}

/// A batch, packed.
#[derive(Debug)]
pub struct Packed {
    pub shape: Shape,
    pub bytes: Vec<u8>,
    pub places: Places,
}

/// Few sizes, none more than half too large.
pub fn rounded(count: usize) -> usize {
    match count {
        0..=1 => count,
        2..=8 => count.next_power_of_two(),
        _ => {
            let power = count.next_power_of_two();
            if count <= power / 4 * 3 {
                power / 4 * 3
            } else {
                power
            }
        }
    }
}

struct Writer(Vec<u8>);

impl Writer {
    /// Room for `count` elements at a multiple of sixteen bytes: its offset.
    fn room<T>(&mut self, count: usize) -> usize {
        let start = self.0.len().next_multiple_of(16);
        self.0.resize(start + count * size_of::<T>(), 0);
        start
    }

    /// Appends `data` and padding up to `count` elements; returns its offset.
    fn put<T: Plain>(&mut self, mut data: Vec<T>, count: usize, padding: T) -> u64 {
        data.resize(count.max(data.len()), padding);
        let start = self.room::<T>(0);
        self.0.extend_from_slice(bytes_of(&data));
        start as u64
    }

    /// Appends a draw or none for every row, and none up to `count`; returns its offset.
    fn put_draws(&mut self, draws: &[Option<&Draw>], count: usize, vocab: usize) -> u64 {
        const BYTES: usize = size_of::<DrawFacts>();
        let start = self.room::<DrawFacts>(count.max(draws.len()));
        let (facts, _) = self.0[start..].as_chunks_mut::<BYTES>();
        let put = |(to, draw): (&mut [u8; BYTES], &Option<&Draw>)| {
            if let Some(draw) = draw {
                to.copy_from_slice(bytes_of(&[DrawFacts::of(draw, vocab)]));
            }
        };
        // Only of many are several threads quicker than one, which asking them alone would take longer than.
        match draws.len() {
            0..2048 => facts.iter_mut().zip(draws).for_each(put),
            _ => facts
                .par_iter_mut()
                .zip(draws)
                .with_min_len(1024)
                .for_each(put),
        }
        start as u64
    }
}

/// Rows one after the other that have one mix.
struct MixRun<'a> {
    rows: Range<u32>,
    mix: &'a Mix,
}

/// The parts that any row of a mix has; whose row they are is left open.
fn parts(placement: &Placement, mix: &Mix) -> impl Iterator<Item = PartFacts> {
    mix.0.iter().filter_map(|&(variant, weight)| {
        let (slot, bank) = (*placement.get(variant.0 as usize)?)?;
        Some(PartFacts {
            row: NONE,
            variant: slot,
            weight,
            bank,
        })
    })
}

/// The parts of all rows, in waves; of a wave bank by bank, and by row within a bank.
fn waves(placement: &Placement, runs: &[MixRun]) -> Vec<Vec<PartFacts>> {
    let mut waves: Vec<Vec<(PartFacts, &Range<u32>)>> = Vec::new();
    for MixRun { rows, mix } in runs.iter().filter(|run| !run.rows.is_empty()) {
        for (ordinal, part) in parts(placement, mix).enumerate() {
            match waves.get_mut(ordinal) {
                Some(wave) => wave.push((part, rows)),
                None => waves.push(vec![(part, rows)]),
            }
        }
    }
    let by_rows = |mut wave: Vec<(PartFacts, &Range<u32>)>| {
        wave.sort_by_key(|(part, _)| part.bank); // stable
        let mut parts = Vec::with_capacity(wave.iter().map(|(_, rows)| rows.len()).sum());
        for (part, rows) in wave {
            parts.extend(rows.clone().map(|row| PartFacts { row, ..part }));
        }
        parts
    };
    waves.into_iter().map(by_rows).collect()
}

fn wave(parts: Vec<PartFacts>, most: usize, writer: &mut Writer) -> Wave {
    let mut dense: Vec<(u32, Range<usize>)> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        match dense.last_mut() {
            Some((bank, range)) if *bank == part.bank => range.end = index + 1,
            _ => dense.push((part.bank, index..index + 1)),
        }
    }
    let longest = dense
        .iter()
        .map(|(_, range)| range.len())
        .max()
        .unwrap_or(0);
    let tier = TIERS
        .into_iter()
        .find(|&tier| tier >= longest.min(most))
        .unwrap_or(TIERS[3]);
    let mut groups: Vec<Group> = dense
        .iter()
        .flat_map(|(bank, range)| {
            range.clone().step_by(tier).map(|first| Group {
                bank: *bank,
                first: first as u32,
                count: tier.min(range.end - first) as u32,
                groups: 0,
            })
        })
        .collect();
    let count = groups.len() as u32;
    groups.iter_mut().for_each(|group| group.groups = count);
    let shape = WaveShape {
        tier,
        groups: rounded(groups.len()),
        parts: rounded(parts.len()),
    };
    Wave {
        shape,
        parts: writer.put(parts, shape.parts, PartFacts::default()),
        groups: writer.put(groups, shape.groups, Group::default()),
        dense,
    }
}

/// Appends the waves of every list.
fn put_waves(
    lists: &[List],
    parts: Vec<Vec<Vec<PartFacts>>>,
    writer: &mut Writer,
) -> Vec<Vec<Wave>> {
    let of_list = |(list, waves): (&List, Vec<Vec<PartFacts>>)| {
        let waves = waves
            .into_iter()
            .map(|parts| wave(parts, list.most, writer));
        waves.collect()
    };
    lists.iter().zip(parts).map(of_list).collect()
}

fn shapes(lists: &[Vec<Wave>]) -> Vec<Vec<WaveShape>> {
    let of_list = |waves: &Vec<Wave>| waves.iter().map(|wave| wave.shape).collect();
    lists.iter().map(of_list).collect()
}

impl Packed {
    /// `slots`: the slots of modulation tables and of biases of every segment. `embedding`: the list of the embedding's matrix.
    /// `memory` is written to: new memory for every batch costs more than what is done with it.
    pub fn new(
        mut memory: Vec<u8>,
        batch: &Batch,
        slots: &[(u32, u32)],
        (lists, embedding): (&[List], &Placement),
        (page_tokens, vocab): (usize, usize),
    ) -> Result<Self> {
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
            segments.push(SegmentFacts {
                first_row: first_row as u32,
                tokens: segment.tokens.len() as u32,
                first_position: segment.first_position as u32,
                block: segment.block.unwrap_or(segment.tokens.len()).max(1) as u32,
                pages: pages.len() as u32,
                pages_start: segment.pages_start as u32,
                oldest: if segment.first_position == 0 {
                    0
                } else {
                    segment.pages_start
                } as u32,
                unused: 0,
            });
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

        let cut = Cut::of(
            batch
                .segments
                .iter()
                .map(|s| s.tokens.len())
                .max()
                .unwrap_or(0),
        );
        let tiles: Vec<QueryTile> = (0..)
            .zip(&batch.segments)
            .flat_map(|(segment, facts)| {
                let starts = (0..facts.tokens.len()).step_by(cut.queries());
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
            let all: Vec<PartFacts> = parts(embedding, mix).collect();
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
            [&list.placement, &list.own].map(|placement| waves(placement, runs))
        };
        let all_parts: Vec<[Vec<Vec<PartFacts>>; 2]> = lists.iter().map(parts_of).collect();
        let parted = (lists.iter().zip(&all_parts)).map(|(list, waves)| {
            let count = match list.rows {
                RowSet::All => rows,
                RowSet::Wanted => logit_rows,
            };
            let mut parted = vec![0u32; count];
            let parts = waves.iter().flatten().flatten();
            parts.for_each(|part| parted[part.row as usize] = 1);
            parted
        });
        let parted: Vec<Vec<u32>> = parted.collect();
        let [mut banked, mut own] = [Vec::new(), Vec::new()];
        for [of_banks, of_own] in all_parts {
            banked.push(of_banks);
            own.push(of_own);
        }
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
            lists: put_waves(lists, banked, &mut writer),
            own: put_waves(lists, own, &mut writer),
        };
        let shape = Shape {
            rows,
            wanted: logit_rows,
            segments: segment_count,
            pages: page_count,
            embedded: embedded_count,
            tiles: tile_count,
            cut,
            waves: shapes(&places.lists),
            own: shapes(&places.own),
        };
        Ok(Self {
            shape,
            bytes: writer.0,
            places,
        })
    }
}

impl Places {
    /// The same from offsets to addresses.
    pub fn at(mut self, start: u64) -> Self {
        let places = [
            &mut self.tokens,
            &mut self.positions,
            &mut self.line,
            &mut self.mix,
            &mut self.segment,
            &mut self.slots,
            &mut self.wanted,
            &mut self.segments,
            &mut self.pages,
            &mut self.tiles,
            &mut self.embedded,
            &mut self.first_embedded,
            &mut self.draws,
        ];
        places
            .into_iter()
            .chain(&mut self.parted)
            .for_each(|place| *place += start);
        for wave in self.lists.iter_mut().chain(&mut self.own).flatten() {
            wave.parts += start;
            wave.groups += start;
        }
        self
    }
}

/// Bytes of what is drawn from `rows` rows.
pub fn drawn_bytes(rows: usize) -> usize {
    rows * size_of::<DrawnFacts>()
}
