//! Softmax attention of a few queries of one head over keys and values where they lie: in pages of a cache, and beside it.
//!
//! Scores are chains of multiply-adds over a head's elements, outputs are chains over the positions in order, so results
//! depend neither on how the positions are spread over pages nor on the other queries.

use super::isa::{Isa, Vectorised};
use super::math;
use super::panel::{LANES, Panel, Stored, StridedRows, Sums, TILE, accumulate};
use std::ops::Range;

/// Consecutive positions of one head, in f32 or bf16.
#[derive(Clone, Debug)]
pub struct PositionRun<'a, T = f32> {
    /// Keys after rotary embedding, sixteen positions side by side: [slots / 16][head_dim][16].
    pub keys: &'a [T],
    /// [slots][head_dim rounded up to 16].
    pub values: &'a [T],
    /// Slots that are seen.
    pub seen: Range<usize>,
    /// What is read after these values, in the same steps: it is asked for meanwhile.
    pub after: &'a [T],
}

/// Numbers of `slots` keys, and of as many values, of a head.
pub fn sizes(slots: usize, head_dim: usize) -> (usize, usize) {
    (
        slots.next_multiple_of(LANES) * head_dim,
        slots * head_dim.next_multiple_of(LANES),
    )
}

/// Where element 0 of a slot's key lies among a head's keys; the next elements follow every [`LANES`] numbers.
pub fn key_at(slot: usize, head_dim: usize) -> usize {
    slot / LANES * LANES * head_dim + slot % LANES
}

/// Queries that share a pass over keys and values.
pub const QUERIES: usize = 4 * TILE;

/// Positions whose values stay in the nearest cache while all queries take them.
const NEAR: usize = 128;

/// Pages of which values are taken in one go.
const PAGES: usize = 8;

/// Sixteen keys, which of them are seen, and the values of the first of them, to be read later.
struct Keys<'a, T> {
    data: &'a [T],
    seen: Range<usize>,
    values: *const T,
}

impl<'a, T: Stored> PositionRun<'a, T> {
    /// Groups of keys that hold what is seen.
    fn keys(self, dim: usize) -> impl Iterator<Item = Keys<'a, T>> {
        let Range { start, end } = self.seen;
        (start / LANES..end.div_ceil(LANES)).map(move |group| {
            let first = group * LANES;
            Keys {
                data: &self.keys[first * dim..][..LANES * dim],
                seen: start.max(first) - first..end.min(first + LANES) - first,
                values: self.values.as_ptr().wrapping_add(first * dim),
            }
        })
    }

    /// Values of what is seen, up to [`NEAR`] positions at a time: `N` groups of elements from one on.
    fn values<const N: usize>(
        self,
        width: usize,
        element: usize,
    ) -> impl Iterator<Item = Panel<'a, N, T>> {
        let Range { start, end } = self.seen;
        (start..end).step_by(NEAR).map(move |first| {
            let at = |group: usize| first * width + element + group * LANES;
            Panel {
                groups: std::array::from_fn(|group| &self.values[at(group)..]),
                step: width,
                inputs: NEAR.min(end - first),
                next: std::array::from_fn(|group| self.after.as_ptr().wrapping_add(at(group))),
            }
        })
    }
}

/// Queries of one head, and what they have to do with the positions that they see.
struct Attention<'a> {
    isa: Isa,
    /// [rows, head_dim]
    queries: StridedRows<'a>,
    rows: usize,
    /// [rows, stride]: scores, then their exponentials.
    scores: &'a mut [f32],
    stride: usize,
}

