//! Where steps' time went, part by part.

use choir::model::profile::{Part, Profile};
use serde::Serialize;
use std::time::Duration;

/// One part's share of a number of steps.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    part: String,
    /// Of one step.
    milliseconds: f64,
    /// Of the whole.
    share: f64,
    /// 10^9 floating-point operations per second, of products.
    gflops: Option<f64>,
}

/// The parts that took any time, and the same by what they are.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    parts: Vec<Row>,
    sums: Vec<Row>,
}

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Base,
    Banks,
    Attention,
    Rest,
}

impl Kind {
    const ALL: [(Kind, &str); 4] = [
        (Kind::Base, "products of the base"),
        (Kind::Banks, "products with banks"),
        (Kind::Attention, "products of attention"),
        (Kind::Rest, "no product"),
    ];

    fn of(part: Part) -> Self {
        match part {
            Part::Qkv | Part::Out | Part::Expand | Part::Contract | Part::Head => Kind::Base,
            Part::Banks => Kind::Banks,
            Part::Attention => Kind::Attention,
            Part::Plan
            | Part::Embedding
            | Part::Norm
            | Part::Rotary
            | Part::Softmax
            | Part::Gelu
            | Part::Bias
            | Part::Drawing => Kind::Rest,
        }
    }
}

impl Table {
    pub fn new(profile: &Profile, steps: usize) -> Self {
        let total: Duration = Part::ALL.iter().map(|part| profile.of(*part).0).sum();
        let row = |part: String, of: &dyn Fn(Part) -> bool| {
            let spent = Part::ALL
                .into_iter()
                .filter(|part| of(*part))
                .map(|part| profile.of(part));
            let (time, flops) = spent.fold((Duration::ZERO, 0), |(time, flops), (t, f)| {
                (time + t, flops + f)
            });
            let seconds = time.as_secs_f64();
            (!time.is_zero()).then(|| Row {
                part,
                milliseconds: 1e3 * seconds / steps as f64,
                share: seconds / total.as_secs_f64(),
                gflops: (flops > 0).then(|| 1e-9 * flops as f64 / seconds),
            })
        };
        let parts = Part::ALL.into_iter();
        let kinds = Kind::ALL.into_iter();
        Table {
            parts: parts
                .filter_map(|part| row(format!("{part:?}").to_lowercase(), &|one| one == part))
                .collect(),
            sums: kinds
                .filter_map(|(kind, name)| row(name.to_owned(), &|part| Kind::of(part) == kind))
                .collect(),
        }
    }

    pub fn print(&self, title: &str) {
        println!(
            "\n{title}\n{:22}{:>10}{:>9}{:>10}",
            "part", "ms a step", "share", "GFLOP/s"
        );
        for row in self.parts.iter().chain(&self.sums) {
            let rate = row
                .gflops
                .map_or(String::new(), |rate| format!("{rate:.0}"));
            println!(
                "{:22}{:>10.3}{:>7.1} %{rate:>10}",
                row.part,
                row.milliseconds,
                100.0 * row.share
            );
        }
        let all: f64 = self.sums.iter().map(|row| row.milliseconds).sum();
        let products = self.sums.iter().filter(|row| row.gflops.is_some());
        let products: f64 = products.map(|row| row.share).sum();
        println!(
            "{:22}{all:>10.3}{:>7.1} % in matrix products",
            "all",
            100.0 * products
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use choir::model::profile::Meter;
    use std::time::Instant;

    #[test]
    fn attention_is_products_and_the_rest() {
        let mut profile = Profile::default();
        let tick = || {
            let begin = Instant::now();
            while begin.elapsed().is_zero() {}
        };
        profile.part(Part::Qkv, 10, tick);
        profile.split(Part::Attention, Part::Softmax, |split| {
            let mut stopwatch = split.stopwatch();
            tick();
            stopwatch.lap(7);
            tick();
        });
        let table = Table::new(&profile, 1);
        let names = |rows: &[Row]| rows.iter().map(|row| row.part.clone()).collect::<Vec<_>>();
        assert_eq!(names(&table.parts), ["qkv", "attention", "softmax"]);
        assert_eq!(
            names(&table.sums),
            [
                "products of the base",
                "products of attention",
                "no product"
            ]
        );
        let share: f64 = table.sums.iter().map(|row| row.share).sum();
        assert!((share - 1.0).abs() < 1e-9);
        let rate = |row: &Row| row.gflops.map(|rate| rate * row.milliseconds);
        assert!(
            table.sums[..2]
                .iter()
                .zip([10e-6, 7e-6])
                .all(|(row, flops)| {
                    rate(row).is_some_and(|found| (found - flops).abs() < 1e-9)
                })
        );
        assert_eq!(table.sums[2].gflops, None);
    }
}
