//! What one network evaluation reads and gives.

use super::error::{Error, Result};
use rayon::prelude::*;

use crate::ops::categorical::{Draw, Drawn, draw_all, drawable};

/// A variant's index in one model instance; it means nothing outside that instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VariantId(pub u32);

/// Which weights a row uses: W_0 + sum of weight * retrieved delta. Empty means the base.
/// Canonical: sorted by variant, no variant twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mix(pub Vec<(VariantId, f32)>);

/// A mix as something to look up by: variants, and their weights' bits.
pub type MixKey = Vec<(u32, u32)>;

impl Mix {
    pub fn key(&self) -> MixKey {
        self.0.iter().map(|(v, w)| (v.0, w.to_bits())).collect()
    }

    pub fn base() -> Self {
        Mix(Vec::new())
    }

    pub fn single(variant: VariantId) -> Self {
        Mix(vec![(variant, 1.0)])
    }
}

/// A page of the key-value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageId(pub u32);

/// One sequence's share of a batch: consecutive tokens at absolute positions
/// `first_position ..`, seen block-causally after the cached positions
/// `pages_start .. first_position`.
///
/// Query and key visibility: with block size b and window w tokens, the query at absolute position p sees
/// keys in `max(pages_start, end - w) .. end`, `end` being the end of p's block
/// (or the end of the segment where that comes first). Without a block size (MDLM, Duo) the whole
/// segment is one block. Blocks and noise level are the segment's own: a variant's may differ from its base's.
#[derive(Clone, Debug)]
pub struct Segment {
    pub mix: Mix,
    /// Tokens to a block; `None` where every token of the segment sees every other.
    pub block: Option<usize>,
    /// Tokens before the first whole block: one begins at every position that is this much more than a multiple of `block`.
    pub phase: usize,
    /// Noise level given to the network, as it is; 0 for what was tuned without time conditioning.
    pub sigma: f32,
    pub tokens: Vec<u32>,
    /// Absolute position of `tokens[0]`: 0, or where a block begins.
    pub first_position: usize,
    /// How many leading tokens are clean: their keys and values are written to `pages`.
    pub clean: usize,
    /// Indices into `tokens`, ascending: the positions whose logits are wanted.
    pub rows: Vec<usize>,
    /// How a token is drawn from each of `rows`; empty where the logits themselves are wanted back.
    pub draws: Vec<Draw>,
    /// Pages of the cache covering `pages_start ..`, `page_tokens` positions each, long enough for
    /// `first_position + clean`.
    pub pages: Vec<PageId>,
    /// Absolute position of the first slot of `pages[0]`; a multiple of the page size.
    pub pages_start: usize,
}

/// The rows of one step: segments of any variants, at any block and step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub segments: Vec<Segment>,
}

impl Batch {
    /// Rows of logits this batch asks for, over all segments in order.
    pub fn logit_rows(&self) -> usize {
        self.segments.iter().map(|s| s.rows.len()).sum()
    }

    /// Those of them that are drawn from.
    pub fn drawn_rows(&self) -> usize {
        self.segments.iter().map(|s| s.draws.len()).sum()
    }
}

/// Logits of the wanted rows, in the order of segments and of each segment's `rows`: [rows, vocab], f32.
#[derive(Clone, Debug)]
pub struct Logits {
    pub vocab: usize,
    pub data: Vec<f32>,
}

impl Logits {
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.vocab..(index + 1) * self.vocab]
    }

    /// # Errors
    /// Where these are not [rows, vocab]; without rows the vocabulary does not matter.
    pub fn check(&self, rows: usize, vocab: usize) -> Result<()> {
        if self.data.len() != rows * vocab || (rows > 0 && self.vocab != vocab) {
            return Err(Error::Logits {
                found: self.data.len(),
                rows,
                vocab,
            });
        }
        Ok(())
    }

    /// Draws what the batch says from its rows, side by side, and keeps the others; also gives the memory back, unless all
    /// are kept.
    pub(super) fn draw(self, batch: &Batch) -> (StepOutcome, Vec<f32>) {
        let (mut kept, mut draws, mut first) = (Vec::new(), Vec::new(), 0);
        for segment in &batch.segments {
            let rows = (first..first + segment.rows.len()).map(|row| self.row(row));
            first += segment.rows.len();
            if segment.draws.is_empty() {
                kept.extend(rows);
            } else {
                draws.extend(segment.draws.iter().zip(rows));
            }
        }
        let mut drawn = draw_all(draws.par_iter().copied());
        let rows = drawn.par_iter_mut().zip(&draws);
        rows.for_each(|(drawn, (_, row))| {
            if !drawable(row) {
                *drawn = Drawn::NOTHING;
            }
        });
        let vocab = self.vocab;
        let (data, spent) = match draws[..] {
            [] => (self.data, Vec::new()),
            _ => (kept.concat(), self.data),
        };
        let logits = Logits { vocab, data };
        (StepOutcome { logits, drawn }, spent)
    }
}

/// What one step gives back, in the order of segments and of each segment's `rows`.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// Of the rows of segments without draws.
    pub logits: Logits,
    /// Of the rows of segments with draws.
    pub drawn: Vec<Drawn>,
}
