//! Attention of a batch's segments over cached pages and their own rows.

use super::plan::Rows;
use super::workspace::{HeadSpace, Spares, sized};
use super::{Segment, kv_cache::KvCache};
use crate::ops::Rotary;
use crate::ops::attend::{self, QUERIES, Run};
use crate::ops::gemm::View;
use crate::ops::packed::Columns;
use crate::ops::panel::{self, LANES, TILE};
use rayon::prelude::*;
use std::ops::Range;

/// What the attention of one network needs to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub heads: usize,
    pub head_dim: usize,
    /// Tokens of context that a query may see.
    pub window: usize,
}

impl Shape {
    fn hidden(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Queries of a segment (indices into its tokens) that see the same keys, and those keys' absolute positions.
    /// The rule stands at [`Segment`].
    fn spans(self, segment: &Segment) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let (first, count, pages_start) = (
            segment.first_position,
            segment.tokens.len(),
            segment.pages_start,
        );
        let block = segment.block.unwrap_or(count).max(1);
        (0..count).step_by(block).map(move |start| {
            let queries = start..(start + block).min(count);
            let end = first + queries.end;
            let oldest = if first == 0 { 0 } else { pages_start };
            (queries, end.saturating_sub(self.window).max(oldest)..end)
        })
    }
}

/// Rotates the queries and keys of `qkv` [rows, 3 * hidden], `rotary` having a line for every row; queries are scaled, too.
pub fn rotate(qkv: &mut [f32], shape: Shape, rotary: &Rotary) {
    let hidden = shape.hidden();
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    let rows = qkv
        .par_chunks_mut(3 * hidden)
        .enumerate()
        .with_min_len(TILE);
    rows.for_each(|(row, qkv)| {
        let (queries, rest) = qkv.split_at_mut(hidden);
        for head in queries.chunks_mut(shape.head_dim) {
            rotary.apply(row, head);
            head.iter_mut().for_each(|x| *x *= scale);
        }
        let keys = rest[..hidden].chunks_mut(shape.head_dim);
        keys.for_each(|head| rotary.apply(row, head));
    });
}

/// Writes one layer's keys and values of clean tokens, of rotated `qkv` [rows, 3 * hidden], to `cache`.
pub fn keep(qkv: &[f32], segments: &[Segment], shape: Shape, layer: usize, cache: &mut KvCache) {
    let (hidden, page_tokens) = (shape.hidden(), cache.page_tokens());
    let mut first = 0;
    for segment in segments {
        let mut token = 0;
        while token < segment.clean {
            let offset = segment.first_position + token - segment.pages_start;
            let (page, slot) = (segment.pages[offset / page_tokens], offset % page_tokens);
            let count = (page_tokens - slot).min(segment.clean - token);
            let side = |number: usize| {
                View::rows(
                    &qkv[(first + token) * 3 * hidden + number * hidden..],
                    3 * hidden,
                )
            };
            cache.write(page, layer, slot, count, side(1), side(2));
            token += count;
        }
        first += segment.tokens.len();
    }
}

/// One layer's attention: of rotated `qkv` [rows, 3 * hidden], which holds `all` the segments' rows in order, the output of
/// the `wanted` ones into `out` [wanted rows, hidden].
pub fn attend(
    qkv: &[f32],
    segments: &[Segment],
    (all, wanted): (&Rows, &Rows),
    (shape, layer): (Shape, usize),
    cache: &KvCache,
    spares: &Spares<HeadSpace>,
    out: &mut [f32],
) {
    let hidden = shape.hidden();
    assert_eq!(
        out.len(),
        wanted.len() * hidden,
        "{} rows of {hidden}",
        wanted.len()
    );
    let columns = Columns::of(out);
    // A task is one head of one segment: enough of them even for one sequence, and results independent of the rest.
    let tasks = (0..segments.len() * shape.heads).into_par_iter();
    tasks.for_each_init(
        || spares.borrow(),
        |space, task| {
            let (segment, head) = (task / shape.heads, task % shape.heads);
            let first = all.starts[segment];
            let rows = wanted.starts[segment]..wanted.starts[segment + 1];
            let task = Head {
                qkv: &qkv[first * 3 * hidden..],
                segment: &segments[segment],
                shape,
                head,
                layer,
                cache,
            };
            let tokens = wanted.tokens[rows.clone()]
                .iter()
                .map(|token| token - first);
            task.attend(tokens, &mut space.inner, |row, element, part| {
                let at = (rows.start + row) * hidden + head * shape.head_dim + element;
                // SAFETY: a row of this segment's and elements of this head's, which lie inside `out`, as was checked; no
                // other task has them.
                #[allow(unsafe_code)]
                unsafe {
                    std::ptr::copy_nonoverlapping(part.as_ptr(), columns.at(at), part.len());
                }
            });
        },
    );
}

