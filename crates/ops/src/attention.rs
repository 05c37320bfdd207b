//! Softmax attention of whole sequences with rotary embedding and block visibility, and its gradient.
//!
//! The visibility of BD3-LM's masks is one or two spans of keys per block of queries, so scores are only ever
//! computed where they are seen.

use super::gemm::{MatrixView, product};
use super::math;
use super::rotary::Rotary;
use super::slice;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;

/// Queries that see the same keys: rows of a sequence, and up to two ranges of its rows.
#[derive(Clone, Debug)]
struct Span {
    queries: Range<usize>,
    keys: [Range<usize>; 2],
}

/// Which rows of a sequence see which, the same for all sequences of a batch.
#[derive(Clone, Debug)]
pub struct Pattern {
    heads: usize,
    /// Rows of a sequence.
    rows: usize,
    /// Leading rows whose output is wanted.
    queries: usize,
    spans: Vec<Span>,
    rotary: Rotary,
}

impl Pattern {
    /// Every row sees every row (MDLM, Duo).
    pub fn bidirectional(heads: usize, head_dim: usize, length: usize) -> Self {
        Self::block_causal(heads, head_dim, length, length.max(1))
    }

    /// Row i sees the rows of its own block and of the blocks before it.
    pub fn block_causal(heads: usize, head_dim: usize, length: usize, block: usize) -> Self {
        let spans = (0..length)
            .step_by(block)
            .map(|start| {
                let end = (start + block).min(length);
                Span {
                    queries: start..end,
                    keys: [0..end, 0..0],
                }
            })
            .collect();
        Self {
            heads,
            rows: length,
            queries: length,
            spans,
            rotary: Rotary::new(head_dim, 10000.0, 0..length),
        }
    }

    /// BD3-LM's training mask over [x_t, x_0] (2 * length rows): a noisy block sees itself and the clean blocks
    /// before it; clean rows are block-causal. With `noisy_only`, only the first half is computed: what
    /// the last layer needs.
    pub fn block_diffusion(
        heads: usize,
        head_dim: usize,
        length: usize,
        block: usize,
        noisy_only: bool,
    ) -> Self {
        let mut spans = Vec::new();
        for start in (0..length).step_by(block) {
            let end = (start + block).min(length);
            spans.push(Span {
                queries: start..end,
                keys: [start..end, length..length + start],
            });
            if !noisy_only {
                let queries = length + start..length + end;
                spans.push(Span {
                    queries,
                    keys: [length..length + end, 0..0],
                });
            }
        }
        let queries = if noisy_only { length } else { 2 * length };
        let rotary = Rotary::new(head_dim, 10000.0, (0..length).chain(0..length));
        Self {
            heads,
            rows: 2 * length,
            queries,
            spans,
            rotary,
        }
    }

    /// Rows of a sequence whose output is computed.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// Rows of a sequence.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The angles of a sequence's rows.
    pub fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// The queries in pieces of at most `most`, and the two ranges of keys that each sees.
    pub fn query_chunks(&self, most: usize) -> Vec<(Range<usize>, [Range<usize>; 2])> {
        let pieces = self.spans.iter().flat_map(|span| {
            let pieces = cut(span.queries.clone(), most);
            pieces.map(|piece| (piece, span.keys.clone()))
        });
        pieces.collect()
    }

    /// The keys in pieces of at most `most`, and the ranges of queries that see each; keys that none sees are left out.
    pub fn key_chunks(&self, most: usize) -> Vec<(Range<usize>, Vec<Range<usize>>)> {
        let ends = self.spans.iter().flat_map(|span| &span.keys);
        let edges: BTreeSet<usize> = ends.flat_map(|keys| [keys.start, keys.end]).collect();
        let edges = Vec::from_iter(edges);
        let alike = edges.windows(2).map(|pair| pair[0]..pair[1]);
        let pieces = alike.flat_map(|keys| {
            let sees = |span: &&Span| span.keys.iter().any(|seen| seen.contains(&keys.start));
            let queries: Vec<_> = self
                .spans
                .iter()
                .filter(sees)
                .map(|span| span.queries.clone())
                .collect();
            let pieces = cut(keys, most)
                .filter(|_| !queries.is_empty())
                .collect::<Vec<_>>();
            pieces
                .into_iter()
                .map(move |piece| (piece, queries.clone()))
        });
        pieces.collect()
    }

    /// The mask as 0 (seen) and -inf: [queries, rows].
    pub fn mask(&self, device: &Device) -> Result<Tensor> {
        let mut mask = vec![f32::NEG_INFINITY; self.queries * self.rows];
        for span in &self.spans {
            for query in span.queries.clone() {
                for key in span.keys.iter().cloned().flatten() {
                    mask[query * self.rows + key] = 0.0;
                }
            }
        }
        Ok(Tensor::from_vec(mask, (self.queries, self.rows), device)?)
    }

