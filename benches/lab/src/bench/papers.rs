//! What the papers' own code takes under PyTorch, on two cores of another machine, and how its figures are carried over to
//! this one: by candle's matrix products, which were measured there beside it and are measured here beside ours
//! (`tests/fixtures/BASELINE.md`).

use super::products::Rate;
use serde::Serialize;

/// candle's f32 product there, in GFLOP/s at 4, 16 and 256 rows of the published small network's matrices, by outputs.
const CANDLE: [(usize, [f64; 3]); 4] = [
    (2304, [21.0, 52.0, 117.0]),
    (3072, [23.0, 58.0, 143.0]),
    (768, [9.0, 31.0, 149.0]),
    (50_258, [23.0, 68.0, 117.0]),
];
/// The rows of those rates.
const ROWS: [usize; 3] = [4, 16, 256];

/// What it does there, with one sequence, which is all it can run.
#[derive(Clone, Copy, Debug)]
enum Theirs {
    TokensPerSecond(f64),
    /// The faster end of what was measured.
    SecondsPerStep(f64),
}

/// This build's speed beside the papers' code's, carried over to this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// How much faster this machine's products are, by candle's at as many rows as a step of the papers' code has.
    pub machine: f64,
    /// The same by candle's products at 256 rows.
    pub machine_at_256: f64,
    /// Times as fast as the papers' code.
    pub factor: f64,
    pub factor_at_256: f64,
}

/// For a sampler in blocks of `block`, or a Duo step of 1024 tokens; `None` where nothing was measured.
pub fn against(
    block: usize,
    tokens_per_second: f64,
    seconds_per_step: f64,
    products: &[Rate],
) -> Option<Against> {
    let (theirs, rows) = match block {
        4 => (Theirs::TokensPerSecond(6.8), 4),
        16 => (Theirs::TokensPerSecond(5.9), 16),
        1024 => (Theirs::SecondsPerStep(6.9), 256),
        _ => return None,
    };
    let factor = match theirs {
        Theirs::TokensPerSecond(theirs) => tokens_per_second / theirs,
        Theirs::SecondsPerStep(theirs) => theirs / seconds_per_step,
    };
    let (machine, machine_at_256) = (machine(rows, products)?, machine(256, products)?);
    Some(Against {
        machine,
        machine_at_256,
        factor: factor / machine,
        factor_at_256: factor / machine_at_256,
    })
}

/// Geometric mean over the matrices of candle's rate here over its rate there.
fn machine(rows: usize, products: &[Rate]) -> Option<f64> {
    let column = ROWS.iter().position(|known| *known == rows)?;
    let mut logs = 0.0;
    for (out, there) in CANDLE {
        let here = products
            .iter()
            .find(|rate| rate.out == out && rate.rows == rows)?;
        logs += (here.candle / there[column]).ln();
    }
    Some((logs / CANDLE.len() as f64).exp())
}

pub fn print<'a>(rows: impl Iterator<Item = (String, &'a Against)>) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    println!(
        "\nagainst the papers' code, after this machine's products (candle's, at a step's rows; at 256):"
    );
    for (
        name,
        Against {
            machine,
            machine_at_256,
            factor,
            factor_at_256,
        },
    ) in rows
    {
        println!(
            "{name:30}{factor:6.1} × (machine {machine:.2} ×); {factor_at_256:.1} × (machine {machine_at_256:.2} ×)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_twice_as_fast_halves_the_factor() {
        let products: Vec<Rate> = (CANDLE.iter())
            .flat_map(|&(out, there)| {
                (ROWS.into_iter().zip(there)).map(move |(rows, rate)| Rate {
                    out,
                    input: 768,
                    rows,
                    ours: 1.0,
                    candle: if rows == 256 { 4.0 * rate } else { 2.0 * rate },
                })
            })
            .collect();
        let blocks = against(4, 68.0, 0.0, &products).expect("measured");
        assert!((blocks.factor - 5.0).abs() < 1e-9 && (blocks.factor_at_256 - 2.5).abs() < 1e-9);
        let duo = against(1024, 0.0, 0.69, &products).expect("measured");
        assert!((duo.factor - 2.5).abs() < 1e-9);
        assert!(against(8, 1.0, 1.0, &products).is_none());
    }
}
