//! A bank's matrix in the form it is served in: `q4_K` through our own product, `q4_0` and `q8_0` through candle's, or f32.

use super::packed::{Columns, Packed};
use super::q4k::{Q4K, Rows};
use crate::transform::Signs;
use candle_core::quantized::k_quants::{self, BlockQ4_0, BlockQ8_0, GgmlType};
use candle_core::{Result, bail};
use half::bf16;
use rayon::prelude::*;
use std::fmt;
use std::str::FromStr;

/// How a bank is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    F32,
    /// 8.5 bits: blocks of 32 along the input with one scale.
    Q8_0,
    /// 4.5 bits: blocks of 32 along the input with one scale.
    Q4_0,
    /// 4.5 bits: super-blocks of 256 along the input; matrices whose inner size is no multiple of 256 take
    /// `Q4_0`.
    Q4K,
}

impl Form {
    /// The form that a matrix with this inner size really takes; f32 where no block fits.
    pub fn fitting(self, input: usize) -> Form {
        match self {
            Form::Q4K if input.is_multiple_of(256) => Form::Q4K,
            Form::Q4K | Form::Q4_0 if input.is_multiple_of(32) => Form::Q4_0,
            Form::Q8_0 if input.is_multiple_of(32) => Form::Q8_0,
            _ => Form::F32,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::F32 => "f32",
            Form::Q8_0 => "q8_0",
            Form::Q4_0 => "q4_0",
            Form::Q4K => "q4k",
        })
    }
}

/// A form's name that is none of f32, q8_0, q4_0, q4k.
#[derive(Debug, thiserror::Error)]
#[error("unknown form `{0}`: one of f32, q8_0, q4_0, q4k")]
pub struct UnknownForm(String);

impl FromStr for Form {
    type Err = UnknownForm;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownForm> {
        match name.to_ascii_lowercase().as_str() {
            "f32" => Ok(Form::F32),
            "q8_0" => Ok(Form::Q8_0),
            "q4_0" => Ok(Form::Q4_0),
            "q4k" | "q4_k" => Ok(Form::Q4K),
            _ => Err(UnknownForm(name.to_owned())),
        }
    }
}

#[derive(Clone)]
enum Blocks {
    F32(Packed),
    Q8_0(Vec<BlockQ8_0>),
    Q4_0(Vec<BlockQ4_0>),
    Q4K(Q4K),
}

/// One row of a batch, seen through one variant's transform.
#[derive(Clone, Copy, Debug)]
pub struct Rotated<'a> {
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
pub struct Served {
    out: usize,
    input: usize,
    blocks: Blocks,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Served {} [{}, {}]", self.form(), self.out, self.input)
    }
}

/// The number itself: `to_f32` also looks for NaN, which gains are not, and is no vector instruction for it.
fn widened(gain: bf16) -> f32 {
    f32::from_bits(u32::from(gain.to_bits()) << 16)
}

fn quantise<T: GgmlType>(weights: &[f32], input: usize) -> Vec<T> {
    let per_row = input / T::BLCK_SIZE;
    let mut blocks = vec![T::zeros(); weights.len() / T::BLCK_SIZE];
    blocks
        .par_chunks_mut(per_row)
        .zip(weights.par_chunks(input))
        .for_each(|(blocks, row)| T::from_float(row, blocks));
    blocks
}

