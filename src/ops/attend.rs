//! Softmax attention of a few queries of one head over keys and values where they lie: in pages of a cache, and beside it.
//!
//! Scores are chains of multiply-adds over a head's elements, outputs are chains over the positions in order, so results
//! depend neither on how the positions are spread over pages nor on the other queries.

use super::isa::Isa;
use super::math;
use super::panel::{LANES, Panel, Rows, TILE, accumulate};
use std::ops::Range;

/// Consecutive positions of one head.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// Keys after rotation, sixteen positions side by side: [slots / 16][head_dim][16].
    pub keys: &'a [f32],
    /// [slots][head_dim rounded up to 16].
    pub values: &'a [f32],
    /// Slots that are seen.
    pub seen: Range<usize>,
}

/// Floats of `slots` keys, and of as many values, of a head.
pub fn sizes(slots: usize, head_dim: usize) -> (usize, usize) {
    (
        slots.next_multiple_of(LANES) * head_dim,
        slots * head_dim.next_multiple_of(LANES),
    )
}

/// Where element 0 of a slot's key lies among a head's keys; the next elements follow every [`LANES`] floats.
pub fn key_at(slot: usize, head_dim: usize) -> usize {
    slot / LANES * LANES * head_dim + slot % LANES
}

/// Queries that share a pass over keys and values.
pub const QUERIES: usize = 4 * TILE;

/// Positions whose values stay in the nearest cache while all queries take them.
const NEAR: usize = 128;

impl<'a> Run<'a> {
    /// Groups of sixteen keys that hold what is seen, and which of each group is.
    fn groups(self, dim: usize) -> impl Iterator<Item = (&'a [f32], Range<usize>)> {
        let Range { start, end } = self.seen;
        (start / LANES..end.div_ceil(LANES)).map(move |group| {
            let first = group * LANES;
            let seen = start.max(first) - first..end.min(first + LANES) - first;
            (&self.keys[first * dim..][..LANES * dim], seen)
        })
    }

    /// Values of what is seen, up to [`NEAR`] positions at a time, from one element on, and how many positions they are of.
    fn values(self, width: usize, element: usize) -> impl Iterator<Item = (&'a [f32], usize)> {
        let Range { start, end } = self.seen;
        (start..end).step_by(NEAR).map(move |first| {
            let values = &self.values[first * width + element..];
            (values, NEAR.min(end - first))
        })
    }
}

/// Softmax attention of up to [`QUERIES`] queries [rows, head_dim], already scaled, over the runs' positions in order; `put`
/// takes a row, a first element and elements of the output, each once.
pub fn attend<'a, I: Iterator<Item = Run<'a>>>(
    queries: Rows,
    rows: usize,
    runs: impl Fn() -> I,
    scores: &mut Vec<f32>,
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    assert!(rows <= QUERIES, "{rows} queries");
    let (isa, dim) = (Isa::best(), queries.inputs);
    let positions: usize = runs().map(|run| run.seen.len()).sum();
    if scores.len() < rows * positions {
        scores.resize(rows * positions, 0.0);
    }
    let scores = &mut scores[..rows * positions];
    let first_values = runs().next().map_or(std::ptr::null(), |run| run.values.as_ptr());
    let (mut groups, mut at) = (runs().flat_map(|run| run.groups(dim)).peekable(), 0);
    while let Some((data, seen)) = groups.next() {
        let panel = Panel {
            data,
            step: LANES,
            next: groups.peek().map_or(first_values, |(data, _)| data.as_ptr()),
        };
        for tile in (0..rows).step_by(TILE) {
            let (queries, count) = (tile_of(queries, tile), TILE.min(rows - tile));
            let mut sums = [[0f32; LANES]; TILE];
            accumulate(isa, panel, queries, &mut sums[..count]);
            for (scores, sums) in scores[tile * positions..].chunks_mut(positions).zip(&sums[..count]) {
                scores[at..][..seen.len()].copy_from_slice(&sums[seen.clone()]);
            }
        }
        at += seen.len();
    }
    isa.run(|| {
        for scores in scores.chunks_mut(positions.max(1)) {
            math::softmax(scores);
        }
    });
    let width = dim.next_multiple_of(LANES);
    let weights = Rows {
        data: scores,
        stride: positions,
        inputs: positions,
    };
    for element in (0..dim).step_by(LANES) {
        let (mut sums, mut at) = ([[0f32; LANES]; QUERIES], 0);
        let mut values = runs().flat_map(|run| run.values(width, element)).peekable();
        while let Some((data, inputs)) = values.next() {
            let panel = Panel {
                data,
                step: width,
                next: values.peek().map_or(data.as_ptr(), |(data, _)| data.as_ptr()),
            };
            for (tile, sums) in sums[..rows].chunks_mut(TILE).enumerate() {
                let weights = tile_of(weights, tile * TILE);
                let weights = Rows {
                    data: &weights.data[at..],
                    inputs,
                    ..weights
                };
                accumulate(isa, panel, weights, sums);
            }
            at += inputs;
        }
        for (row, sums) in sums[..rows].iter().enumerate() {
            put(row, element, &sums[..LANES.min(dim - element)]);
        }
    }
}

