//! Where steps' time went, part by part.

use crate::model::profile::{Part, Profile};
use serde::Serialize;

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

/// The parts that took any time.
pub fn rows(profile: &Profile, steps: usize) -> Vec<Row> {
    let spent = Part::ALL.map(|part| (part, profile.of(part)));
    let total: f64 = spent.iter().map(|(_, (time, _))| time.as_secs_f64()).sum();
    let used = spent.into_iter().filter(|(_, (time, _))| !time.is_zero());
    used.map(|(part, (time, flops))| {
        let seconds = time.as_secs_f64();
        Row {
            part: format!("{part:?}").to_lowercase(),
            milliseconds: 1e3 * seconds / steps as f64,
            share: seconds / total,
            gflops: (flops > 0).then(|| 1e-9 * flops as f64 / seconds),
        }
    })
    .collect()
}

pub fn print(title: &str, rows: &[Row]) {
    println!(
        "\n{title}\n{:12}{:>10}{:>9}{:>10}",
        "part", "ms a step", "share", "GFLOP/s"
    );
    for row in rows {
        let rate = row.gflops.map_or(String::new(), |rate| format!("{rate:.0}"));
        println!(
            "{:12}{:>10.3}{:>7.1} %{rate:>10}",
            row.part,
            row.milliseconds,
            100.0 * row.share
        );
    }
    let all: f64 = rows.iter().map(|row| row.milliseconds).sum();
    let products: f64 = rows
        .iter()
        .filter(|row| row.gflops.is_some())
        .map(|row| row.share)
        .sum();
    println!("{:12}{all:>10.3}{:>7.1} % in matrix products", "all", 100.0 * products);
}
