//! The report of samplers as a table and as a picture.

use super::quality::Quality;
use super::{OfText, Report, Row, VariantWeights};
use crate::picture::{Chart, Point, Series, around};
use std::fmt::{self, Display, Formatter};

/// Shows a report.
pub struct Table<'a>(pub &'a Report);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report {
            samples,
            length,
            seed,
            temperature,
            nucleus_p,
            texts,
        } = self.0;
        writeln!(
            f,
            "{samples} samples of {length} tokens, seed {seed}, temperature {temperature}, nucleus_p {nucleus_p}"
        )?;
        for text in texts {
            writeln!(
                f,
                "\n{}, its judge trained on {} ({} tokens)",
                text.text, text.judge_trained_on, text.judge_tokens
            )?;
            let header = ["steps", "NFE", "s", "nats/token", "entropy", "of all"];
            let [a, b, c, d, e, g] = header;
            writeln!(f, "{:61}{a:>6}{b:>8}{c:>9}{d:>12}{e:>9}{g:>8}", "")?;
            for (name, quality) in [
                ("held-out text", &text.held_out),
                ("the same, shuffled", &text.shuffled),
            ] {
                writeln!(f, "{name:84}{}", figures(quality))?;
            }
            text.rows.iter().try_for_each(|row| line(f, row))?;
        }
        writeln!(
            f,
            "\nnats/token: the judge's cross-entropy. entropy: of the tokens of a sample, on average; of all: of those of all \
             samples.\nsteps: of a whole sequence or of each block. s: for one sample, all being drawn together."
        )
    }
}

fn line(f: &mut Formatter, row: &Row) -> fmt::Result {
    let name = format!("{}, {}, {}", row.variant, kept(row.kept), row.sampler);
    let steps = row.steps.map_or("-".to_owned(), |steps| steps.to_string());
    let figures = figures(&row.quality);
    writeln!(
        f,
        "{name:61}{steps:>6}{:8.1}{:9.4}{figures}",
        row.nfe, row.seconds
    )
}

fn figures(quality: &Quality) -> String {
    let Quality {
        nats_per_token,
        entropy,
        entropy_of_all,
        ..
    } = quality;
    format!("{nats_per_token:12.4}{entropy:9.3}{entropy_of_all:8.3}")
}

fn kept(kept: VariantWeights) -> &'static str {
    match kept {
        VariantWeights::FineTuned => "alone",
        VariantWeights::Retrieved => "retrieved",
    }
}

/// Cross-entropy against network evaluations.
pub fn chart(report: &Report) -> Chart {
    let mut series = Vec::new();
    for text in &report.texts {
        series.extend(of_text(text));
    }
    let ys = || {
        series
            .iter()
            .flat_map(|series| &series.points)
            .map(|point| point.y)
    };
    let (low, high) = (
        ys().fold(f64::INFINITY, f64::min),
        ys().fold(f64::NEG_INFINITY, f64::max),
    );
    Chart {
        title: "What samples are worth, and what they take",
        x: "network evaluations (numbers: steps)",
        y: "the judge's cross-entropy, nats per token",
        range: match low <= high {
            true => around(low, high),
            false => around(0.0, 1.0),
        },
        series,
    }
}

/// A series for every variant, way to keep it and sampler, and the held-out text as a line.
fn of_text(text: &OfText) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for row in &text.rows {
        let name = format!("{}, {}, {}", row.variant, kept(row.kept), row.sampler);
        let point = Point {
            x: row.nfe,
            y: row.quality.nats_per_token,
            label: row.steps.map_or(String::new(), |steps| steps.to_string()),
        };
        match all.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => all.push(Series {
                name,
                joined: true,
                points: vec![point],
            }),
        }
    }
    let xs = || text.rows.iter().map(|row| row.nfe);
    let ends = [xs().fold(f64::INFINITY, f64::min), xs().fold(1.0, f64::max)];
    let point = |x: f64| Point {
        x,
        y: text.held_out.nats_per_token,
        label: String::new(),
    };
    if !text.rows.is_empty() {
        all.push(Series {
            name: format!("{}, held-out text", text.text),
            joined: true,
            points: ends.map(point).to_vec(),
        });
    }
    all
}
