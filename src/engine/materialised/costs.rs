//! What evaluations take on this machine, measured, and which rows of a step are worth an evaluation of their own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::{Batch, Denoiser, Mix, Segment, VariantId};

/// Rows that are measured, as far as time allows; in between and beyond, time is taken to be linear.
const ROWS: [usize; 5] = [1, 8, 32, 128, 512];
/// Measuring stops when so much time has passed.
const LIMIT: Duration = Duration::from_millis(400);
/// Every figure is the least of so many.
const REPEATS: usize = 3;
/// An evaluation of its own must save at least this part of what it takes: all figures are of a machine that others use, too.
const WORTH: f64 = 0.1;
/// How much of one evaluation's news is believed.
const LEARNT: f64 = 0.05;
/// How much of what was learnt of materialised instances is forgotten in an evaluation without them: what was too slow beside many
/// others may be worth it alone.
const FORGOTTEN: f64 = 0.001;
/// Tokens to a sequence of what is measured.
const SEQUENCE: usize = 8;

/// Seconds by rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve(pub Vec<(usize, f64)>);

impl Curve {
    /// Seconds for so many rows; none take none.
    fn at(&self, rows: usize) -> f64 {
        let (before, after) = self
            .0
            .split_at(self.0.partition_point(|(known, _)| *known < rows));
        let (low, high) = match (before, after) {
            _ if rows == 0 => return 0.0,
            ([.., low], [high, ..]) | ([.., low, high], []) => (*low, *high),
            ([(known, seconds)], []) => return seconds * rows as f64 / *known as f64,
            ([], [(_, seconds), ..]) => return *seconds,
            ([], []) => return 0.0,
        };
        let slope = (high.1 - low.1) / (high.0 - low.0) as f64;
        (low.1 + slope * (rows - low.0) as f64).max(0.0)
    }

    /// What rows that should have taken as long as this says took `ratio` times as long.
    fn learn(&mut self, rows: usize, ratio: f64) {
        let distance = |known: usize| (known as f64 / rows.max(1) as f64).ln().abs();
        let nearest = self
            .0
            .iter_mut()
            .min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)));
        if let Some((_, seconds)) = nearest {
            *seconds *= 1.0 + LEARNT * (ratio.clamp(0.25, 4.0) - 1.0);
        }
    }
}

/// The rows of one mix in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub rows: usize,
    /// The banks it is read from.
    pub banks: Vec<usize>,
}

/// Measured at the start and, since nothing then says what else is in the processor's caches or who else is at work, corrected by
/// every evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// Of an evaluation of rows that read no bank.
    pub plain: Curve,
    /// The same by a materialised instance.
    pub single: Curve,
    /// What rows that read one bank add.
    pub bank: Curve,
    /// Of making a materialised instance.
    pub make: f64,
    /// Bytes that it takes.
    pub bytes: usize,
}

impl Costs {
    /// Measures an instance and one of its variants, which takes about a second at most where making an instance does not
    /// take longer; `None` where it cannot be materialised.
    ///
    /// # Errors
    /// Whatever an evaluation has.
    pub fn measure(
        denoiser: &dyn Denoiser,
        variant: VariantId,
        most_rows: usize,
    ) -> candle_core::Result<Option<Self>> {
        let (begin, single) = (Instant::now(), Mix::single(variant));
        let Some(made) = denoiser.materialise(&single)? else {
            return Ok(None);
        };
        let mut costs = Costs {
            make: begin.elapsed().as_secs_f64(),
            bytes: made.bytes(),
            ..Costs::default()
        };
        drop(made);
        let begin = Instant::now();
        let mut cache = denoiser.cache(SEQUENCE, 1)?;
        for rows in ROWS.into_iter().filter(|rows| *rows <= most_rows.max(1)) {
            let [mut plain, mut banked] = [f64::INFINITY; 2];
            for _ in 0..REPEATS {
                for (mix, least) in [(Mix::base(), &mut plain), (single.clone(), &mut banked)] {
                    let (batch, start) = (batch(&mix, rows), Instant::now());
                    denoiser.forward(&batch, &mut cache)?;
                    *least = least.min(start.elapsed().as_secs_f64());
                }
            }
            costs.plain.0.push((rows, plain));
            costs.bank.0.push((rows, (banked - plain).max(0.0)));
            if begin.elapsed() > LIMIT {
                break;
            }
        }
        costs.single = costs.plain.clone();
        Ok(Some(costs))
    }

    /// Seconds of one evaluation of these rows.
    fn shared<'a>(&self, shares: impl Iterator<Item = &'a Share>) -> f64 {
        let (rows, banks) = sum(shares);
        self.plain.at(rows)
            + banks
                .into_values()
                .map(|rows| self.bank.at(rows))
                .sum::<f64>()
    }

    /// One evaluation of these rows took so many seconds, by a materialised instance or by that of the generation.
    pub fn learn(&mut self, shares: &[Share], materialised: bool, seconds: f64) {
        let (rows, banks) = sum(shares.iter());
        if materialised {
            let ratio = seconds / self.single.at(rows);
            return self.single.learn(rows, ratio);
        }
        let ratio = seconds / self.shared(shares.iter());
        self.plain.learn(rows, ratio);
        for rows in banks.into_values() {
            self.bank.learn(rows, ratio);
        }
        for (single, plain) in self.single.0.iter_mut().zip(&self.plain.0) {
            single.1 += FORGOTTEN * (plain.1 - single.1);
        }
    }

    /// What [`Costs::saved`] says where that is worth the bother, else 0.
    pub fn worth(&self, shares: &[Share], apart: &[bool], index: usize) -> f64 {
        let saved = self.saved(shares, apart, index);
        if saved > WORTH * self.single.at(shares[index].rows) {
            saved
        } else {
            0.0
        }
    }

    /// What it saves to give share `index` an evaluation of its own, as materialised weights, when those that are `apart`
    /// have one already; negative where it costs more than the banks do.
    fn saved(&self, shares: &[Share], apart: &[bool], index: usize) -> f64 {
        let left = |also: Option<usize>| {
            let stays = move |(at, _): &(usize, &Share)| !apart[*at] && Some(*at) != also;
            self.shared(
                shares
                    .iter()
                    .enumerate()
                    .filter(stays)
                    .map(|(_, share)| share),
            )
        };
        left(None) - left(Some(index)) - self.single.at(shares[index].rows)
    }
}

