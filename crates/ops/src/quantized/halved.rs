//! Products with a matrix in bf16: y = x W^T, with x, products and sums in f32.
//!
//! W [out, in] is stored in panels of 64 outputs, inputs outermost, and widened in registers. Every element of y is one chain
//! of multiply-adds over the inputs in order, whatever the number of rows or threads.

use super::raw::{self, Plain};
use crate::isa::Isa;
use crate::packed::Columns;
use half::bf16;
use rayon::prelude::*;

mod kernel;

/// Outputs to a line.
const HALVES: usize = 32;
/// Lines to an input.
const LINES: usize = 2;
/// Outputs to a panel.
const PANEL: usize = LINES * HALVES;

/// Weights of one input: word w has output w in its low half and output 16 + w in its high half.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; HALVES / 2]);

#[allow(unsafe_code)]
// SAFETY: sixteen words.
unsafe impl Plain for Line {}

/// A matrix [out, input] in bf16.
#[derive(Clone)]
pub struct Halved {
    out: usize,
    input: usize,
    /// [ceil(out / 64)][input][2]; outputs past the last one are zero.
    lines: Vec<Line>,
}

/// Line, word and bit of an output of a panel.
fn place(output: usize) -> (usize, usize, usize) {
    (output / HALVES, output % 16, output % HALVES / 16 * 16)
}

impl Halved {
    /// Rounds `weights`, [out, in] by rows.
    pub fn new(weights: &[f32], out: usize, input: usize) -> Self {
        assert_eq!(weights.len(), out * input, "a matrix of {out} x {input}");
        let mut lines = vec![Line([0; HALVES / 2]); out.div_ceil(PANEL) * input * LINES];
        let panels = lines.par_chunks_mut((input * LINES).max(1));
        panels
            .zip(weights.par_chunks((input * PANEL).max(1)))
            .for_each(|(lines, weights)| {
                for (output, row) in weights.chunks_exact(input).enumerate() {
                    let (line, word, bit) = place(output);
                    for (lines, weight) in lines.chunks_exact_mut(LINES).zip(row) {
                        lines[line].0[word] |= u32::from(bf16::from_f32(*weight).to_bits()) << bit;
                    }
                }
            });
        Self { out, input, lines }
    }

    /// The lines, as they lie in memory.
    pub fn raw(&self) -> &[u8] {
        raw::bytes(&self.lines)
    }

    /// What [`raw`](Self::raw) gave; `None` where it is of another size.
    pub fn from_raw(lines: &[u8], out: usize, input: usize) -> Option<Self> {
        let lines = raw::values(lines, out.div_ceil(PANEL) * input * LINES)?;
        Some(Self { out, input, lines })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    fn panel(&self, panel: usize) -> &[Line] {
        &self.lines[panel * self.input * LINES..][..self.input * LINES]
    }

    /// Row `row` of the matrix into `target` [in].
    pub fn row(&self, row: usize, target: &mut [f32]) {
        let (line, word, bit) = place(row % PANEL);
        let lines = self.panel(row / PANEL).chunks_exact(LINES);
        for (value, lines) in target.iter_mut().zip(lines) {
            *value = f32::from_bits(lines[line].0[word] >> bit << 16);
        }
    }

    /// y [rows, out] = x [rows, in] W^T, every element written.
    pub fn product(&self, x: &[f32], rows: usize, y: &mut [f32]) {
        assert_eq!(x.len(), rows * self.input, "{rows} rows of {}", self.input);
        assert_eq!(y.len(), rows * self.out, "{rows} rows of {}", self.out);
        if self.input == 0 {
            y.fill(0.0);
            return;
        }
        let (columns, isa) = (Columns::of(y), Isa::best());
        (0..self.out.div_ceil(PANEL))
            .into_par_iter()
            .for_each(|index| {
                let first = index * PANEL;
                let width = PANEL.min(self.out - first);
                for (tile, x) in x.chunks(kernel::TILE * self.input).enumerate() {
                    let mut sums = [[0f32; PANEL]; kernel::TILE];
                    let sums = &mut sums[..x.len() / self.input];
                    kernel::run(isa, self.panel(index), x, sums);
                    for (row, sums) in (tile * kernel::TILE..).zip(sums) {
                        // SAFETY: row < rows and the panel's columns end at `out`, so the range lies inside y, whose length was
                        // checked; no other task writes this panel's columns.
                        #[allow(unsafe_code)]
                        unsafe {
                            std::ptr::copy_nonoverlapping(
                                sums.as_ptr(),
                                columns.at(row * self.out + first),
                                width,
                            );
                        }
                    }
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantized::panels::tests::noise;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn product_matches_the_definition_and_not_the_batch(rows in 1usize..20, out in 1usize..140, input in 1usize..40) {
            let (weights, x) = (noise(out * input, 1), noise(rows * input, 2));
            let matrix = Halved::new(&weights, out, input);
            let mut w = vec![0f32; out * input];
            w.chunks_mut(input).enumerate().for_each(|(row, w)| matrix.row(row, w));
            let rounded: Vec<f32> = weights.iter().map(|w| bf16::from_f32(*w).to_f32()).collect();
            prop_assert_eq!(&w, &rounded);
            let mut y = vec![f32::NAN; rows * out];
            matrix.product(&x, rows, &mut y);
            for isa in Isa::all() {
                let mut sums = vec![[f32::NAN; PANEL]; rows.min(kernel::TILE)];
                kernel::run(isa, matrix.panel(0), &x[..sums.len() * input], &mut sums);
                for (row, sums) in sums.iter().enumerate() {
                    let width = PANEL.min(out);
                    prop_assert_eq!(&sums[..width], &y[row * out..][..width], "{:?}", isa);
                }
            }
            for (x, y) in x.chunks(input).zip(y.chunks(out)) {
                let mut alone = vec![f32::NAN; out];
                matrix.product(x, 1, &mut alone);
                prop_assert_eq!(&alone[..], y);
                for (w, y) in w.chunks(input).zip(y) {
                    let expected: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    prop_assert!((f64::from(*y) - expected).abs() < 1e-4);
                }
            }
        }
    }
}
