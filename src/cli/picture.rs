//! Series as SVG, written by hand.

use crate::train::folder::replace;
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::path::Path;

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 520.0;
/// The frame inside the picture; the legend stands to its right.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 660.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 460.0;

/// Colours that stay apart for most kinds of colour blindness (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f",
];

/// A picture's contents.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: &'static str,
    /// What is along the axes; the horizontal one is logarithmic.
    pub x: &'static str,
    pub y: &'static str,
    /// Lines below the legend.
    pub notes: &'static [&'static str],
    pub scale: Scale,
    pub series: Vec<Series>,
}

/// Points of one kind.
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
    /// Stands beside the point.
    pub label: String,
}

/// Of the vertical axis. What lies outside is drawn on the edge.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub low: f64,
    pub high: f64,
    /// Between two ticks; the lowest one is at `low`.
    step: f64,
}

impl Scale {
    /// From `low` to `high`, finite and in order, with a little room and at most a dozen ticks; from 0 where that room would go below it
    /// and no figure does.
    pub fn around(low: f64, high: f64) -> Self {
        let range = (high - low).max(1e-9);
        let power = 10f64.powf((range / 10.0).log10().floor());
        let fits = |step: &f64| range / step <= 10.0;
        let step = [1.0, 2.0, 5.0]
            .map(|times| times * power)
            .into_iter()
            .find(fits);
        let step = step.unwrap_or(10.0 * power);
        Self {
            low: ((low / step - 0.5).floor() * step).max(low.min(0.0)),
            high: high + step / 4.0,
            step,
        }
    }
}

/// Where figures lie.
struct Axes {
    octaves: (f64, f64),
    scale: Scale,
}

impl Axes {
    fn around(chart: &Chart) -> Self {
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let octaves = || points().map(|point| point.x.log2());
        let low = octaves().reduce(f64::min).unwrap_or(0.0).floor();
        let high = octaves().fold(low + 1.0, f64::max).ceil();
        Axes {
            octaves: (low, high),
            scale: chart.scale,
        }
    }

    fn x(&self, x: f64) -> f64 {
        let (low, high) = self.octaves;
        LEFT + (x.log2() - low) / (high - low) * (RIGHT - LEFT)
    }

    fn y(&self, y: f64) -> f64 {
        let Scale { low, high, .. } = self.scale;
        BOTTOM - (y.clamp(low, high) - low) / (high - low) * (BOTTOM - TOP)
    }
}

/// Refuses, before long work, a `--plot` that [`save`] could not write after it: makes the file that it would write first, and takes
/// it away again.
pub fn check(plot: Option<&Path>) -> Result<()> {
    let Some(file) = plot else { return Ok(()) };
    let cannot = || format!("--plot {} cannot be written", file.display());
    if file.is_dir() || file.file_name().is_none() {
        bail!("{}: it is a directory", cannot());
    }
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    std::fs::File::create(&beside).with_context(cannot)?;
    std::fs::remove_file(&beside).with_context(cannot)
}

/// Draws into the file that `--plot` names, if any.
pub fn save(plot: Option<&Path>, chart: impl FnOnce() -> Chart) -> Result<()> {
    Ok(plot.map_or(Ok(()), |file| replace(file, svg(&chart()).as_bytes()))?)
}

/// The picture.
pub fn svg(chart: &Chart) -> String {
    let axes = Axes::around(chart);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    frame(&mut out, &axes, chart);
    let entries = chart.series.len() + chart.notes.len();
    let apart = f64::min(24.0, (BOTTOM - TOP) / entries.max(1) as f64);
    let entry = |index: usize| TOP + 20.0 + apart * index as f64;
    for (index, series) in chart.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        draw(&mut out, &axes, index, colour, series);
        marker(
            &mut out,
            "legend",
            index,
            colour,
            (RIGHT + 24.0, entry(index)),
            "",
        );
        text(
            &mut out,
            (RIGHT + 38.0, entry(index) + 4.5),
            "start",
            &series.name,
        );
    }
    for (index, note) in (chart.series.len()..).zip(chart.notes) {
        text(&mut out, (RIGHT + 16.0, entry(index) + 4.5), "start", note);
    }
    out + "</svg>\n"
}