    fn widest(&self) -> (usize, usize) {
        let queries = self
            .spans
            .iter()
            .map(|s| s.queries.len())
            .max()
            .unwrap_or(0);
        let keys = self
            .spans
            .iter()
            .map(|s| s.keys.iter().map(Range::len).sum())
            .max()
            .unwrap_or(0);
        (queries, keys)
    }
}

/// A range in pieces of at most `most`.
fn cut(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(most)
        .map(move |start| start..(start + most).min(end))
}

/// One head of one sequence, gathered: [rows, head_dim] each, queries and keys after rotary embedding, queries scaled.
struct Head {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    dim: usize,
}

impl Head {
    fn new(pattern: &Pattern, dim: usize) -> Self {
        let (queries, keys) = pattern.widest();
        let zeros = || vec![0f32; pattern.rows * dim];
        Self {
            q: zeros(),
            k: zeros(),
            v: zeros(),
            scores: vec![0f32; queries * keys],
            dim,
        }
    }

    fn load(&mut self, pattern: &Pattern, qkv: &[f32], head: usize) {
        let dim = self.dim;
        let hidden = pattern.heads * dim;
        let scale = 1.0 / (dim as f32).sqrt();
        for row in 0..pattern.rows {
            let source = &qkv[row * 3 * hidden..][..3 * hidden];
            let at = row * dim..(row + 1) * dim;
            let q = &mut self.q[at.clone()];
            q.copy_from_slice(&source[head * dim..][..dim]);
            pattern.rotary.apply(row, q);
            q.iter_mut().for_each(|x| *x *= scale);
            let k = &mut self.k[at.clone()];
            k.copy_from_slice(&source[hidden + head * dim..][..dim]);
            pattern.rotary.apply(row, k);
            self.v[at].copy_from_slice(&source[2 * hidden + head * dim..][..dim]);
        }
    }

    /// Attention weights of one span, [queries, keys], into `self.scores`; returns the number of keys.
    fn weights(&mut self, span: &Span) -> usize {
        let (dim, m) = (self.dim, span.queries.len());
        let keys: usize = span.keys.iter().map(Range::len).sum();
        let mut column = 0;
        for range in &span.keys {
            if range.is_empty() {
                continue;
            }
            let lhs = MatrixView::rows(&self.q[span.queries.start * dim..], dim);
            let rhs = MatrixView::rows(&self.k[range.start * dim..], dim).t();
            product(
                (m, range.len(), dim),
                &mut self.scores[column..],
                keys,
                false,
                lhs,
                rhs,
            );
            column += range.len();
        }
        for row in self.scores[..m * keys].chunks_mut(keys) {
            math::softmax(row);
        }
        keys
    }
}

fn sizes(qkv: &Tensor, pattern: &Pattern) -> Result<(usize, usize)> {
    let (rows, triple) = qkv.dims2()?;
    if pattern.rows == 0 || rows % pattern.rows != 0 {
        return Err(Error::Sequences {
            rows,
            length: pattern.rows,
        });
    }
    Ok((rows / pattern.rows, triple / 3))
}

/// qkv [sequences * rows, 3 * hidden] (q, k, v side by side, heads inside each) -> [sequences * queries, hidden].
pub fn attention(qkv: &Tensor, pattern: &Pattern) -> Result<Tensor> {
    let (sequences, hidden) = sizes(qkv, pattern)?;
    let dim = hidden / pattern.heads;
    let input = slice::f32(qkv)?;
    let input: &[f32] = &input;
    let mut out = vec![0f32; sequences * pattern.queries * hidden];
    out.par_chunks_mut(pattern.queries * hidden)
        .enumerate()
        .for_each(|(sequence, out)| {
            let qkv = &input[sequence * pattern.rows * 3 * hidden..][..pattern.rows * 3 * hidden];
            let mut one = Head::new(pattern, dim);
            for head in 0..pattern.heads {
                one.load(pattern, qkv, head);
                for span in &pattern.spans {
                    let (m, keys) = (span.queries.len(), one.weights(span));
                    let mut column = 0;
                    for range in span.keys.iter().filter(|range| !range.is_empty()) {
                        let lhs = MatrixView {
                            data: &one.scores[column..],
                            row: keys,
                            column: 1,
                        };
                        let rhs = MatrixView::rows(&one.v[range.start * dim..], dim);
                        let at = &mut out[span.queries.start * hidden + head * dim..];
                        product((m, dim, range.len()), at, hidden, column > 0, lhs, rhs);
                        column += range.len();
                    }
                }
            }
        });
    slice::tensor(out, sequences * pattern.queries, hidden)
}

