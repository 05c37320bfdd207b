//! Attention of a batch's segments over cached pages and their own rows.

use super::architecture::Attention;
use super::batch::Segment;
use super::conditioning::LayerLine;
use super::kv_cache::{CacheRows, HostPages, KvCache, StoredPages};
use super::plan::BatchRows;
use super::workspace::{HeadSpace, sized};
use crate::ops::Rotary;
use crate::ops::attend::{self, PositionRun, QUERIES};
use crate::ops::gemm::MatrixView;
use crate::ops::packed::Columns;
use crate::ops::panel::{self, LANES, Stored, TILE};
use rayon::prelude::*;
use std::ops::Range;

/// What the attention of one network needs to know of it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub of: Attention,
    /// Tokens of context that a query may see.
    pub window: usize,
}

impl AttentionShape {
    /// Numbers in the queries of a row.
    fn queries(&self) -> usize {
        self.of.heads * self.of.head_dim
    }

    /// Numbers in its keys, and in its values.
    fn keys(&self) -> usize {
        self.of.kv_heads * self.of.head_dim
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
        // Blocks begin at the phase, and the text's beginning may be part of one.
        let begun = match segment.block {
            Some(block) => (first + block - segment.phase % block) % block,
            None => 0,
        };
        let starts = (0..count + begun).step_by(block);
        starts.map(move |start| {
            let queries = start.saturating_sub(begun)..(start + block - begun).min(count);
            let end = first + queries.end;
            let oldest = if first == 0 { 0 } else { pages_start };
            (queries, end.saturating_sub(self.window).max(oldest)..end)
        })
    }
}

/// Makes of `qkv` [rows, queries | keys | values] what attention reads: biases added, heads' queries and keys normalised, both
/// rotated, `rotary` having a line for every row, and queries scaled. `line` gives a row's vectors.
pub fn prepare<'a>(
    qkv: &mut [f32],
    shape: AttentionShape,
    rotary: &Rotary,
    line: impl Fn(usize) -> &'a LayerLine + Sync,
) {
    let (attention, dim) = (shape.of, shape.of.head_dim);
    let scale = 1.0 / (dim as f32).sqrt();
    let rows = qkv
        .par_chunks_mut(attention.width())
        .enumerate()
        .with_min_len(TILE);
    rows.for_each(|(row, qkv)| {
        let line = line(row);
        if let Some(bias) = &line.qkv_bias {
            qkv.iter_mut()
                .zip(&bias[..])
                .for_each(|(x, bias)| *x += bias);
        }
        let (queries, rest) = qkv.split_at_mut(shape.queries());
        let keys = &mut rest[..shape.keys()];
        let sides = [
            (queries, &line.query_gain, scale),
            (keys, &line.key_gain, 1.0),
        ];
        for (side, gain, scale) in sides {
            for head in side.chunks_mut(dim) {
                if let (Some(norm), Some(gain)) = (attention.qk_norm, gain) {
                    norm.in_place(head, gain);
                }
                rotary.apply(row, head);
                head.iter_mut().for_each(|x| *x *= scale);
            }
        }
    });
}

/// Writes one layer's keys and values of clean tokens, of prepared `qkv`, to `cache`.
pub fn keep(
    qkv: &[f32],
    segments: &[Segment],
    shape: AttentionShape,
    layer: usize,
    cache: &mut KvCache,
) {
    let (width, page_tokens) = (shape.of.width(), cache.page_tokens());
    let mut first = 0;
    for segment in segments {
        let mut token = 0;
        while token < segment.clean {
            let offset = segment.first_position + token - segment.pages_start;
            let (page, slot) = (segment.pages[offset / page_tokens], offset % page_tokens);
            let count = (page_tokens - slot).min(segment.clean - token);
            let side = |at: usize| MatrixView::rows(&qkv[(first + token) * width + at..], width);
            let (keys, values) = (shape.queries(), shape.queries() + shape.keys());
            cache.write(CacheRows {
                page,
                layer,
                slot,
                count,
                keys: side(keys),
                values: side(values),
            });
            token += count;
        }
        first += segment.tokens.len();
    }
}

/// One layer's attention: of prepared `qkv`, which holds `all` the segments' rows in order, the output of the `wanted` ones into
/// `out` [wanted rows, heads * head_dim].
pub fn attend(
    qkv: &[f32],
    segments: &[Segment],
    rows: (&BatchRows, &BatchRows),
    at: (AttentionShape, usize),
    cache: &KvCache,
    out: &mut [f32],
) {
    match &cache.stored {
        StoredPages::F32(pages) => attend_in(qkv, segments, rows, at, pages, out),
        StoredPages::Bf16(pages) => attend_in(qkv, segments, rows, at, pages, out),
    }
}

