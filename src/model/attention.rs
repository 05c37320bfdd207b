//! Attention of a batch's segments over cached pages and their own rows.

use super::{Segment, kv_cache::KvCache};
use crate::ops::Rotary;
use crate::ops::gemm::{View, product};
use crate::ops::math;
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
    fn spans(&self, segment: &Segment) -> Vec<(Range<usize>, Range<usize>)> {
        let (first, count) = (segment.first_position, segment.tokens.len());
        let block = segment.block.unwrap_or(count).max(1);
        (0..count)
            .step_by(block)
            .map(|start| {
                let queries = start..(start + block).min(count);
                let end = first + queries.end;
                let oldest = if first == 0 { 0 } else { segment.pages_start };
                (queries, end.saturating_sub(self.window).max(oldest)..end)
            })
            .collect()
    }
}

/// One layer's attention. `qkv` [rows, 3 * hidden] holds all segments' rows in order, `rotary` a line for every
/// row. Writes the keys and values of clean tokens to `cache`; returns [rows, hidden].
pub fn attend(
    qkv: &mut [f32],
    segments: &[Segment],
    shape: Shape,
    layer: usize,
    rotary: &Rotary,
    cache: &mut KvCache,
) -> Vec<f32> {
    let hidden = shape.hidden();
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    qkv.par_chunks_mut(3 * hidden).enumerate().for_each(|(row, qkv)| {
        let (q, rest) = qkv.split_at_mut(hidden);
        for head in q.chunks_mut(shape.head_dim) {
            rotary.apply(row, head);
            head.iter_mut().for_each(|x| *x *= scale);
        }
        rest[..hidden]
            .chunks_mut(shape.head_dim)
            .for_each(|head| rotary.apply(row, head));
    });
    let mut starts = Vec::with_capacity(segments.len());
    let mut row = 0;
    for segment in segments {
        starts.push(row);
        for token in 0..segment.clean {
            let source = &qkv[(row + token) * 3 * hidden..][..3 * hidden];
            let offset = segment.first_position + token - segment.pages_start;
            let page = segment.pages[offset / cache.page_tokens()];
            let slot = offset % cache.page_tokens();
            cache.write(page, layer, slot, &source[hidden..2 * hidden], &source[2 * hidden..]);
        }
        row += segment.tokens.len();
    }
    let (qkv, cache) = (&*qkv, &*cache);
    // A task is one head of one segment: enough of them even for one sequence, and results independent of the rest.
    let tasks: Vec<(usize, usize)> = (0..segments.len())
        .flat_map(|segment| (0..shape.heads).map(move |head| (segment, head)))
        .collect();
    let parts: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|&(segment, head)| {
            one_head(
                &qkv[starts[segment] * 3 * hidden..],
                &segments[segment],
                shape,
                head,
                layer,
                cache,
            )
        })
        .collect();
    let mut out = vec![0f32; row * hidden];
    for (&(segment, head), part) in tasks.iter().zip(parts) {
        let target = out[starts[segment] * hidden..].chunks_mut(hidden);
        for (target, source) in target.zip(part.chunks(shape.head_dim)) {
            target[head * shape.head_dim..][..shape.head_dim].copy_from_slice(source);
        }
    }
    out
}

/// One head's output for one segment, [tokens, head_dim].
fn one_head(qkv: &[f32], segment: &Segment, shape: Shape, head: usize, layer: usize, cache: &KvCache) -> Vec<f32> {
    let (hidden, dim) = (shape.hidden(), shape.head_dim);
    let spans = shape.spans(segment);
    let Some(oldest) = spans.iter().map(|(_, keys)| keys.start).min() else {
        return Vec::new();
    };
    let end = segment.first_position + segment.tokens.len();
    // Keys and values of positions oldest .. end, gathered to [positions, head_dim].
    let mut keys = Vec::with_capacity((end - oldest) * dim);
    let mut values = Vec::with_capacity((end - oldest) * dim);
    for position in oldest..segment.first_position {
        let offset = position - segment.pages_start;
        let (page, slot) = (
            segment.pages[offset / cache.page_tokens()],
            offset % cache.page_tokens(),
        );
        keys.extend_from_slice(&cache.keys(page, layer)[slot * hidden + head * dim..][..dim]);
        values.extend_from_slice(&cache.values(page, layer)[slot * hidden + head * dim..][..dim]);
    }
    for token in 0..segment.tokens.len() {
        let row = &qkv[token * 3 * hidden..][..3 * hidden];
        keys.extend_from_slice(&row[hidden + head * dim..][..dim]);
        values.extend_from_slice(&row[2 * hidden + head * dim..][..dim]);
    }
    let mut out = vec![0f32; segment.tokens.len() * dim];
    let mut scores = Vec::new();
    for (queries, seen) in spans {
        let (m, n) = (queries.len(), seen.len());
        scores.clear();
        scores.resize(m * n, 0f32);
        let q = View {
            data: &qkv[queries.start * 3 * hidden + head * dim..],
            row: 3 * hidden,
            column: 1,
        };
        let k = View::rows(&keys[(seen.start - oldest) * dim..], dim);
        product((m, n, dim), &mut scores, n, false, q, k.t());
        scores.chunks_mut(n).for_each(|row| {
            math::softmax(row);
        });
        let v = View::rows(&values[(seen.start - oldest) * dim..], dim);
        product(
            (m, dim, n),
            &mut out[queries.start * dim..],
            dim,
            false,
            View::rows(&scores, n),
            v,
        );
    }
    out
}
