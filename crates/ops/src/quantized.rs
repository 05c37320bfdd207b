//! A matrix in the form it is served in: few bits through our own products (their numbers are candle's), bf16, or f32.

use super::packed::{Columns, Packed};
use crate::transform::Signs;

use crate::error::{Error, Result};
use half::bf16;
use halved::Halved;
use levels::{LANES, Q2K, Q4_0, Q4K, Q8_0};
use panels::QuantPanels;
use rayon::prelude::*;
use rows::QuantisedRows;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

mod halved;
mod kernel;
mod levels;
mod panels;
pub(crate) mod raw;
pub(crate) mod rows;

pub(super) use panels::bytes;
pub use raw::LAYOUT;
pub(super) use rows::round;

/// How a matrix is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantisation {
    F32,
    Bf16,
    /// 8.5 bits: blocks of 32 along the input with one scale.
    Q8_0,
    /// 4.5 bits: blocks of 32 along the input with one scale.
    Q4_0,
    /// 4.5 bits: super-blocks of 256 along the input; matrices whose inner size is no multiple of 256 take
    /// `Q4_0`.
    Q4K,
    /// 2.625 bits: super-blocks of 256 along the input; others as with `Q4K`.
    Q2K,
}

impl Quantisation {
    pub const ALL: [Quantisation; 6] = [
        Quantisation::F32,
        Quantisation::Bf16,
        Quantisation::Q8_0,
        Quantisation::Q4_0,
        Quantisation::Q4K,
        Quantisation::Q2K,
    ];

    /// The form that a matrix with this inner size really takes; f32 where no block fits.
    pub fn fitting(self, input: usize) -> Quantisation {
        match self {
            Quantisation::F32 | Quantisation::Bf16 => self,
            Quantisation::Q4K | Quantisation::Q2K if input.is_multiple_of(256) => self,
            Quantisation::Q4K | Quantisation::Q2K | Quantisation::Q4_0
                if input.is_multiple_of(32) =>
            {
                Quantisation::Q4_0
            }
            Quantisation::Q8_0 if input.is_multiple_of(32) => Quantisation::Q8_0,
            _ => Quantisation::F32,
        }
    }

    /// Bytes of a matrix in it, but for what is rounded up.
    pub fn bytes(self, out: usize, input: usize) -> usize {
        let eighths = match self.fitting(input) {
            Quantisation::F32 => 256,
            Quantisation::Bf16 => 128,
            Quantisation::Q8_0 => 68,
            Quantisation::Q4_0 | Quantisation::Q4K => 36,
            Quantisation::Q2K => 21,
        };
        out * input * eighths / 64
    }

    fn name(self) -> &'static str {
        match self {
            Quantisation::F32 => "f32",
            Quantisation::Bf16 => "bf16",
            Quantisation::Q8_0 => "q8_0",
            Quantisation::Q4_0 => "q4_0",
            Quantisation::Q4K => "q4k",
            Quantisation::Q2K => "q2k",
        }
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no form's.
#[derive(Debug, thiserror::Error)]
#[error("unknown form `{0}`: one of f32, bf16, q8_0, q4_0, q4k, q2k")]
pub struct UnknownForm(String);

impl FromStr for Quantisation {
    type Err = UnknownForm;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownForm> {
        let plain = name.to_ascii_lowercase().replace("_k", "k");
        let found = Quantisation::ALL
            .into_iter()
            .find(|form| form.name() == plain);
        found.ok_or_else(|| UnknownForm(name.to_owned()))
    }
}

#[derive(Clone)]
enum Stored {
    F32(Packed),
    Bf16(Halved),
    Q8_0(QuantPanels<Q8_0>),
    Q4_0(QuantPanels<Q4_0>),
    Q4K(QuantPanels<Q4K>),
    Q2K(QuantPanels<Q2K>),
}

/// `$then` with the panels of a matrix in few bits, or `$other`.
macro_rules! few_bits {
    ($stored:expr, $panels:ident => $then:expr, $($other:tt)*) => {
        match $stored {
            Stored::Q8_0($panels) => $then,
            Stored::Q4_0($panels) => $then,
            Stored::Q4K($panels) => $then,
            Stored::Q2K($panels) => $then,
            $($other)*
        }
    };
}

/// One row of a batch, seen through one variant's transform.
#[derive(Clone, Copy, Debug)]
pub struct SignedRow<'a> {
    /// Row of x and of y.
    pub row: usize,
    /// r, [in].
    pub input: &'a Signs,
    /// c a l, [out].
    pub output: &'a [bf16],
    pub weight: f32,
}