/// One head of one segment.
struct Head<'a> {
    /// From the segment's first row on.
    qkv: &'a [f32],
    segment: &'a Segment,
    shape: Shape,
    head: usize,
    layer: usize,
    cache: &'a KvCache,
}

impl Head<'_> {
    /// The output of some of the segment's tokens, ascending; `put` takes (which of them, first element, elements).
    fn attend(
        &self,
        tokens: impl Iterator<Item = usize>,
        space: &mut HeadSpace,
        mut put: impl FnMut(usize, usize, &[f32]),
    ) {
        let mut tokens = tokens.peekable();
        if tokens.peek().is_none() {
            return;
        }
        let HeadSpace {
            keys,
            values,
            queries,
            scores,
        } = space;
        self.gather(keys, values);
        let (dim, mut row) = (self.shape.head_dim, 0);
        let queries = sized(queries, QUERIES * dim);
        for (span, seen) in self.shape.spans(self.segment) {
            loop {
                let mut count = 0;
                for query in queries.chunks_exact_mut(dim) {
                    let Some(token) = tokens.next_if(|token| span.contains(token)) else {
                        break;
                    };
                    query.copy_from_slice(&self.side(token, 0)[..dim]);
                    count += 1;
                }
                if count == 0 {
                    break;
                }
                let tile = panel::Rows {
                    data: queries,
                    stride: dim,
                };
                let runs = || self.runs(keys, values, seen.clone());
                attend::attend(tile, count, runs, scores, |query, element, part| {
                    put(row + query, element, part);
                });
                row += count;
            }
        }
    }

    /// A token's queries, keys or values: this head's first.
    fn side(&self, token: usize, number: usize) -> &[f32] {
        let hidden = self.shape.hidden();
        &self.qkv[(3 * token + number) * hidden + self.head * self.shape.head_dim..]
    }

    /// The segment's own keys and values, as those of a page.
    fn gather(&self, keys: &mut Vec<f32>, values: &mut Vec<f32>) {
        let (dim, count) = (self.shape.head_dim, self.segment.tokens.len());
        let sizes = attend::sizes(count, dim);
        let (keys, values) = (sized(keys, sizes.0), sized(values, sizes.1));
        for (token, value) in values
            .chunks_exact_mut(dim.next_multiple_of(LANES))
            .enumerate()
        {
            value[..dim].copy_from_slice(&self.side(token, 2)[..dim]);
            let elements = keys[attend::key_at(token, dim)..].iter_mut().step_by(LANES);
            elements
                .zip(&self.side(token, 1)[..dim])
                .for_each(|(to, key)| *to = *key);
        }
    }

    /// Positions `seen` in order: cached pages, then the segment's own.
    fn runs<'a>(
        &'a self,
        keys: &'a [f32],
        values: &'a [f32],
        seen: Range<usize>,
    ) -> impl Iterator<Item = Run<'a>> {
        let (first, size) = (self.segment.first_position, self.cache.page_tokens());
        let start = self.segment.pages_start;
        let cached = seen.start.min(first)..seen.end.min(first);
        let pages = match cached.is_empty() {
            true => 0..0,
            false => (cached.start - start) / size..(cached.end - start).div_ceil(size),
        };
        let pages = pages.map(move |page| {
            let begin = start + page * size;
            let slots = cached.start.max(begin) - begin..cached.end.min(begin + size) - begin;
            self.cache
                .run(self.segment.pages[page], self.layer, self.head, slots)
        });
        let own = Run {
            keys,
            values,
            seen: seen.start.max(first) - first..seen.end - first,
            after: keys, // by the next queries
        };
        pages.chain([own])
    }
}
