//! Which rows a batch has, and which tables and variants each of them takes.

use super::batch::{Batch, Mix};
use super::conditioning::ModulationRow;
use super::linear::{Parts, RowPart};
use super::modulation::Modulation;
use crate::model::error::Result;
use std::sync::Arc;

/// Rows of a batch, segment by segment.
#[derive(Debug, Default)]
pub struct BatchRows {
    /// Which of the batch's tokens each is, counted over all segments; ascending.
    pub tokens: Vec<usize>,
    /// The line of tables of each.
    lines: Vec<usize>,
    /// The variants' shares of them.
    pub parts: Parts,
    /// Where each segment's rows begin, and where the last one's end.
    pub starts: Vec<usize>,
}

impl BatchRows {
    fn clear(&mut self) {
        self.tokens.clear();
        self.lines.clear();
        self.parts.clear();
        self.starts.clear();
        self.starts.push(0);
    }

    /// Adds a segment's, whose mix's variants lie in the banks `homes`.
    fn push(
        &mut self,
        tokens: impl Iterator<Item = usize>,
        line: usize,
        mix: &Mix,
        homes: &[&[usize]],
    ) {
        for token in tokens {
            let row = self.tokens.len();
            self.tokens.push(token);
            self.lines.push(line);
            for (&(variant, weight), homes) in mix.0.iter().zip(homes) {
                self.parts.push(
                    RowPart {
                        row,
                        variant,
                        weight,
                    },
                    homes,
                );
            }
        }
        self.starts.push(self.tokens.len());
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// A batch's rows, those whose logits are wanted, and the tables.
#[derive(Debug, Default)]
pub struct BatchPlan {
    pub all: BatchRows,
    pub wanted: BatchRows,
    lines: Vec<Arc<ModulationRow>>,
}

impl BatchPlan {
    /// Makes it `batch`'s.
    pub fn fill(&mut self, batch: &Batch, modulation: &Modulation) -> Result<()> {
        self.all.clear();
        self.wanted.clear();
        self.lines.clear();
        let mut first = 0;
        for segment in &batch.segments {
            let line = modulation.tables(&segment.mix, segment.sigma)?;
            let known = self
                .lines
                .iter()
                .position(|known| Arc::ptr_eq(known, &line));
            let line = known.unwrap_or_else(|| {
                self.lines.push(line);
                self.lines.len() - 1
            });
            let end = first + segment.tokens.len();
            let homes: Vec<&[usize]> = (segment.mix.0.iter())
                .map(|(variant, _)| modulation.home(*variant))
                .collect();
            self.all.push(first..end, line, &segment.mix, &homes);
            let wanted = segment.rows.iter().map(|row| first + row);
            self.wanted.push(wanted, line, &segment.mix, &homes);
            first = end;
        }
        Ok(())
    }

    /// The tables of one of `rows`, which are this plan's.
    pub fn line(&self, rows: &BatchRows, row: usize) -> &ModulationRow {
        &self.lines[rows.lines[row]]
    }
}
