//! Where steps' time went, part by part.

use choir::model::profile::{ForwardStage, Profile};
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
        (Kind::Attention, "attention"),
        (Kind::Rest, "all else"),
    ];

    fn of(stage: ForwardStage) -> Self {
        match stage {
            ForwardStage::Qkv
            | ForwardStage::Out
            | ForwardStage::Up
            | ForwardStage::Down
            | ForwardStage::Head => Kind::Base,
            ForwardStage::Banks => Kind::Banks,
            ForwardStage::Attention => Kind::Attention,
            ForwardStage::Plan
            | ForwardStage::Embedding
            | ForwardStage::Norm
            | ForwardStage::Rotary
            | ForwardStage::Gelu
            | ForwardStage::Bias
            | ForwardStage::Drawing => Kind::Rest,
        }
    }
}

impl Table {
    pub fn new(profile: &Profile, steps: usize) -> Self {
        let total: Duration = ForwardStage::ALL
            .iter()
            .map(|part| profile.of(*part).0)
            .sum();
        let row = |part: String, of: &dyn Fn(ForwardStage) -> bool| {
            let spent = ForwardStage::ALL
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
        let parts = ForwardStage::ALL.into_iter();
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
            "{:22}{all:>10.3}{:>7.1} % in products with weights",
            "all",
            100.0 * products
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn table_tells_products_from_attention_and_the_rest() {
        let mut profile = Profile::default();
        let mut spend = |stage, flops| {
            let begin = Instant::now();
            while begin.elapsed().is_zero() {}
            profile.ended(stage, flops);
        };
        spend(ForwardStage::Qkv, 10);
        spend(ForwardStage::Attention, 0);
        spend(ForwardStage::Gelu, 0);
        let table = Table::new(&profile, 1);
        let names = |rows: &[Row]| rows.iter().map(|row| row.part.clone()).collect::<Vec<_>>();
        assert_eq!(names(&table.parts), ["qkv", "attention", "gelu"]);
        assert_eq!(
            names(&table.sums),
            ["products of the base", "attention", "all else"]
        );
        let share: f64 = table.sums.iter().map(|row| row.share).sum();
        assert!((share - 1.0).abs() < 1e-9);
        let product = &table.sums[0];
        let flops = product.gflops.map(|rate| rate * product.milliseconds);
        assert!(flops.is_some_and(|flops| (flops - 10e-6).abs() < 1e-9));
        assert!(table.sums[1..].iter().all(|row| row.gflops.is_none()));
    }
}
