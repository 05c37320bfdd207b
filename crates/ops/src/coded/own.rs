//! What a variant keeps of one matrix for itself, in the form it is served in, and products of the rows of many variants at once.
//!
//! ```text
//! y += weight · c · (g ⊙ (q (R x)) + B (A (R x)))           a code and factors of four bits: R x in bytes, sums in integers
//! y += weight · c · (b (a x))   or   weight · c · d x       an adapter's factors, and what is kept whole: x as it is
//! ```
//!
//! Results of a row depend on nothing but itself and its own parts, and are the same with every instruction set.

use crate::error::{Error, Result};
use half::bf16;
use rayon::prelude::*;

use super::kept::{Kept, LowRank};
use super::kernel::{DecodeKernel, TILE};
use super::panels::{CodePanels, LANES};
use super::rows::{CodedSource, RotatedRows, place};
use super::thin::ThinFactors;
use crate::packed::Columns;
use crate::quantized::{Quantisation, QuantizedMatrix, widened};
use crate::transform::Rotation;

/// A matrix [out, in] of one variant.
#[derive(Clone, Debug)]
pub struct OwnMatrix {
    out: usize,
    input: usize,
    /// c.
    scale: f32,
    rotation: Rotation,
    /// The code and its gains.
    code: Option<(CodePanels, Vec<bf16>)>,
    thin: Option<ThinFactors>,
    /// Matrices to be multiplied one after the other.
    plain: Vec<QuantizedMatrix>,
}

/// A row of a batch that has a part of a variant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowShare {
    /// Row of x and of y.
    pub row: usize,
    pub weight: f32,
}

/// bf16 where it holds every number, else f32.
fn exact(numbers: &[f32], out: usize, input: usize) -> Result<QuantizedMatrix> {
    let fits = |number: &f32| bf16::from_f32(*number).to_f32() == *number;
    let form = if numbers.iter().all(fits) {
        Quantisation::Bf16
    } else {
        Quantisation::F32
    };
    QuantizedMatrix::new(numbers, out, input, form)
}

impl OwnMatrix {
    /// `kept` of a matrix [out, in] under `rotation`, times `scale`.
    ///
    /// # Errors
    /// Those of [`Kept::check`].
    pub fn new(kept: &Kept, shape: [usize; 2], rotation: Rotation, scale: f32) -> Result<Self> {
        kept.check(shape)?;
        let [out, input] = shape;
        let mut made = OwnMatrix {
            out,
            input,
            scale,
            rotation,
            code: None,
            thin: None,
            plain: Vec::new(),
        };
        let mut per_step = 1;
        let low_rank = match kept {
            Kept::Coded {
                code,
                gains,
                low_rank,
            } => {
                per_step = code.rate().step_weights();
                made.code = Some((CodePanels::new(code), gains.clone()));
                low_rank.as_ref()
            }
            Kept::LowRank(part) => Some(part),
            Kept::Whole(numbers) => {
                let numbers: Vec<f32> = numbers.iter().map(|number| number.to_f32()).collect();
                made.plain.push(exact(&numbers, out, input)?);
                None
            }
        };
        match low_rank {
            Some(LowRank::Nibbles(nibbles)) => {
                made.thin = Some(ThinFactors::new(nibbles, shape, per_step));
            }
            Some(LowRank::Exact { rank, a, b }) => {
                made.plain.push(exact(a, *rank, input)?);
                made.plain.push(exact(b, out, *rank)?);
            }
            None => {}
        }
        Ok(made)
    }

    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.input)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let code = self.code.iter();
        let code = code.map(|(panels, gains)| panels.bytes() + size_of_val(&gains[..]));
        let plain = self.plain.iter().map(QuantizedMatrix::bytes);
        let thin = self.thin.as_ref().map_or(0, ThinFactors::bytes);
        let signs = size_of_val(self.rotation.signs.words());
        code.chain(plain).sum::<usize>() + thin + signs
    }

    /// Weights to a step of the order in which rows of x are read.
    fn per_step(&self) -> usize {
        self.code
            .as_ref()
            .map_or(1, |(panels, _)| panels.rate().step_weights())
    }

    /// Whether rows of x are rotated.
    fn rotates(&self) -> bool {
        self.code.is_some() || self.thin.is_some()
    }

    /// Adds `weight` times row `index` of the delta to `target` [in].
    pub fn add_row(&self, index: usize, weight: f32, target: &mut [f32]) {
        let weight = weight * self.scale;
        let mut row = vec![0f32; self.input];
        if self.rotates() {
            if let Some((panels, gains)) = &self.code {
                let mut weights = vec![0; self.input];
                panels.row(index, &mut weights);
                let gain = widened(gains[index]);
                for (value, weight) in row.iter_mut().zip(weights) {
                    *value = gain * f32::from(weight);
                }
            }
            if let Some(thin) = &self.thin {
                let dealt = thin.row(index);
                for (input, value) in row.iter_mut().enumerate() {
                    *value += dealt[place(input, self.per_step())];
                }
            }
            self.rotation.apply_inverse(&mut row);
            for (target, value) in target.iter_mut().zip(&row) {
                *target = weight.mul_add(*value, *target);
            }
        }
        match &self.plain[..] {
            [whole] => {
                whole.row(index, &mut row);
                for (target, value) in target.iter_mut().zip(&row) {
                    *target = weight.mul_add(*value, *target);
                }
            }
            [a, b] => {
                let mut factors = vec![0f32; a.shape().0];
                b.row(index, &mut factors);
                for (rank, factor) in factors.into_iter().enumerate() {
                    a.row(rank, &mut row);
                    for (target, value) in target.iter_mut().zip(&row) {
                        *target = (weight * factor).mul_add(*value, *target);
                    }
                }
            }
            _ => {}
        }
    }

    /// y += weight · c · plain x for the rows of `shares`.
    fn add_plain(&self, shares: &[RowShare], x: &[f32], y: &mut [f32]) -> Result<()> {
        if self.plain.is_empty() || shares.is_empty() {
            return Ok(());
        }
        let rows = shares
            .iter()
            .map(|share| &x[share.row * self.input..][..self.input]);
        let mut between: Vec<f32> = rows.flatten().copied().collect();
        for matrix in &self.plain {
            let mut products = vec![0f32; shares.len() * matrix.shape().0];
            matrix.product(&between, shares.len(), &mut products)?;
            between = products;
        }
        for (share, products) in shares.iter().zip(between.chunks_exact(self.out)) {
            let weight = share.weight * self.scale;
            for (y, product) in y[share.row * self.out..][..self.out]
                .iter_mut()
                .zip(products)
            {
                *y = weight.mul_add(*product, *y);
            }
        }
        Ok(())
    }

    /// Adds to sixteen outputs of y, from panel `index` on, what some rows have of code and factors.
    fn add_panel(
        &self,
        kernel: DecodeKernel,
        index: usize,
        (shares, start): (&[RowShare], usize),
        rows: &RotatedRows,
        y: Columns,
    ) {
        let first = index * LANES;
        let width = LANES.min(self.out - first);
        let panel = self
            .code
            .as_ref()
            .map(|(panels, gains)| (panels.panel(index), &gains[first..first + width]));
        let mut gains = [0f32; LANES];
        for (wide, gain) in gains
            .iter_mut()
            .zip(panel.iter().flat_map(|(_, gains)| *gains))
        {
            *wide = widened(*gain);
        }
        for (tile, shares) in shares.chunks(TILE).enumerate() {
            let start = start + tile * TILE;
            let (mut sums, mut low) = ([[0; LANES]; TILE], [[0; LANES]; TILE]);
            if let Some((panel, _)) = panel {
                kernel.run(panel, rows, start, &mut sums[..shares.len()]);
            }
            if let Some(thin) = &self.thin {
                let mut t = [&[][..]; TILE];
                for (row, t) in (start..).zip(&mut t[..shares.len()]) {
                    *t = rows.between(row, thin).0;
                }
                thin.second(kernel, index, &t[..shares.len()], &mut low[..shares.len()]);
            }
            for (at, share) in shares.iter().enumerate() {
                // SAFETY: row and outputs lie inside y, as the caller checked, and no other task has these outputs.
                #[allow(unsafe_code)]
                let y = unsafe {
                    std::slice::from_raw_parts_mut(y.at(share.row * self.out + first), width)
                };
                let weight = share.weight * self.scale;
                let factor = weight * rows.facts(start + at).scale;
                for ((y, gain), sum) in y.iter_mut().zip(&gains).zip(&sums[at]) {
                    *y = (factor * gain).mul_add(*sum as f32, *y);
                }
                if let Some(thin) = &self.thin {
                    let (_, t) = rows.between(start + at, thin);
                    for (y, low) in y.iter_mut().zip(&low[at]) {
                        *y = weight.mul_add(t.value(*low), *y);
                    }
                }
            }
        }
    }
}

