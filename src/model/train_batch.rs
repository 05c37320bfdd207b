//! What the network reads in training.

use std::ops::Range;

/// Whole sequences of equal length.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainBatch {
    pub batch: usize,
    pub length: usize,
    /// Block size; `None` for bidirectional attention (MDLM, Duo).
    pub block: Option<usize>,
    /// Noisy tokens, [batch * length].
    pub xt: Vec<u32>,
    /// Mixtures that are read in place of the noisy tokens.
    pub soft: Option<SoftTokens>,
    /// Clean tokens, [batch * length], seen by later blocks (BD3-LM's training mask).
    pub x0: Option<Vec<u32>>,
    /// Noise level of every block of every sequence, or of every sequence where there are no blocks; ignored without
    /// time conditioning. Clean tokens are told 0.
    pub sigma: Vec<f32>,
    /// Flat indices into batch * length, ascending: the positions whose logits are wanted.
    pub rows: Vec<u32>,
}

/// At every position a weighted mixture of tokens, whose embeddings are averaged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SoftTokens {
    /// Tokens in a mixture.
    pub choices: usize,
    /// [positions * choices]
    pub tokens: Vec<u32>,
    /// [positions * choices]
    pub weights: Vec<f32>,
}

impl SoftTokens {
    /// Adds positions of one token each.
    pub fn push_tokens(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.tokens.extend(std::iter::repeat_n(token, self.choices));
            self.weights.push(1.0);
            self.weights
                .extend(std::iter::repeat_n(0.0, self.choices - 1));
        }
    }

    fn positions(&self, range: Range<usize>) -> Self {
        let range = range.start * self.choices..range.end * self.choices;
        Self {
            choices: self.choices,
            tokens: self.tokens[range.clone()].to_vec(),
            weights: self.weights[range].to_vec(),
        }
    }
}

impl TrainBatch {
    /// What shares a noise level: a block, else the sequence.
    pub fn unit(&self) -> usize {
        self.block.unwrap_or(self.length)
    }

    /// The index into `sigma` of the noisy token at `row` of batch * length.
    pub fn noise_line(&self, row: usize) -> usize {
        row / self.length * self.length.div_ceil(self.unit()) + row % self.length / self.unit()
    }

    /// Some of the sequences.
    pub fn sequences(&self, range: Range<usize>) -> Self {
        let span = range.start * self.length..range.end * self.length;
        let units = self.length.div_ceil(self.unit());
        let rows = &self.rows[self.rows_of(range.clone())];
        Self {
            batch: range.len(),
            length: self.length,
            block: self.block,
            xt: self.xt[span.clone()].to_vec(),
            soft: self.soft.as_ref().map(|soft| soft.positions(span.clone())),
            x0: self.x0.as_ref().map(|x0| x0[span.clone()].to_vec()),
            sigma: self.sigma[range.start * units..range.end * units].to_vec(),
            rows: rows.iter().map(|&row| row - span.start as u32).collect(),
        }
    }

    /// Which of `rows` lie in some of the sequences.
    pub fn rows_of(&self, sequences: Range<usize>) -> Range<usize> {
        let before = |sequence: usize| {
            self.rows
                .partition_point(|&row| (row as usize) < sequence * self.length)
        };
        before(sequences.start)..before(sequences.end)
    }

    /// Everything the network reads: of every sequence the noisy part, then the clean one if there is one.
    pub(super) fn read(&self) -> SoftTokens {
        let mut all = SoftTokens {
            choices: self.soft.as_ref().map_or(1, |soft| soft.choices),
            ..SoftTokens::default()
        };
        for sequence in 0..self.batch {
            let span = sequence * self.length..(sequence + 1) * self.length;
            match &self.soft {
                Some(soft) => {
                    let soft = soft.positions(span.clone());
                    all.tokens.extend(soft.tokens);
                    all.weights.extend(soft.weights);
                }
                None => all.push_tokens(&self.xt[span.clone()]),
            }
            if let Some(x0) = &self.x0 {
                all.push_tokens(&x0[span]);
            }
        }
        all
    }
}
