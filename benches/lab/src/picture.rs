//! Series of points as SVG.

use anyhow::{Context, Result, bail};
use choir::train::folder::{replace, replaceable};
use plotters::prelude::*;
use std::ops::Range;
use std::path::Path;

const SIZE: (u32, u32) = (1080, 520);
/// Width of the diagram; the names of its series stand to its right.
const DIAGRAM: u32 = 700;

/// A picture's contents.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: &'static str,
    /// What is along the axes; the horizontal one is logarithmic.
    pub x: &'static str,
    pub y: &'static str,
    /// Of the vertical axis. What lies outside is drawn on the edge.
    pub range: Range<f64>,
    pub series: Vec<Series>,
}

/// Points of one kind, joined by a line or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub joined: bool,
    pub points: Vec<Point>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Positive: its axis is logarithmic.
    pub x: f64,
    pub y: f64,
    /// Stands above the point.
    pub label: String,
}

/// From `low` to `high`, both finite, with a little room on both sides.
pub fn around(low: f64, high: f64) -> Range<f64> {
    let room = ((high - low) / 20.0).max(1e-9);
    low - room..high + room
}

/// Refuses, before long work, a `--plot` that [`save`] could not write after it.
pub fn check(plot: Option<&Path>) -> Result<()> {
    let Some(file) = plot else { return Ok(()) };
    replaceable(file).with_context(|| format!("--plot {} cannot be written", file.display()))
}

/// Draws into the file that `--plot` names, if any.
pub fn save(plot: Option<&Path>, chart: impl FnOnce() -> Chart) -> Result<()> {
    match plot {
        Some(file) => Ok(replace(file, svg(&chart())?.as_bytes())?),
        None => Ok(()),
    }
}

/// The picture.
pub fn svg(chart: &Chart) -> Result<String> {
    let mut out = String::new();
    draw(chart, SVGBackend::with_string(&mut out, SIZE))?;
    Ok(out)
}

fn draw(chart: &Chart, backend: SVGBackend) -> Result<()> {
    let root = backend.into_drawing_area();
    root.fill(&WHITE)?;
    let (diagram, names) = root.split_horizontally(DIAGRAM);
    let xs = || chart.series.iter().flat_map(|series| &series.points);
    let low = xs().map(|point| point.x).reduce(f64::min).unwrap_or(1.0);
    let high = xs().map(|point| point.x).fold(2.0 * low, f64::max);
    let Range { start, end } = chart.range;
    if !(start < end && (end - start).is_finite()) {
        bail!("an axis cannot go from {start} to {end}"); // looking for its ticks would never end
    }
    let mut diagram = ChartBuilder::on(&diagram)
        .caption(chart.title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(56)
        .build_cartesian_2d((low / 1.1..high * 1.1).log_scale().base(2.0), start..end)?;
    diagram
        .configure_mesh()
        .x_desc(chart.x)
        .y_desc(chart.y)
        .label_style(("sans-serif", 13))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (index, series) in chart.series.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let at = |point: &Point| (point.x, point.y.clamp(start, end));
        if series.joined {
            let line = series.points.iter().map(at);
            diagram.draw_series(LineSeries::new(line, colour.mix(0.5)))?;
        }
        diagram.draw_series(series.points.iter().map(|point| {
            let label = ("sans-serif", 11).into_font().color(&colour);
            EmptyElement::at(at(point))
                + Circle::new((0, 0), 4, colour.filled())
                + Text::new(point.label.clone(), (-4, -18), label)
        }))?;
        let y = 50 + 22 * index as i32;
        names.draw(&Rectangle::new([(8, y), (18, y + 10)], colour.filled()))?;
        names.draw(&Text::new(&*series.name, (26, y - 2), ("sans-serif", 13)))?;
    }
    Ok(root.present()?)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Fails unless every element is closed and there is a circle for each of so many points.
    pub fn shows(svg: &str, points: usize) {
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), points);
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn pictures_take_extremes_and_escape_names() {
        let point = |x, y| Point {
            x,
            y,
            label: "<1>".into(),
        };
        let odd = Series {
            name: "a & b".into(),
            joined: true,
            points: vec![point(0.4, -3.0), point(36.0, 1.1), point(1.0, 0.95)],
        };
        let chart = |series, range| Chart {
            title: "t",
            x: "x",
            y: "y < 1",
            range,
            series,
        };
        let svg = |series, range| svg(&chart(series, range)).expect("picture");
        let drawn = svg(vec![odd.clone()], around(0.5, 1.0));
        shows(&drawn, 3);
        assert!(drawn.contains("a &amp; b") && drawn.contains("&lt;1&gt;"));
        shows(&svg(Vec::new(), around(0.5, 1.0)), 0);
        super::svg(&chart(Vec::new(), 0.0..f64::INFINITY)).expect_err("endless");
        for (low, high) in [(0.93, 1.001), (2.0, 2.0), (-40.0, 300.0)] {
            shows(&svg(vec![odd.clone()], around(low, high)), 3);
        }
    }

    #[test]
    fn files_that_cannot_be_written_are_refused_beforehand() {
        let dir = tempfile::tempdir().expect("directory");
        for file in [dir.path(), &dir.path().join("no/such/folder.svg")] {
            let error = check(Some(file)).expect_err("refused").to_string();
            assert!(error.contains("--plot"), "{error}");
        }
        check(Some(&dir.path().join("new.svg"))).expect("it can be written");
        assert!(
            std::fs::read_dir(dir.path())
                .expect("directory")
                .next()
                .is_none()
        );
    }
}