/// Softmax attention of up to [`QUERIES`] queries [rows, head_dim], already scaled, over the runs' positions in order; `put`
/// takes a row, a first element and elements of the output, each once.
pub fn attend<'a, T: Stored, I: Iterator<Item = PositionRun<'a, T>>>(
    queries: StridedRows,
    rows: usize,
    runs: impl Fn() -> I,
    scores: &mut Vec<f32>,
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    assert!(rows <= QUERIES, "{rows} queries");
    let dim = queries.stride;
    let positions: usize = runs().map(|run| run.seen.len()).sum();
    // Sixteen scores are written at a time, which may be more than are left.
    let stride = positions.next_multiple_of(LANES) + LANES;
    if scores.len() < rows * stride {
        scores.resize(rows * stride, 0.0);
    }
    let mut all = Attention {
        isa: Isa::best(),
        queries,
        rows,
        scores: &mut scores[..rows * stride],
        stride,
    };
    all.score(runs().flat_map(|run| run.keys(dim)));
    let mut totals = [0f32; QUERIES];
    all.isa.run(Exponentials {
        scores: all.scores,
        stride,
        positions,
        totals: &mut totals,
    });
    let mut element = 0;
    while element < dim {
        let mut put = |row: usize, sums: &mut [f32]| {
            let inverse = 1.0 / totals[row];
            sums.iter_mut().for_each(|sum| *sum *= inverse);
            put(row, element, &sums[..sums.len().min(dim - element)]);
        };
        let width = dim.next_multiple_of(LANES);
        let groups = match (width - element) / LANES {
            4.. => all.sum(
                runs().flat_map(|run| run.values::<4>(width, element)),
                &mut put,
            ),
            2.. => all.sum(
                runs().flat_map(|run| run.values::<2>(width, element)),
                &mut put,
            ),
            _ => all.sum(
                runs().flat_map(|run| run.values::<1>(width, element)),
                &mut put,
            ),
        };
        element += groups * LANES;
    }
}

impl Attention<'_> {
    /// Scores of all positions.
    fn score<'a, T: Stored>(&mut self, mut keys: impl Iterator<Item = Keys<'a, T>>) {
        let mut at = 0;
        while let Some(first) = keys.next() {
            let four = [Some(first), keys.next(), keys.next(), keys.next()];
            at = match four {
                [Some(a), Some(b), Some(c), Some(d)] => self.score_groups([a, b, c, d], at),
                [Some(a), Some(b), c, _] => {
                    let at = self.score_groups([a, b], at);
                    c.map_or(at, |c| self.score_groups([c], at))
                }
                [a, ..] => a.map_or(at, |a| self.score_groups([a], at)),
            };
        }
    }

    /// Scores of groups of keys, the first one seen being position `at`; returns the position after them.
    fn score_groups<const N: usize, T: Stored>(&mut self, keys: [Keys<T>; N], at: usize) -> usize {
        let dim = self.queries.stride;
        let panel = [Panel {
            groups: keys.each_ref().map(|keys| keys.data),
            step: LANES,
            inputs: dim,
            next: keys.each_ref().map(|keys| keys.values),
        }];
        let mut end = at;
        for first in (0..self.rows).step_by(Panel::<N, T>::ROWS) {
            let mut sums: [Sums<N>; TILE] = [[[0f32; LANES]; N]; TILE];
            let sums = &mut sums[..Panel::<N, T>::ROWS.min(self.rows - first)];
            accumulate(self.isa, &panel, self.queries.from(first, 0), sums);
            for (scores, sums) in self.scores.chunks_mut(self.stride).skip(first).zip(sums) {
                end = at;
                for (sums, Keys { seen, .. }) in sums.iter().zip(&keys) {
                    match seen.start {
                        // What is too much is overwritten, by later groups' or as no position's.
                        0 => scores[end..][..LANES].copy_from_slice(sums),
                        _ => scores[end..][..seen.len()].copy_from_slice(&sums[seen.clone()]),
                    }
                    end += seen.len();
                }
            }
        }
        end
    }

    /// Sums of values weighted with the scores, which `put` takes row by row; returns the groups of elements that they are of.
    fn sum<'a, const N: usize, T: Stored>(
        &self,
        values: impl Iterator<Item = Panel<'a, N, T>>,
        put: &mut impl FnMut(usize, &mut [f32]),
    ) -> usize {
        let mut sums = [[[0f32; LANES]; N]; QUERIES];
        let sums = &mut sums[..self.rows];
        let weights = StridedRows {
            data: self.scores,
            stride: self.stride,
        };
        let (mut values, mut at) = (values.peekable(), 0);
        while values.peek().is_some() {
            let (mut panels, mut count, mut inputs) = ([Panel::EMPTY; PAGES], 0, 0);
            while let Some(panel) =
                values.next_if(|panel| count < PAGES && inputs + panel.inputs <= NEAR)
            {
                inputs += panel.inputs;
                panels[count] = panel;
                count += 1;
            }
            for (tile, sums) in sums.chunks_mut(Panel::<N, T>::ROWS).enumerate() {
                let weights = weights.from(tile * Panel::<N, T>::ROWS, at);
                accumulate(self.isa, &panels[..count], weights, sums);
            }
            at += inputs;
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            put(row, sums.as_flattened_mut());
        }
        N
    }
}