/// The gradient of qkv, given that of the attention's output; the weights are computed again.
pub fn attention_backward(qkv: &Tensor, pattern: &Pattern, gradient: &Tensor) -> Result<Tensor> {
    let (sequences, hidden) = sizes(qkv, pattern)?;
    let dim = hidden / pattern.heads;
    let scale = 1.0 / (dim as f32).sqrt();
    let (input, upstream) = (slice::f32(qkv)?, slice::f32(gradient)?);
    let (input, upstream): (&[f32], &[f32]) = (&input, &upstream);
    let mut out = vec![0f32; sequences * pattern.rows * 3 * hidden];
    out.par_chunks_mut(pattern.rows * 3 * hidden)
        .enumerate()
        .for_each(|(sequence, out)| {
            let qkv = &input[sequence * pattern.rows * 3 * hidden..][..pattern.rows * 3 * hidden];
            let upstream =
                &upstream[sequence * pattern.queries * hidden..][..pattern.queries * hidden];
            let mut one = Head::new(pattern, dim);
            let mut slopes = one.scores.clone();
            for head in 0..pattern.heads {
                one.load(pattern, qkv, head);
                let (mut dq, mut dk) = (
                    vec![0f32; pattern.rows * dim],
                    vec![0f32; pattern.rows * dim],
                );
                for span in &pattern.spans {
                    let (m, keys) = (span.queries.len(), one.weights(span));
                    let above = MatrixView {
                        data: &upstream[span.queries.start * hidden + head * dim..],
                        row: hidden,
                        column: 1,
                    };
                    let mut column = 0;
                    for range in span.keys.iter().filter(|range| !range.is_empty()) {
                        let weights = MatrixView {
                            data: &one.scores[column..],
                            row: keys,
                            column: 1,
                        };
                        let dv = &mut out[range.start * 3 * hidden + 2 * hidden + head * dim..];
                        product(
                            (range.len(), dim, m),
                            dv,
                            3 * hidden,
                            true,
                            weights.t(),
                            above,
                        );
                        let values = MatrixView::rows(&one.v[range.start * dim..], dim);
                        product(
                            (m, range.len(), dim),
                            &mut slopes[column..],
                            keys,
                            false,
                            above,
                            values.t(),
                        );
                        column += range.len();
                    }
                    for (slope, weight) in slopes[..m * keys]
                        .chunks_mut(keys)
                        .zip(one.scores.chunks(keys))
                    {
                        let mean = math::dot(slope, weight);
                        for (s, w) in slope.iter_mut().zip(weight) {
                            *s = w * (*s - mean);
                        }
                    }
                    let mut column = 0;
                    for range in span.keys.iter().filter(|range| !range.is_empty()) {
                        let slope = MatrixView {
                            data: &slopes[column..],
                            row: keys,
                            column: 1,
                        };
                        let k = MatrixView::rows(&one.k[range.start * dim..], dim);
                        let q = MatrixView::rows(&one.q[span.queries.start * dim..], dim);
                        product(
                            (m, dim, range.len()),
                            &mut dq[span.queries.start * dim..],
                            dim,
                            true,
                            slope,
                            k,
                        );
                        product(
                            (range.len(), dim, m),
                            &mut dk[range.start * dim..],
                            dim,
                            true,
                            slope.t(),
                            q,
                        );
                        column += range.len();
                    }
                }
                for row in 0..pattern.rows {
                    let at = row * dim..(row + 1) * dim;
                    let (dq, dk) = (&mut dq[at.clone()], &mut dk[at]);
                    dq.iter_mut().for_each(|x| *x *= scale);
                    pattern.rotary.apply_inverse(row, dq);
                    pattern.rotary.apply_inverse(row, dk);
                    let target = &mut out[row * 3 * hidden..][..3 * hidden];
                    target[head * dim..][..dim].copy_from_slice(dq);
                    target[hidden + head * dim..][..dim].copy_from_slice(dk);
                }
            }
        });
    slice::tensor(out, sequences * pattern.rows, 3 * hidden)
}

/// The slow twin, in tensor algebra that any device and candle's own differentiation can run.
pub fn attention_slow(qkv: &Tensor, pattern: &Pattern) -> Result<Tensor> {
    let (sequences, hidden) = sizes(qkv, pattern)?;
    let (heads, rows) = (pattern.heads, pattern.rows);
    let dim = hidden / heads;
    let qkv = qkv
        .reshape((sequences, rows, 3, heads, dim))?
        .permute((2, 0, 3, 1, 4))?;
    let (cos, sin) = pattern.rotary.tables(qkv.device())?;
    let rotate = |x: Tensor| -> Result<Tensor> {
        let x = x.contiguous()?;
        let (a, b) = (x.narrow(3, 0, dim / 2)?, x.narrow(3, dim / 2, dim / 2)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Ok(Tensor::cat(&[first, second], 3)?)
    };
    let q = rotate(qkv.get(0)?)?
        .narrow(2, 0, pattern.queries)?
        .contiguous()?;
    let k = rotate(qkv.get(1)?)?;
    let v = qkv.get(2)?.contiguous()?;
    let scores = (q.matmul(&k.t()?)? * (1.0 / (dim as f64).sqrt()))?;
    let scores = scores
        .broadcast_add(&pattern.mask(qkv.device())?)?
        .to_dtype(DType::F32)?;
    let shifted = scores
        .broadcast_sub(&scores.max_keepdim(3)?.detach())?
        .exp()?;
    let weights = shifted.broadcast_div(&shifted.sum_keepdim(3)?)?;
    Ok(weights
        .matmul(&v)?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((sequences * pattern.queries, hidden))?)
}
