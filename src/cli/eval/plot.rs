//! Recovered share against bits: what is drawn.

use super::evaluate::Report;
use super::trial::Kept;

/// Points of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub joined: bool,
    pub points: Vec<Point>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Per superposed parameter and variant, positive.
    pub bits: f64,
    pub share: f64,
    /// Stands beside the point.
    pub label: String,
}

/// One series for each form of the default scheme, one for each scheme that it is compared with.
pub fn series(report: &Report) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for outcome in &report.outcomes {
        let Some(share) = outcome.summary.mean else { continue };
        let trial = &outcome.trial;
        let name = match trial.scheme {
            Kept::Choir => format!("choir, {}", trial.form),
            scheme => scheme.name().to_owned(),
        };
        let point = Point {
            bits: outcome.bits,
            share,
            label: match trial.scheme.scheme() {
                Some(_) => trial.capacity.to_string(),
                None => String::new(),
            },
        };
        match all.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => all.push(Series {
                name,
                joined: trial.scheme == Kept::Choir,
                points: vec![point],
            }),
        }
    }
    for series in &mut all {
        series.points.sort_by(|a, b| a.bits.total_cmp(&b.bits));
    }
    all
}
