//! Recovered share against bits: what is drawn.

use super::evaluate::Report;
use super::trial::DeltaScheme;
use crate::picture::{Chart, Point, Series, around};

/// What is left of the gain against bits. A share below 0 (worse than the base) is drawn on the lower edge.
pub fn chart(report: &Report) -> Chart {
    let series = series(report);
    let shares = || {
        series
            .iter()
            .flat_map(|series| &series.points)
            .map(|point| point.y)
    };
    let low = shares().fold(0.9, f64::min).max(0.0);
    Chart {
        title: "What is left of the fine-tunes' gain, and what it costs",
        x: "bits per parameter and variant (numbers: variants a bank, body/head)",
        y: "recovered share of the gain",
        range: around(low, shares().fold(1.0, f64::max)),
        series,
    }
}

/// One series for each form of the default scheme, one for each scheme that it is compared with.
pub fn series(report: &Report) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for outcome in &report.outcomes {
        let Some(share) = outcome.summary.mean else {
            continue;
        };
        let trial = &outcome.trial;
        let name = match trial.scheme {
            DeltaScheme::Choir => format!("choir, {}", trial.forms),
            scheme => scheme.name().to_owned(),
        };
        let point = Point {
            x: outcome.bits,
            y: share,
            label: match trial.scheme.scheme() {
                Some(_) => trial.capacity.to_string(),
                None => String::new(),
            },
        };
        match all.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => all.push(Series {
                name,
                joined: trial.scheme == DeltaScheme::Choir,
                points: vec![point],
            }),
        }
    }
    for series in &mut all {
        series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    all
}