/// A matrix [out, in] in one of the served forms.
#[derive(Clone)]
pub struct QuantizedMatrix {
    out: usize,
    input: usize,
    stored: Stored,
}

impl fmt::Debug for QuantizedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "QuantizedMatrix {} [{}, {}]",
            self.form(),
            self.out,
            self.input
        )
    }
}

/// The number itself: `to_f32` also looks for NaN, which gains are not, and is no vector instruction for it.
pub(super) fn widened(gain: bf16) -> f32 {
    f32::from_bits(u32::from(gain.to_bits()) << 16)
}

impl QuantizedMatrix {
    /// Brings `weights`, [out, in] by rows, to `form` or the nearest that fits the inner size.
    pub fn new(weights: &[f32], out: usize, input: usize, form: Quantisation) -> Result<Self> {
        if weights.len() != out * input {
            return Err(Error::Weights {
                weights: weights.len(),
                out,
                input,
            });
        }
        let stored = match form.fitting(input) {
            Quantisation::F32 => Stored::F32(Packed::new(weights, out, input)),
            Quantisation::Bf16 => Stored::Bf16(Halved::new(weights, out, input)),
            Quantisation::Q8_0 => Stored::Q8_0(QuantPanels::new(weights, out, input)),
            Quantisation::Q4_0 => Stored::Q4_0(QuantPanels::new(weights, out, input)),
            Quantisation::Q4K => Stored::Q4K(QuantPanels::new(weights, out, input)),
            Quantisation::Q2K => Stored::Q2K(QuantPanels::new(weights, out, input)),
        };
        Ok(Self { out, input, stored })
    }

    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.input)
    }

    pub fn form(&self) -> Quantisation {
        match self.stored {
            Stored::F32(_) => Quantisation::F32,
            Stored::Bf16(_) => Quantisation::Bf16,
            Stored::Q8_0(_) => Quantisation::Q8_0,
            Stored::Q4_0(_) => Quantisation::Q4_0,
            Stored::Q4K(_) => Quantisation::Q4K,
            Stored::Q2K(_) => Quantisation::Q2K,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        few_bits!(&self.stored, panels => panels.bytes(),
            Stored::F32(packed) => packed.bytes(),
            Stored::Bf16(halved) => halved.bytes(),
        )
    }

    /// y [rows, out] = x [rows, in] S^T. Row results do not depend on the number of rows or threads.
    pub fn product(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        if x.len() != rows * self.input || y.len() != rows * self.out {
            return Err(Error::Activations {
                x: x.len(),
                y: y.len(),
                rows,
                input: self.input,
                out: self.out,
            });
        }
        few_bits!(&self.stored, panels => {
                let rows = QuantisedRows::quantise(rows, self.input, |row, target| {
                    target.copy_from_slice(&x[row * self.input..][..self.input]);
                });
                let columns = Columns::of(y);
                panels.products(&rows, |row, first, products| {
                    let target = columns.at(row * self.out + first);
                    // SAFETY: row and outputs lie inside y, whose length was checked, and no other task has them.
                    #[allow(unsafe_code)]
                    unsafe {
                        std::ptr::copy_nonoverlapping(products.as_ptr(), target, products.len());
                    }
                });
            },
            Stored::F32(packed) => packed.product(x, rows, y),
            Stored::Bf16(halved) => halved.product(x, rows, y),
        );
        Ok(())
    }

    /// Products of some rows with sixteen outputs, of a form in few bits; see [`QuantPanels::product`].
    fn panel(
        &self,
        index: usize,
        x: &QuantisedRows,
        rows: Range<usize>,
        take: impl FnMut(usize, usize, &[f32]),
    ) {
        few_bits!(&self.stored, panels => panels.product(index, x, rows, take),
            Stored::F32(_) | Stored::Bf16(_) => {}
        );
    }

    /// Row `row` of the matrix, dequantised into `target` [in].
    pub fn row(&self, row: usize, target: &mut [f32]) {
        few_bits!(&self.stored, panels => panels.row(row, target),
            Stored::F32(packed) => packed.row(row, target),
            Stored::Bf16(halved) => halved.row(row, target),
        )
    }
}

