//! The parts that variants have in a batch's rows, in the order in which products take them.

use super::writer::{Writer, rounded};
use crate::model::batch::Mix;
use crate::ops::gpu::Address;
use crate::ops::gpu::pointwise::NONE;
use crate::ops::gpu::products::{PartFacts, ProductGroup, Split, TIERS};
use std::ops::Range;
use std::sync::Arc;

/// What parts of a matrix are multiplied with: banks in tiles, banks in the device's own type, what variants keep by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sources<T> {
    pub tiled: T,
    pub dense: T,
    pub own: T,
}

impl<T> Sources<T> {
    pub fn map<U>(self, mut make: impl FnMut(T) -> U) -> Sources<U> {
        Sources {
            tiled: make(self.tiled),
            dense: make(self.dense),
            own: make(self.own),
        }
    }

    pub fn by_ref(&self) -> Sources<&T> {
        Sources {
            tiled: &self.tiled,
            dense: &self.dense,
            own: &self.own,
        }
    }

    pub fn each(self) -> [T; 3] {
        [self.tiled, self.dense, self.own]
    }
}

/// For every variant of an instance, its slot and that of the bank it lies in; what it keeps by itself is a bank of one, of its own slot.
pub type Placement = Vec<Option<(u32, u32)>>;

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
    pub placement: Sources<Placement>,
    pub rows: RowSet,
    /// Parts to a group at most: more of them read a bank less often, fewer are done sooner, which is what small banks are about.
    pub most: usize,
}

impl List {
    /// Banks that any part may have, own ones included.
    fn banks(&self) -> usize {
        let mut banks: Vec<u32> = (self.placement.by_ref().each().into_iter().flatten())
            .filter_map(|place| place.map(|(_, bank)| bank))
            .collect();
        banks.sort_unstable();
        banks.dedup();
        banks.len()
    }

    /// The largest launches for so many rows, each with a part.
    pub fn largest(&self, rows: usize) -> Sources<Vec<WaveShape>> {
        let banks = self.banks();
        let tiers = || TIERS.into_iter().filter(|tier| *tier <= self.most);
        let shape = |tier: usize| WaveShape {
            tier,
            groups: rounded(rows.min(banks + rows / tier)),
            parts: rounded(rows),
        };
        self.placement.by_ref().map(|placement| {
            let some = placement.iter().any(Option::is_some) && rows > 0;
            some.then(|| tiers().map(shape))
                .into_iter()
                .flatten()
                .collect()
        })
    }
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

/// What an instance launches for a shape of batch, but for the batch: two instances of a base that agree in it share what was
/// recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Routing {
    /// Of every matrix: which list is its own, and the highest rank that a variant keeps of it.
    pub matrices: Vec<(usize, usize)>,
}

/// Parts of a list of which no two belong to one row.
#[derive(Clone, Debug)]
pub struct Wave<A = Address> {
    pub shape: WaveShape,
    pub parts: A,
    pub groups: A,
    /// Banks and their parts.
    pub banks: Vec<(u32, Range<usize>)>,
}

/// Rows one after the other that have one mix.
pub struct MixRun<'a> {
    pub rows: Range<u32>,
    pub mix: &'a Mix,
}

/// The parts that any row of a mix has; whose row they are is left open.
pub fn parts(placement: &Placement, mix: &Mix) -> impl Iterator<Item = PartFacts> {
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
pub fn waves(placement: &Placement, runs: &[MixRun]) -> Vec<Vec<PartFacts>> {
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

/// Appends a wave.
pub fn wave(parts: Vec<PartFacts>, most: usize, writer: &mut Writer) -> Wave<usize> {
    let mut banks: Vec<(u32, Range<usize>)> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        match banks.last_mut() {
            Some((bank, range)) if *bank == part.bank => range.end = index + 1,
            _ => banks.push((part.bank, index..index + 1)),
        }
    }
    let longest = (banks.iter().map(|(_, range)| range.len())).max();
    let longest = longest.unwrap_or(0).min(most);
    let tier = TIERS.into_iter().find(|&tier| tier >= longest);
    let tier = tier.unwrap_or(TIERS[3]);
    let mut groups: Vec<ProductGroup> = banks
        .iter()
        .flat_map(|(bank, range)| {
            range.clone().step_by(tier).map(|first| ProductGroup {
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
        groups: writer.put(groups, shape.groups, ProductGroup::default()),
        banks,
    }
}

/// Of every list the sizes of its launches.
pub fn shapes(lists: &[Sources<Vec<Wave<usize>>>]) -> Arc<[Sources<Vec<WaveShape>>]> {
    let of = |waves: &Vec<Wave<usize>>| waves.iter().map(|wave| wave.shape).collect();
    lists.iter().map(|list| list.by_ref().map(of)).collect()
}