/// Replaces scores by e to the power of their distance from the highest, and sums those up.
struct Exponentials<'a> {
    /// [rows, stride], of which positions count.
    scores: &'a mut [f32],
    stride: usize,
    positions: usize,
    /// By row.
    totals: &'a mut [f32],
}

impl Vectorised for Exponentials<'_> {
    #[inline(always)]
    fn run(self) {
        for (scores, total) in self.scores.chunks_mut(self.stride).zip(self.totals) {
            let groups = &mut scores.as_chunks_mut::<LANES>().0[..self.positions.div_ceil(LANES)];
            let last = self.positions / LANES;
            if let Some(group) = groups.get_mut(last) {
                for (lane, score) in group.iter_mut().enumerate() {
                    let position = last * LANES + lane < self.positions;
                    *score = if position { *score } else { f32::NEG_INFINITY };
                }
            }
            let higher = |a: f32, b: f32| if b > a { b } else { a };
            let mut highest = [f32::NEG_INFINITY; LANES];
            for group in &*groups {
                highest = std::array::from_fn(|lane| higher(highest[lane], group[lane]));
            }
            let highest = fold(highest, higher);
            let mut sums = [0f32; LANES];
            for group in groups {
                for (sum, score) in sums.iter_mut().zip(group) {
                    *score = math::exp(*score - highest);
                    *sum += *score;
                }
            }
            *total = fold(sums, |a, b| a + b);
        }
    }
}

/// The lower half with the upper, until one is left.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = of(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The attention of `queries` over positions cut into runs at `cuts`, each run in a page that begins `lead` slots earlier.
    fn attended<T: Stored>(
        queries: &[f32],
        dim: usize,
        keys: &[f32],
        values: &[f32],
        cuts: &[usize],
        lead: usize,
    ) -> Vec<f32> {
        let pages: Vec<(Vec<T>, Vec<T>, Range<usize>)> = (cuts.windows(2))
            .map(|cut| {
                let count = cut[1] - cut[0];
                let (k, v) = sizes(lead + count, dim);
                let (mut page_keys, mut page_values) =
                    (vec![T::of(f32::NAN); k], vec![T::of(0.0); v]);
                for slot in 0..count {
                    let position = cut[0] + slot;
                    for d in 0..dim {
                        page_keys[key_at(lead + slot, dim) + d * LANES] =
                            T::of(keys[position * dim + d]);
                        page_values[(lead + slot) * dim.next_multiple_of(LANES) + d] =
                            T::of(values[position * dim + d]);
                    }
                }
                (page_keys, page_values, lead..lead + count)
            })
            .collect();
        let mut out = vec![f32::NAN; queries.len()];
        for (tile, queries) in queries.chunks(QUERIES * dim).enumerate() {
            let rows = StridedRows {
                data: queries,
                stride: dim,
            };
            let runs = || {
                pages.iter().map(|(keys, values, seen)| PositionRun {
                    keys,
                    values,
                    seen: seen.clone(),
                    after: &[],
                })
            };
            attend(
                rows,
                queries.len() / dim,
                runs,
                &mut Vec::new(),
                |row, first, part| {
                    out[(tile * QUERIES + row) * dim + first..][..part.len()].copy_from_slice(part);
                },
            );
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
            let whole = attended::<f32>(&queries, dim, &keys, &values, &[0, positions], 0);
            let cut = cut.min(positions);
            prop_assert_eq!(&attended::<f32>(&queries, dim, &keys, &values, &[0, cut, positions], lead), &whole);
            let alone = attended::<f32>(&queries[..dim], dim, &keys, &values, &[0, positions], 0);
            prop_assert_eq!(&alone[..], &whole[..dim]);
            // In bf16 it is the attention of what was rounded, bit for bit.
            let rounded = |side: &[f32]| side.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect::<Vec<f32>>();
            let narrow = attended::<half::bf16>(&queries, dim, &keys, &values, &[0, cut, positions], lead);
            prop_assert_eq!(narrow, attended::<f32>(&queries, dim, &rounded(&keys), &rounded(&values), &[0, positions], 0));
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