/// y [rows, out] += what every matrix gives for its rows of x [rows, in]; the matrices are of one shape.
pub fn add_own(matrices: &[(&OwnMatrix, Vec<RowShare>)], x: &[f32], y: &mut [f32]) -> Result<()> {
    add_own_with(DecodeKernel::best(), matrices, x, y)
}

fn add_own_with(
    kernel: DecodeKernel,
    matrices: &[(&OwnMatrix, Vec<RowShare>)],
    x: &[f32],
    y: &mut [f32],
) -> Result<()> {
    let Some((first, _)) = matrices.first() else {
        return Ok(());
    };
    let (out, input) = first.shape();
    let (mut all, mut rotated) = (Vec::new(), Vec::new());
    for (own, shares) in matrices {
        let outside = |share: &&RowShare| {
            (share.row + 1) * input > x.len() || (share.row + 1) * out > y.len()
        };
        if own.shape() != (out, input) {
            return Err(Error::Matrices {
                expected: (out, input),
                found: own.shape(),
            });
        }
        if let Some(share) = shares.iter().find(outside) {
            let row = share.row;
            return Err(Error::Row { row, out, input });
        }
        if own.rotates() {
            rotated.push((*own, all.len()..all.len() + shares.len()));
            all.extend(shares.iter().map(|share| (*own, *share)));
        }
    }
    if !all.is_empty() {
        let source = |index: usize| {
            let (own, share): (&OwnMatrix, RowShare) = all[index];
            CodedSource {
                x: &x[share.row * input..][..input],
                rotation: &own.rotation,
                per_step: own.per_step(),
                thin: own.thin.as_ref(),
            }
        };
        let rows = RotatedRows::new(kernel, (all.len(), input), source);
        let shares: Vec<RowShare> = all.iter().map(|(_, share)| *share).collect();
        let columns = Columns::of(y);
        (0..out.div_ceil(LANES)).into_par_iter().for_each(|panel| {
            for (own, range) in &rotated {
                let shares = (&shares[range.clone()], range.start);
                own.add_panel(kernel, panel, shares, &rows, columns);
            }
        });
    }
    for (own, shares) in matrices {
        own.add_plain(shares, x, y)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