/// The same, with keys and values of one type.
fn attend_in<T: Stored>(
    qkv: &[f32],
    segments: &[Segment],
    (all, wanted): (&BatchRows, &BatchRows),
    (shape, layer): (AttentionShape, usize),
    pages: &HostPages<T>,
    out: &mut [f32],
) {
    let (width, dim) = (shape.queries(), shape.of.head_dim);
    let (heads, group) = (shape.of.kv_heads, shape.of.heads / shape.of.kv_heads);
    assert_eq!(
        out.len(),
        wanted.len() * width,
        "{} rows of {width}",
        wanted.len()
    );
    let columns = Columns::of(out);
    // A task is one head of one segment: enough of them even for one sequence, and results independent of the rest.
    let tasks = (0..segments.len() * heads).into_par_iter();
    tasks.for_each_init(
        || pages.heads.borrow(),
        |space, task| {
            let (segment, head) = (task / heads, task % heads);
            let first = all.starts[segment];
            let rows = wanted.starts[segment]..wanted.starts[segment + 1];
            let task = Head {
                qkv: &qkv[first * shape.of.width()..],
                segment: &segments[segment],
                shape,
                head,
                layer,
                pages,
            };
            let tokens = wanted.tokens[rows.clone()]
                .iter()
                .map(|token| token - first);
            task.attend(tokens, &mut space.inner, |row, query, element, part| {
                let at = (rows.start + row) * width + (head * group + query) * dim + element;
                // SAFETY: a row of this segment's and elements of this head's queries, which lie inside `out`, as was checked;
                // no other task has them.
                #[allow(unsafe_code)]
                unsafe {
                    std::ptr::copy_nonoverlapping(part.as_ptr(), columns.at(at), part.len());
                }
            });
        },
    );
}

/// One head of keys and values of one segment, and the queries that share it.
struct Head<'a, T> {
    /// From the segment's first row on.
    qkv: &'a [f32],
    segment: &'a Segment,
    shape: AttentionShape,
    head: usize,
    layer: usize,
    pages: &'a HostPages<T>,
}

impl<T: Stored> Head<'_, T> {
    /// The output of some of the segment's tokens, ascending; `put` takes (which of them, which of the queries that share the head,
    /// first element, elements).
    fn attend(
        &self,
        tokens: impl Iterator<Item = usize>,
        space: &mut HeadSpace<T>,
        mut put: impl FnMut(usize, usize, usize, &[f32]),
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
        let (dim, mut row) = (self.shape.of.head_dim, 0);
        let group = self.shape.of.heads / self.shape.of.kv_heads;
        let queries = sized(queries, QUERIES / group * group * dim);
        for (span, seen) in self.shape.spans(self.segment) {
            loop {
                let mut count = 0;
                for query in queries.chunks_exact_mut(group * dim) {
                    let Some(token) = tokens.next_if(|token| span.contains(token)) else {
                        break;
                    };
                    let at = self.head * group * dim;
                    query.copy_from_slice(&self.row(token)[at..at + group * dim]);
                    count += group;
                }
                if count == 0 {
                    break;
                }
                let tile = panel::StridedRows {
                    data: queries,
                    stride: dim,
                };
                let runs = || self.runs(keys, values, seen.clone());
                attend::attend(tile, count, runs, scores, |query, element, part| {
                    put(row + query / group, query % group, element, part);
                });
                row += count / group;
            }
        }
    }

    /// A token's queries, keys and values.
    fn row(&self, token: usize) -> &[f32] {
        let width = self.shape.of.width();
        &self.qkv[token * width..][..width]
    }

    /// This head's key, or value, of a token.
    fn side(&self, token: usize, number: usize) -> &[f32] {
        let (shape, dim) = (self.shape, self.shape.of.head_dim);
        &self.row(token)[shape.queries() + number * shape.keys() + self.head * dim..][..dim]
    }

    /// The segment's own keys and values, as those of a page.
    fn gather(&self, keys: &mut Vec<T>, values: &mut Vec<T>) {
        let (dim, count) = (self.shape.of.head_dim, self.segment.tokens.len());
        let sizes = attend::sizes(count, dim);
        let (keys, values) = (sized(keys, sizes.0), sized(values, sizes.1));
        for (token, value) in values
            .chunks_exact_mut(dim.next_multiple_of(LANES))
            .enumerate()
        {
            let own = value.iter_mut().zip(self.side(token, 1));
            own.for_each(|(to, value)| *to = T::of(*value));
            let elements = keys[attend::key_at(token, dim)..].iter_mut().step_by(LANES);
            elements
                .zip(self.side(token, 0))
                .for_each(|(to, key)| *to = T::of(*key));
        }
    }

    /// Positions `seen` in order: cached pages, then the segment's own.
    fn runs<'a>(
        &'a self,
        keys: &'a [T],
        values: &'a [T],
        seen: Range<usize>,
    ) -> impl Iterator<Item = PositionRun<'a, T>> {
        let (first, size) = (self.segment.first_position, self.pages.page_tokens);
        let start = self.segment.pages_start;
        let cached = seen.start.min(first)..seen.end.min(first);
        let pages = match cached.is_empty() {
            true => 0..0,
            false => (cached.start - start) / size..(cached.end - start).div_ceil(size),
        };
        let pages = pages.map(move |page| {
            let begin = start + page * size;
            let slots = cached.start.max(begin) - begin..cached.end.min(begin + size) - begin;
            self.pages
                .run(self.segment.pages[page], self.layer, self.head, slots)
        });
        let own = PositionRun {
            keys,
            values,
            seen: seen.start.max(first) - first..seen.end - first,
            after: keys, // by the next queries
        };
        pages.chain([own])
    }
}
