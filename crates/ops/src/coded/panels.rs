//! A code as kernels like it: eight rows side by side.

use rayon::prelude::*;

use super::{Code, Rate, WINDOW};

/// Rows side by side: a word of 64 bits each.
pub const GROUP: usize = 8;
/// Rows to a panel, what a task computes.
pub const LANES: usize = 2 * GROUP;
/// Steps that are as many words of a row as a step has bits.
pub const CHUNK: usize = 64;

/// 64 bits of eight rows' streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Words(pub [u64; GROUP]);

/// A code [out, input].
#[derive(Clone, Debug)]
pub struct CodePanels {
    rate: Rate,
    /// [ceil(out / 16)][2][chunks][k]; what lies past the last row or a row's end means nothing.
    words: Vec<Words>,
    /// The eight bits after a row's last word, [ceil(out / 16)][2].
    ends: Vec<[u8; GROUP]>,
}

/// Sixteen rows.
#[derive(Clone, Copy, Debug)]
pub struct CodePanel<'a> {
    pub rate: Rate,
    /// [2][chunks][k]
    pub words: &'a [Words],
    pub ends: [[u8; GROUP]; 2],
}

impl CodePanels {
    pub fn new(code: &Code) -> Self {
        let (rate, out) = (code.rate(), code.rows());
        let across = rate.steps(code.cols()).div_ceil(CHUNK) * rate.step_bits();
        let groups = out.div_ceil(LANES) * 2;
        let mut words = vec![Words([0; GROUP]); groups * across];
        let mut ends = vec![[0; GROUP]; groups];
        let work = words.par_chunks_mut(across).zip(&mut ends).enumerate();
        work.for_each(|(group, (words, ends))| {
            let rows = out.saturating_sub(group * GROUP);
            for (lane, end) in ends.iter_mut().enumerate().take(rows) {
                let (whole, rest) = code.row(group * GROUP + lane).as_chunks::<8>();
                let mut of_row = whole.iter().map(|bytes| u64::from_le_bytes(*bytes));
                for words in &mut *words {
                    words.0[lane] = of_row.next().unwrap_or(0);
                }
                // What is left is the end of the words, or what comes after them.
                let mut last = [0; 8];
                last[..rest.len()].copy_from_slice(rest);
                match words.get_mut(whole.len()) {
                    Some(words) => words.0[lane] = u64::from_le_bytes(last),
                    None => *end = last[0],
                }
            }
        });
        CodePanels { rate, words, ends }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.words[..]) + size_of_val(&self.ends[..])
    }

    /// Sixteen rows from `16 index` on.
    pub fn panel(&self, index: usize) -> CodePanel<'_> {
        let words = self.words.len() / self.ends.len() * 2;
        CodePanel {
            rate: self.rate,
            words: &self.words[index * words..][..words],
            ends: [self.ends[2 * index], self.ends[2 * index + 1]],
        }
    }

    /// The weights of row `row`, in order.
    pub fn row(&self, row: usize, weights: &mut [i8]) {
        let (panel, per_step) = (self.panel(row / LANES), self.rate.step_weights());
        let (tables, bits) = (self.rate.tables(), self.rate.step_bits());
        for (eight, weights) in weights.chunks_mut(8 * per_step).enumerate() {
            let stream = panel.bits(row % LANES, 8 * eight);
            for (step, weights) in weights.chunks_mut(per_step).enumerate() {
                let window = (stream >> (bits * step)) as usize % (1 << WINDOW);
                for (weight, table) in weights.iter_mut().zip(tables) {
                    *weight = table[window];
                }
            }
        }
    }
}

impl CodePanel<'_> {
    pub fn chunks(&self) -> usize {
        self.words.len() / 2 / self.rate.step_bits()
    }

    /// A row's stream from a step on: the windows of eight steps at least, where the step is a multiple of eight.
    pub fn bits(&self, lane: usize, step: usize) -> u64 {
        let (group, lane) = (lane / GROUP, lane % GROUP);
        let words = &self.words[group * self.words.len() / 2..][..self.words.len() / 2];
        let first = step * self.rate.step_bits();
        let (word, bit) = (first / 64, first % 64);
        let next = match words.get(word + 1) {
            Some(words) => words.0[lane],
            None => self.ends[group][lane].into(),
        };
        match bit {
            0 => words[word].0[lane],
            _ => words[word].0[lane] >> bit | next << (64 - bit),
        }
    }
}