/// The rows from `first` on.
fn tile_of(rows: Rows, first: usize) -> Rows {
    Rows {
        data: &rows.data[first * rows.stride..],
        ..rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The attention of `queries` over positions cut into runs at `cuts`, each run in a page that begins `lead` slots earlier.
    fn attended(queries: &[f32], dim: usize, keys: &[f32], values: &[f32], cuts: &[usize], lead: usize) -> Vec<f32> {
        let pages: Vec<(Vec<f32>, Vec<f32>, Range<usize>)> = (cuts.windows(2))
            .map(|cut| {
                let count = cut[1] - cut[0];
                let (k, v) = sizes(lead + count, dim);
                let (mut page_keys, mut page_values) = (vec![f32::NAN; k], vec![0.0; v]);
                for slot in 0..count {
                    let position = cut[0] + slot;
                    for d in 0..dim {
                        page_keys[key_at(lead + slot, dim) + d * LANES] = keys[position * dim + d];
                        page_values[(lead + slot) * dim.next_multiple_of(LANES) + d] = values[position * dim + d];
                    }
                }
                (page_keys, page_values, lead..lead + count)
            })
            .collect();
        let mut out = vec![f32::NAN; queries.len()];
        for (tile, queries) in queries.chunks(QUERIES * dim).enumerate() {
            let rows = Rows {
                data: queries,
                stride: dim,
                inputs: dim,
            };
            let runs = || {
                pages.iter().map(|(keys, values, seen)| Run {
                    keys,
                    values,
                    seen: seen.clone(),
                })
            };
            attend(rows, queries.len() / dim, runs, &mut Vec::new(), |row, first, part| {
                out[(tile * QUERIES + row) * dim + first..][..part.len()].copy_from_slice(part);
            });
        }
        out
    }

    proptest! {
        #[test]
        fn attention_is_the_definition_however_positions_lie(
            dim in 1usize..40, count in 1usize..70, positions in 1usize..300, cut in 0usize..300, lead in 0usize..20, salt: u8,
        ) {
            let mut stream = crate::rng::Stream::new(crate::rng::Key([salt; 32]));
            let mut noise = |count: usize| (0..count).map(|_| stream.normal() as f32).collect::<Vec<f32>>();
            let (queries, keys, values) = (noise(count * dim), noise(positions * dim), noise(positions * dim));
            let whole = attended(&queries, dim, &keys, &values, &[0, positions], 0);
            let cut = cut.min(positions);
            prop_assert_eq!(&attended(&queries, dim, &keys, &values, &[0, cut, positions], lead), &whole);
            let alone = attended(&queries[..dim], dim, &keys, &values, &[0, positions], 0);
            prop_assert_eq!(&alone[..], &whole[..dim]);
            for (query, out) in queries.chunks(dim).zip(whole.chunks(dim)) {
                let score = |key: &[f32]| query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
                let scores: Vec<f64> = keys.chunks(dim).map(score).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                for (d, out) in out.iter().enumerate() {
                    let weighted = scores.iter().zip(values.chunks(dim)).map(|(score, v)| (score - most).exp() * f64::from(v[d]));
                    prop_assert!((weighted.sum::<f64>() / total - f64::from(*out)).abs() < 1e-4);
                }
            }
        }
    }
}
