//! Series as SVG, written by hand.

use super::plot::{Point, Series};
use std::fmt::Write;

const WIDTH: f64 = 860.0;
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

/// Where figures lie: bits on a logarithmic axis, shares on a linear one.
struct Axes {
    bits: (f64, f64),
    share: (f64, f64),
}

impl Axes {
    /// Octaves around the bits. A share below 0 (worse than the base) is drawn on the lower edge.
    fn around(series: &[Series]) -> Self {
        let points = || series.iter().flat_map(|series| &series.points);
        let least = points().map(|p| p.bits).fold(1.0, f64::min);
        let most = points().map(|p| p.bits).fold(2.0, f64::max);
        let low = points().map(|p| p.share).fold(0.9, f64::min).max(0.0);
        let high = points().map(|p| p.share).fold(1.0, f64::max);
        let step = tick(low);
        Axes {
            bits: (least.log2().floor(), most.log2().ceil()),
            share: ((low / step - 0.5).floor().max(0.0) * step, high + step / 4.0),
        }
    }

    fn x(&self, bits: f64) -> f64 {
        let (low, high) = self.bits;
        LEFT + (bits.log2() - low) / (high - low) * (RIGHT - LEFT)
    }

    fn y(&self, share: f64) -> f64 {
        let (low, high) = self.share;
        BOTTOM - (share.max(low) - low) / (high - low) * (BOTTOM - TOP)
    }
}

/// Between two ticks of the share, given the lowest.
fn tick(low: f64) -> f64 {
    match 1.0 - low {
        range if range <= 0.12 => 0.01,
        range if range <= 0.3 => 0.05,
        _ => 0.1,
    }
}

/// The picture.
pub fn svg(series: &[Series]) -> String {
    let axes = Axes::around(series);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    frame(&mut out, &axes);
    for (index, series) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        draw(&mut out, &axes, index, colour, series);
        let y = TOP + 20.0 + 24.0 * index as f64;
        marker(&mut out, "legend", index, colour, (RIGHT + 24.0, y), "");
        text(&mut out, (RIGHT + 38.0, y + 4.5), "start", &series.name);
    }
    let y = TOP + 30.0 + 24.0 * series.len() as f64;
    text(&mut out, (RIGHT + 16.0, y), "start", "numbers: variants a bank");
    text(&mut out, (RIGHT + 16.0, y + 17.0), "start", "(body/head)");
    out + "</svg>\n"
}

fn frame(out: &mut String, axes: &Axes) {
    text(
        out,
        ((LEFT + RIGHT) / 2.0, 28.0),
        "middle",
        "What is left of the fine-tunes' gain, and what it costs",
    );
    let mut line = |a: (f64, f64), b: (f64, f64), colour: &str| {
        let ((x1, y1), (x2, y2)) = (a, b);
        let _ = writeln!(
            out,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        );
    };
    let octaves: Vec<f64> = (axes.bits.0 as i32..=axes.bits.1 as i32)
        .map(|o| f64::from(o).exp2())
        .collect();
    let step = tick(axes.share.0);
    let first = (axes.share.0 / step).round() as i32;
    let shares: Vec<f64> = (first..)
        .map(|count| f64::from(count) * step)
        .take_while(|share| *share <= axes.share.1)
        .collect();
    for &bits in &octaves {
        line((axes.x(bits), TOP), (axes.x(bits), BOTTOM + 5.0), "#dddddd");
    }
    for &share in &shares {
        line((LEFT - 5.0, axes.y(share)), (RIGHT, axes.y(share)), "#dddddd");
    }
    line((LEFT, TOP), (LEFT, BOTTOM), "black");
    line((LEFT, BOTTOM), (RIGHT, BOTTOM), "black");
    for &bits in &octaves {
        text(out, (axes.x(bits), BOTTOM + 20.0), "middle", &bits.to_string());
    }
    for &share in &shares {
        text(out, (LEFT - 9.0, axes.y(share) + 4.5), "end", &format!("{share:.2}"));
    }
    let middle = ((LEFT + RIGHT) / 2.0, BOTTOM + 44.0);
    text(out, middle, "middle", "bits per parameter and variant");
    let y = (TOP + BOTTOM) / 2.0;
    let _ = writeln!(
        out,
        "<text x=\"20\" y=\"{y}\" text-anchor=\"middle\" transform=\"rotate(-90 20 {y})\">recovered share of the gain</text>"
    );
}

fn draw(out: &mut String, axes: &Axes, index: usize, colour: &str, series: &Series) {
    let at = |point: &Point| (axes.x(point.bits), axes.y(point.share));
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
        let title = format!("{}: {:.2} bits, share {:.3}", series.name, point.bits, point.share);
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
fn marker(out: &mut String, class: &str, index: usize, colour: &str, (x, y): (f64, f64), title: &str) {
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
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