fn frame(out: &mut String, axes: &Axes, chart: &Chart) {
    text(out, ((LEFT + RIGHT) / 2.0, 28.0), "middle", chart.title);
    let mut line = |a: (f64, f64), b: (f64, f64), colour: &str| {
        let ((x1, y1), (x2, y2)) = (a, b);
        let _ = writeln!(
            out,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        );
    };
    let octaves: Vec<f64> = (axes.octaves.0 as i32..=axes.octaves.1 as i32)
        .map(|o| f64::from(o).exp2())
        .collect();
    let Scale { low, high, step } = axes.scale;
    let ticks = (0..).map(|count| low + f64::from(count) * step);
    let ticks: Vec<f64> = ticks.take_while(|y| *y <= high).collect();
    for &x in &octaves {
        line((axes.x(x), TOP), (axes.x(x), BOTTOM + 5.0), "#dddddd");
    }
    for &y in &ticks {
        line((LEFT - 5.0, axes.y(y)), (RIGHT, axes.y(y)), "#dddddd");
    }
    line((LEFT, TOP), (LEFT, BOTTOM), "black");
    line((LEFT, BOTTOM), (RIGHT, BOTTOM), "black");
    for &x in &octaves {
        text(out, (axes.x(x), BOTTOM + 20.0), "middle", &x.to_string());
    }
    for &y in &ticks {
        text(
            out,
            (LEFT - 9.0, axes.y(y) + 4.5),
            "end",
            &format!("{y:.2}"),
        );
    }
    text(
        out,
        ((LEFT + RIGHT) / 2.0, BOTTOM + 44.0),
        "middle",
        chart.x,
    );
    let y = (TOP + BOTTOM) / 2.0;
    let title = escaped(chart.y);
    let _ = writeln!(
        out,
        "<text x=\"20\" y=\"{y}\" text-anchor=\"middle\" transform=\"rotate(-90 20 {y})\">{title}</text>"
    );
}

fn draw(out: &mut String, axes: &Axes, index: usize, colour: &str, series: &Series) {
    let at = |point: &Point| (axes.x(point.x), axes.y(point.y));
    if series.joined {
        let line: Vec<String> = series
            .points
            .iter()
            .map(|p| format!("{:.1},{:.1}", at(p).0, at(p).1))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-opacity=\"0.5\"/>",
            line.join(" ")
        );
    }
    for point in &series.points {
        let (x, y) = at(point);
        let title = format!("{}: {:.2}, {:.3}", series.name, point.x, point.y);
        marker(out, "point", index, colour, (x, y), &title);
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\" fill=\"{colour}\">{}</text>",
            y - 8.0,
            escaped(&point.label)
        );
    }
}

/// A circle, square, triangle or diamond.
fn marker(
    out: &mut String,
    class: &str,
    index: usize,
    colour: &str,
    (x, y): (f64, f64),
    title: &str,
) {
    let corners: &[(f64, f64)] = match index % 4 {
        0 => &[
            (-2.0, -4.5),
            (2.0, -4.5),
            (4.5, -2.0),
            (4.5, 2.0),
            (2.0, 4.5),
            (-2.0, 4.5),
            (-4.5, 2.0),
            (-4.5, -2.0),
        ],
        1 => &[(-4.0, -4.0), (4.0, -4.0), (4.0, 4.0), (-4.0, 4.0)],
        2 => &[(0.0, -5.0), (5.0, 4.0), (-5.0, 4.0)],
        _ => &[(0.0, -5.5), (5.5, 0.0), (0.0, 5.5), (-5.5, 0.0)],
    };
    let path: Vec<String> = corners
        .iter()
        .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy))
        .collect();
    let _ = writeln!(
        out,
        "<polygon class=\"{class}\" points=\"{}\" fill=\"{colour}\"><title>{}</title></polygon>",
        path.join(" "),
        escaped(title)
    );
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escaped(text);
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Every element is closed, in order, and there is one marker a point.
    pub fn well_formed(svg: &str, points: usize) {
        let mut open = Vec::new();
        for element in svg.split('<').skip(1) {
            let (tag, _) = element.split_once('>').expect("closed");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            assert!(!tag.contains("NaN") && !tag.contains("inf"), "{tag}");
            let name = tag.split_whitespace().next().expect("name");
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
        assert_eq!(svg.matches("class=\"point\"").count(), points);
    }

    #[test]
    fn the_picture_takes_extremes_and_escapes() {
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
        let chart = |series| Chart {
            title: "t",
            x: "x",
            y: "y < 1",
            notes: &["note"],
            scale: Scale::around(0.5, 1.0),
            series,
        };
        let odd = svg(&chart(vec![odd]));
        well_formed(&odd, 3);
        assert!(odd.contains("a &amp; b") && odd.contains("&lt;1&gt;") && odd.contains("y &lt; 1"));
        well_formed(&svg(&chart(Vec::new())), 0);
        for (low, high) in [
            (0.0, 1.0),
            (0.93, 1.001),
            (3.1, 9.7),
            (2.0, 2.0),
            (-40.0, 300.0),
        ] {
            let scale = Scale::around(low, high);
            assert!(scale.low <= low && scale.high >= high, "{scale:?}");
            assert!(
                scale.high - scale.low < 1.4 * (high - low).max(1e-8),
                "{scale:?}"
            );
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