impl Served {
    /// Quantises `weights`, [out, in] by rows, to `form` or the nearest that fits the inner size.
    pub fn new(weights: &[f32], out: usize, input: usize, form: Form) -> Result<Self> {
        if weights.len() != out * input {
            bail!("{} weights are no matrix of {out} x {input}", weights.len())
        }
        let blocks = match form.fitting(input) {
            Form::F32 => Blocks::F32(Packed::new(weights, out, input)),
            Form::Q8_0 => Blocks::Q8_0(quantise(weights, input)),
            Form::Q4_0 => Blocks::Q4_0(quantise(weights, input)),
            Form::Q4K => Blocks::Q4K(Q4K::new(weights, out, input)),
        };
        Ok(Self { out, input, blocks })
    }

    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.input)
    }

    pub fn form(&self) -> Form {
        match self.blocks {
            Blocks::F32(_) => Form::F32,
            Blocks::Q8_0(_) => Form::Q8_0,
            Blocks::Q4_0(_) => Form::Q4_0,
            Blocks::Q4K(_) => Form::Q4K,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.blocks {
            Blocks::F32(packed) => packed.bytes(),
            Blocks::Q8_0(blocks) => size_of_val(&blocks[..]),
            Blocks::Q4_0(blocks) => size_of_val(&blocks[..]),
            Blocks::Q4K(matrix) => matrix.bytes(),
        }
    }

    /// y [rows, out] = x [rows, in] S^T. Row results do not depend on the number of rows or threads.
    pub fn product(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        if x.len() != rows * self.input || y.len() != rows * self.out {
            bail!(
                "{} and {} elements are not {rows} rows of {} and {}",
                x.len(),
                y.len(),
                self.input,
                self.out
            )
        }
        if rows == 0 {
            return Ok(());
        }
        let sizes = (rows, self.input, self.out);
        match &self.blocks {
            Blocks::F32(packed) => {
                packed.product(x, rows, y);
                Ok(())
            }
            Blocks::Q8_0(blocks) => k_quants::matmul(sizes, x, blocks, y),
            Blocks::Q4_0(blocks) => k_quants::matmul(sizes, x, blocks, y),
            Blocks::Q4K(matrix) => {
                let rows = Rows::quantise(rows, self.input, |row, target| {
                    target.copy_from_slice(&x[row * self.input..][..self.input]);
                });
                let columns = Columns::of(y);
                matrix.products(&rows, |row, first, products| {
                    let target = columns.at(row * self.out + first);
                    // SAFETY: row and outputs lie inside y, whose length was checked, and no other task has them.
                    #[allow(unsafe_code)]
                    unsafe {
                        std::ptr::copy_nonoverlapping(products.as_ptr(), target, products.len());
                    }
                });
                Ok(())
            }
        }
    }

    /// Row `row` of the matrix, dequantised into `out` [in].
    pub fn row(&self, row: usize, out: &mut [f32]) {
        fn one<T: GgmlType>(blocks: &[T], row: usize, input: usize, out: &mut [f32]) {
            let per_row = input / T::BLCK_SIZE;
            T::to_float(&blocks[row * per_row..][..per_row], out);
        }
        match &self.blocks {
            Blocks::F32(packed) => packed.row(row, out),
            Blocks::Q8_0(blocks) => one(blocks, row, self.input, out),
            Blocks::Q4_0(blocks) => one(blocks, row, self.input, out),
            Blocks::Q4K(matrix) => matrix.row(row, out),
        }
    }
}

/// y [rows, out] += weight · output ⊙ (S (input ⊙ x)) for every matrix S and every part of it, x [rows, in] and y being those of
/// the whole batch and the matrices of one shape. Signs are folded in where x is rounded, gains and signs where y is added.
/// Results of a row depend on its own parts only.
pub fn add_rotated(banks: &[(&Served, Vec<Rotated>)], x: &[f32], y: &mut [f32]) -> Result<()> {
    let Some((first, _)) = banks.first() else {
        return Ok(());
    };
    let (out, input) = first.shape();
    for (bank, parts) in banks {
        let outside = |part: &&Rotated| {
            (part.row + 1) * input > x.len() || (part.row + 1) * out > y.len() || part.output.len() != out
        };
        if bank.shape() != (out, input) {
            bail!("matrices of {out} x {input} and of {:?}", bank.shape())
        }
        if let Some(part) = parts.iter().find(outside) {
            bail!("row {} is not one of x and y for a matrix of {out} x {input}", part.row)
        }
    }
    let fill = |part: &Rotated, target: &mut [f32]| {
        target.copy_from_slice(&x[part.row * input..][..input]);
        part.input.apply(target);
    };
    let add = |part: &Rotated, first: usize, products: &[f32], target: &mut [f32]| {
        for ((y, gain), product) in target.iter_mut().zip(&part.output[first..]).zip(products) {
            *y = (part.weight * widened(*gain)).mul_add(*product, *y);
        }
    };
    // What there is in four bits goes through one pass over all rows and one over all outputs, however many banks it is of.
    let (mut few_bits, mut all) = (Vec::new(), Vec::new());
    for (bank, parts) in banks {
        match &bank.blocks {
            Blocks::Q4K(matrix) => {
                few_bits.push((matrix, all.len()..all.len() + parts.len()));
                all.extend_from_slice(parts);
            }
            _ => {
                let (mut rotated, mut products) = (vec![0f32; parts.len() * input], vec![0f32; parts.len() * out]);
                let targets = rotated.par_chunks_mut(input).zip(parts);
                targets.for_each(|(target, part)| fill(part, target));
                bank.product(&rotated, parts.len(), &mut products)?;
                for (part, products) in parts.iter().zip(products.chunks(out)) {
                    add(part, 0, products, &mut y[part.row * out..][..out]);
                }
            }
        }
    }
    let Some((matrix, _)) = few_bits.first() else {
        return Ok(());
    };
    let panels = matrix.panels();
    let rows = Rows::quantise(all.len(), input, |index, target| fill(&all[index], target));
    let columns = Columns::of(y);
    (0..panels).into_par_iter().for_each(|panel| {
        for (matrix, range) in &few_bits {
            matrix.panel(panel, &rows, range.clone(), |index, first, products| {
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
