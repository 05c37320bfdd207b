//! Products with an f32 matrix packed once for few rows: y = x W^T.
//!
//! W [out, in] is stored in panels of 32 outputs, inputs outermost, so that a step of the inner loop loads 32 weights
//! and, for every row, multiplies them with one element of x. Every element of y is one
//! chain of multiply-adds over the inputs in order, whatever the number of rows or threads: results do
//! not depend on the batch. (General-purpose products choose other kernels for other row counts.)

use super::isa::Isa;
use super::panel::{LANES, Panel, StridedRows, TILE, accumulate};
use super::quantized::raw::{self, Plain};
use rayon::prelude::*;

/// Outputs to a panel: two AVX-512 vectors, four of AVX2.
const PANEL: usize = 2 * LANES;

/// How far ahead weights are asked for, in floats: the processor's own look-ahead ends with a page.
const AHEAD: usize = 2048;

/// Sixteen weights, where no vector of them lies across two lines of the cache.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

#[allow(unsafe_code)]
// SAFETY: sixteen floats.
unsafe impl Plain for Line {}

/// Lines of one input of a panel.
const LINES: usize = PANEL / LANES;

/// A matrix [out, in] in panels; the last panel is padded with zeros.
#[derive(Clone, Debug)]
pub struct Packed {
    out: usize,
    input: usize,
    lines: Vec<Line>,
}

/// Lets tasks write disjoint columns of one output.
#[derive(Clone, Copy)]
pub struct Columns(*mut f32);
#[allow(unsafe_code)]
// SAFETY: whoever makes one hands every task a panel of its own, and a panel is a set of columns of its own.
unsafe impl Send for Columns {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    pub fn of(y: &mut [f32]) -> Self {
        Columns(y.as_mut_ptr())
    }

    pub fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

impl Packed {
    /// Packs `weights`, [out, in] by rows.
    pub fn new(weights: &[f32], out: usize, input: usize) -> Self {
        assert_eq!(weights.len(), out * input, "a matrix of {out} x {input}");
        let mut lines = vec![Line([0.0; LANES]); out.div_ceil(PANEL) * input * LINES];
        if input > 0 {
            lines
                .par_chunks_mut(input * LINES)
                .zip(weights.par_chunks(input * PANEL))
                .for_each(|(lines, weights)| {
                    for (output, row) in weights.chunks(input).enumerate() {
                        for (step, &weight) in lines.chunks_mut(LINES).zip(row) {
                            step[output / LANES].0[output % LANES] = weight;
                        }
                    }
                });
        }
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

    /// The panels' weights one after the other.
    #[allow(unsafe_code)]
    fn data(&self) -> &[f32] {
        // SAFETY: lines are `repr(C)` around sixteen floats whose 64 bytes are a multiple of the alignment: no padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LANES) }
    }

    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.input)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// Row `row` of the matrix into `out` [in].
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let panel = &self.data()[row / PANEL * self.input * PANEL..][..self.input * PANEL];
        for (value, step) in out.iter_mut().zip(panel.chunks(PANEL)) {
            *value = step[row % PANEL];
        }
    }

    /// y [rows, out] = x [rows, in] W^T, every element written.
    pub fn product(&self, x: &[f32], rows: usize, y: &mut [f32]) {
        assert_eq!(x.len(), rows * self.input, "{rows} rows of {}", self.input);
        assert_eq!(y.len(), rows * self.out, "{rows} rows of {}", self.out);
        if rows == 0 || self.out == 0 {
            return;
        }
        if self.input == 0 {
            y.fill(0.0);
            return;
        }
        let (columns, isa) = (Columns::of(y), Isa::best());
        self.data()
            .par_chunks(self.input * PANEL)
            .enumerate()
            .for_each(|(index, data)| {
                let first = index * PANEL;
                let width = PANEL.min(self.out - first);
                let next = data.as_ptr().wrapping_add(AHEAD);
                let panel = [Panel {
                    groups: [data, &data[LANES..]],
                    step: PANEL,
                    inputs: self.input,
                    next: [next, next.wrapping_add(LANES)],
                }];
                for (tile, x) in x.chunks(TILE * self.input).enumerate() {
                    let mut sums = [[[0f32; LANES]; LINES]; TILE];
                    let sums = &mut sums[..x.len() / self.input];
                    let stride = self.input;
                    accumulate(isa, &panel, StridedRows { data: x, stride }, sums);
                    for (row, sums) in (tile * TILE..).zip(sums) {
                        let sums = sums.as_flattened().as_ptr();
                        // SAFETY: row < rows and the panel's columns end at `out`, so the range lies inside y, whose
                        // length was checked; no other task writes this panel's columns.
                        #[allow(unsafe_code)]
                        unsafe {
                            std::ptr::copy_nonoverlapping(
                                sums,
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
    use proptest::prelude::*;

    fn noise(count: usize, salt: u8) -> Vec<f32> {
        let mut stream = crate::rng::Stream::new(crate::rng::Key([salt; 32]));
        (0..count).map(|_| stream.normal() as f32).collect()
    }

    proptest! {
        #[test]
        fn product_matches_the_definition_and_not_the_batch(rows in 1usize..20, out in 1usize..50, input in 1usize..40) {
            let (w, x) = (noise(out * input, 1), noise(rows * input, 2));
            let packed = Packed::new(&w, out, input);
            let mut again = vec![0f32; out * input];
            again.chunks_mut(input).enumerate().for_each(|(row, values)| packed.row(row, values));
            prop_assert_eq!(again, w.clone());
            let mut y = vec![f32::NAN; rows * out];
            packed.product(&x, rows, &mut y);
            for r in 0..rows {
                for o in 0..out {
                    let expected: f64 = (0..input).map(|k| f64::from(x[r * input + k]) * f64::from(w[o * input + k])).sum();
                    prop_assert!((f64::from(y[r * out + o]) - expected).abs() < 1e-4);
                }
                let mut alone = vec![f32::NAN; out];
                packed.product(&x[r * input..][..input], 1, &mut alone);
                prop_assert_eq!(&alone[..], &y[r * out..][..out]);
            }
        }
    }
}