/// y [rows, out] += weight · output ⊙ (S (input ⊙ x)) for every matrix S and every part of it, x [rows, in] and y being those of
/// the whole batch and the matrices of one shape. Signs are folded in where x is rounded, gains and signs where y is added.
/// Results of a row depend on its own parts only.
pub fn add_signed(
    banks: &[(&QuantizedMatrix, Vec<SignedRow>)],
    x: &[f32],
    y: &mut [f32],
) -> Result<()> {
    let Some((first, _)) = banks.first() else {
        return Ok(());
    };
    let (out, input) = first.shape();
    for (bank, parts) in banks {
        let outside = |part: &&SignedRow| {
            (part.row + 1) * input > x.len()
                || (part.row + 1) * out > y.len()
                || part.output.len() != out
        };
        if bank.shape() != (out, input) {
            return Err(Error::Matrices {
                expected: (out, input),
                found: bank.shape(),
            });
        }
        if let Some(part) = parts.iter().find(outside) {
            let row = part.row;
            return Err(Error::Row { row, out, input });
        }
    }
    let fill = |part: &SignedRow, target: &mut [f32]| {
        target.copy_from_slice(&x[part.row * input..][..input]);
        part.input.apply(target);
    };
    let add = |part: &SignedRow, first: usize, products: &[f32], target: &mut [f32]| {
        for ((y, gain), product) in target.iter_mut().zip(&part.output[first..]).zip(products) {
            *y = (part.weight * widened(*gain)).mul_add(*product, *y);
        }
    };
    // What there is in few bits goes through one pass over all rows and one over all outputs, however many banks it is of.
    let (mut few_bits, mut all) = (Vec::new(), Vec::new());
    for (bank, parts) in banks {
        if !matches!(bank.stored, Stored::F32(_) | Stored::Bf16(_)) {
            few_bits.push((bank, all.len()..all.len() + parts.len()));
            all.extend_from_slice(parts);
            continue;
        }
        let (mut rotated, mut products) = (
            vec![0f32; parts.len() * input],
            vec![0f32; parts.len() * out],
        );
        let targets = rotated.par_chunks_mut(input).zip(parts);
        targets.for_each(|(target, part)| fill(part, target));
        bank.product(&rotated, parts.len(), &mut products)?;
        for (part, products) in parts.iter().zip(products.chunks(out)) {
            add(part, 0, products, &mut y[part.row * out..][..out]);
        }
    }
    if few_bits.is_empty() {
        return Ok(());
    }
    let rows = QuantisedRows::quantise(all.len(), input, |index, target| fill(&all[index], target));
    let columns = Columns::of(y);
    (0..out.div_ceil(LANES)).into_par_iter().for_each(|panel| {
        for (bank, range) in &few_bits {
            bank.panel(panel, &rows, range.clone(), |index, first, products| {
                let target = columns.at(all[index].row * out + first);
                // SAFETY: row and outputs lie inside y, as was checked above, and no other task has these outputs.
                #[allow(unsafe_code)]
                let target = unsafe { std::slice::from_raw_parts_mut(target, products.len()) };
                add(&all[index], first, products, target);
            });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_have_names_and_take_what_fits() {
        for form in Quantisation::ALL {
            assert_eq!(
                form.to_string().parse::<Quantisation>().expect("a name"),
                form
            );
        }
        assert_eq!(
            "Q2_K".parse::<Quantisation>().expect("a name"),
            Quantisation::Q2K
        );
        assert!("q3k".parse::<Quantisation>().is_err());
        for form in [Quantisation::Q2K, Quantisation::Q4K] {
            assert_eq!(
                [512, 320, 20].map(|input| form.fitting(input)),
                [form, Quantisation::Q4_0, Quantisation::F32]
            );
        }
        assert_eq!(
            [320, 20].map(|input| Quantisation::Q8_0.fitting(input)),
            [Quantisation::Q8_0, Quantisation::F32]
        );
        assert_eq!(Quantisation::Bf16.fitting(7), Quantisation::Bf16);
    }
}