/// All rows, and those of every bank.
fn sum<'a>(shares: impl Iterator<Item = &'a Share>) -> (usize, BTreeMap<usize, usize>) {
    let (mut rows, mut banks) = (0, BTreeMap::new());
    for share in shares {
        rows += share.rows;
        for bank in &share.banks {
            *banks.entry(*bank).or_default() += share.rows;
        }
    }
    (rows, banks)
}

/// Sequences of a few tokens each, `rows` in all.
fn batch(mix: &Mix, rows: usize) -> Batch {
    let segment = |first: usize| {
        let length = SEQUENCE.min(rows - first);
        Segment {
            mix: mix.clone(),
            block: None,
            sigma: 0.0,
            tokens: vec![0; length],
            first_position: 0,
            clean: 0,
            rows: vec![length - 1],
            draws: Vec::new(),
            pages: Vec::new(),
            pages_start: 0,
        }
    };
    Batch {
        segments: (0..rows).step_by(SEQUENCE).map(segment).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An evaluation takes 1, a row 0.1, a bank 0.5 and a row of it 0.05.
    fn costs() -> Costs {
        Costs {
            plain: Curve(vec![(1, 1.1), (11, 2.1)]),
            single: Curve(vec![(1, 1.1), (11, 2.1)]),
            bank: Curve(vec![(1, 0.55), (11, 1.05)]),
            make: 5.0,
            bytes: 100,
        }
    }

    fn share(rows: usize, bank: usize) -> Share {
        Share {
            rows,
            banks: vec![bank],
        }
    }

    #[test]
    fn a_curve_is_linear_between_and_beyond_what_was_measured() {
        let curve = &costs().plain;
        for (rows, seconds) in [(0, 0.0), (1, 1.1), (6, 1.6), (11, 2.1), (21, 3.1)] {
            assert!((curve.at(rows) - seconds).abs() < 1e-9, "{rows}");
        }
        assert_eq!(Curve::default().at(7), 0.0);
        assert_eq!(Curve(vec![(2, 3.0)]).at(1), 3.0);
        assert_eq!(Curve(vec![(2, 3.0)]).at(8), 12.0);
    }

    #[test]
    fn alone_it_saves_its_bank_and_beside_others_it_costs_an_evaluation() {
        let (costs, near) = (costs(), |a: f64, b: f64| {
            assert!((a - b).abs() < 1e-9, "{a} is not {b}")
        });
        near(costs.saved(&[share(10, 0)], &[false], 0), 1.0);
        // Of four in one bank, one leaves: 0.05 a row for another evaluation's 1.
        let four = [share(10, 0), share(10, 0), share(10, 0), share(10, 0)];
        near(costs.saved(&four, &[false; 4], 0), 0.5 - 1.0);
        // Of two in two banks, one takes its bank with it; the last one that is left takes all.
        let two = [share(10, 0), share(10, 1)];
        near(costs.saved(&two, &[false; 2], 0), 1.0 - 1.0);
        near(costs.saved(&two, &[true, false], 1), 1.0);
        // Rows of the base stay behind.
        let base = Share {
            rows: 10,
            banks: vec![],
        };
        near(
            costs.saved(&[share(10, 0), base], &[false; 2], 0),
            1.0 - 1.0,
        );
    }

    #[test]
    fn what_evaluations_take_is_learnt_and_what_was_learnt_of_instances_is_forgotten() {
        let (measured, alone) = (costs(), [share(10, 0)]);
        let mut slow = measured.clone();
        for _ in 0..200 {
            slow.learn(&alone, true, 9.0);
        }
        assert!((slow.single.at(10) - 9.0).abs() < 0.5, "{slow:?}");
        assert_eq!((&slow.plain, &slow.bank), (&measured.plain, &measured.bank));
        assert!(
            slow.saved(&alone, &[false], 0) < 0.0,
            "not worth it any more"
        );
        // Nothing but what does without them is evaluated now, and that as fast as was measured.
        for _ in 0..10_000 {
            slow.learn(&alone, false, 3.0);
        }
        assert!(slow.saved(&alone, &[false], 0) > 0.9, "{slow:?}");
        // A machine that is slower in all is no reason for either.
        let mut busy = measured;
        for _ in 0..200 {
            busy.learn(&alone, false, 6.0);
            busy.learn(&alone, true, 4.0);
        }
        assert!(
            (busy.saved(&alone, &[false], 0) - 2.0).abs() < 0.1,
            "{busy:?}"
        );
    }
}
