//! Normalisation with modulation: y = (x - mean) / sqrt(var + eps) * gain + shift, or without the mean and the shift.
//!
//! The DiT's `modulate(layer_norm(x) * weight)` is this with gain = weight * (1 + scale).

use super::math;
use super::slice::{self, PerRow};
use crate::error::Result;
use candle_core::{D, Tensor};
use rayon::prelude::*;

/// The epsilon of every layer norm in the published networks.
pub const EPSILON: f32 = 1e-5;
/// Rows to a task: enough work to pay for a task, few enough to share between threads.
const ROWS: usize = 16;

/// What a row is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// The standard deviation, once the mean is subtracted.
    Layer { eps: f32 },
    /// The root of the mean square.
    Rms { eps: f32 },
}

impl Norm {
    /// The norm of every published DiT.
    pub const DIT: Norm = Norm::Layer { eps: EPSILON };

    /// What is subtracted, and what the rest is multiplied by.
    fn of(self, x: &[f32]) -> (f32, f32) {
        match self {
            Norm::Layer { eps } => statistics(x, math::sum(x) / x.len() as f32, eps),
            Norm::Rms { eps } => statistics(x, 0.0, eps),
        }
    }

    /// Normalises `x` where it lies.
    pub fn in_place(self, x: &mut [f32], gain: &[f32]) {
        let (mean, inverse) = self.of(x);
        for (x, gain) in x.iter_mut().zip(gain) {
            *x = (*x - mean) * inverse * gain;
        }
    }
}

/// What a normalised row is multiplied by, and what is added, [width] each.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    pub gain: &'a [f32],
    pub shift: Option<&'a [f32]>,
}

/// The mean, and one by the root of the mean square around it.
fn statistics(x: &[f32], mean: f32, eps: f32) -> (f32, f32) {
    let mut lanes = [0f32; 8];
    let chunks = x.chunks_exact(8);
    let rest: f32 = chunks
        .remainder()
        .iter()
        .map(|v| (v - mean) * (v - mean))
        .sum();
    for chunk in chunks {
        for lane in 0..8 {
            let centred = chunk[lane] - mean;
            lanes[lane] = centred.mul_add(centred, lanes[lane]);
        }
    }
    let variance = (lanes.iter().sum::<f32>() + rest) / x.len() as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// One row of [`norm_into`].
fn modulated(norm: Norm, x: &[f32], affine: Affine, out: &mut [f32]) {
    let (mean, inverse) = norm.of(x);
    let numbers = out.iter_mut().zip(x).zip(affine.gain);
    match affine.shift {
        Some(shift) => numbers.zip(shift).for_each(|(((out, x), gain), shift)| {
            *out = ((x - mean) * inverse).mul_add(*gain, *shift);
        }),
        None => numbers.for_each(|((out, x), gain)| *out = (x - mean) * inverse * gain),
    }
}

/// x [rows, width]; gain and shift: tables [lines, width] with the same index. Returns [rows, width].
pub fn norm_modulate(x: &Tensor, gain: PerRow, shift: PerRow) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (input, gains, shifts) = (
        slice::f32(x)?,
        slice::f32(gain.table)?,
        slice::f32(shift.table)?,
    );
    let (gains, shifts): (&[f32], &[f32]) = (&gains, &shifts);
    let mut out = vec![0f32; rows * width];
    norm_into(Norm::DIT, &input, &mut out, width, |row| Affine {
        gain: &gains[gain.line(row) * width..][..width],
        shift: Some(&shifts[shift.line(row) * width..][..width]),
    });
    slice::tensor(out, rows, width)
}

/// The norm of x into `out`, both [rows, width], `line` giving each row's gain and shift.
pub fn norm_into<'a>(
    norm: Norm,
    x: &[f32],
    out: &mut [f32],
    width: usize,
    line: impl Fn(usize) -> Affine<'a> + Sync,
) {
    let tasks = out
        .par_chunks_mut(width * ROWS)
        .zip(x.par_chunks(width * ROWS));
    tasks.enumerate().for_each(|(task, (out, x))| {
        for (i, (out, x)) in out.chunks_mut(width).zip(x.chunks(width)).enumerate() {
            modulated(norm, x, line(task * ROWS + i), out);
        }
    });
}

/// What one row of [`residual_norm`] takes, [width] each.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    pub gate: Option<&'a [f32]>,
    pub bias: Option<&'a [f32]>,
    pub affine: Affine<'a>,
}

/// A residual connection and the norm behind it, in one pass: x += gate * (y + bias), `out` is its norm; all
/// [rows, width].
pub fn residual_norm<'a>(
    norm: Norm,
    x: &mut [f32],
    y: &[f32],
    out: &mut [f32],
    width: usize,
    line: impl Fn(usize) -> Residual<'a> + Sync,
) {
    let tasks = x
        .par_chunks_mut(width * ROWS)
        .zip(y.par_chunks(width * ROWS));
    let tasks = tasks.zip(out.par_chunks_mut(width * ROWS)).enumerate();
    tasks.for_each(|(task, ((x, y), out))| {
        let rows = x
            .chunks_mut(width)
            .zip(y.chunks(width))
            .zip(out.chunks_mut(width));
        for (i, ((x, y), out)) in rows.enumerate() {
            let residual = line(task * ROWS + i);
            match (residual.gate, residual.bias) {
                (Some(gate), bias) => super::pointwise::gated(x, y, gate, bias),
                (None, None) => x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
                (None, Some(bias)) => {
                    let numbers = x.iter_mut().zip(y).zip(bias);
                    numbers.for_each(|((x, y), bias)| *x += y + bias);
                }
            }
            modulated(norm, x, residual.affine, out);
        }
    });
}

/// The slow twin.
pub fn norm_modulate_slow(x: &Tensor, gain: PerRow, shift: PerRow) -> Result<Tensor> {
    Ok(normalised_slow(x)?
        .0
        .broadcast_mul(&gain.spread()?)?
        .broadcast_add(&shift.spread()?)?)
}

fn normalised_slow(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let inverse = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPSILON))?
        .sqrt()?
        .recip()?;
    Ok((centred.broadcast_mul(&inverse)?, inverse))
}

/// Gradients of (x, gain table, shift table), given that of the result.
pub fn norm_modulate_backward(
    x: &Tensor,
    gain: PerRow,
    gradient: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (rows, width) = x.dims2()?;
    let lines = gain.table.dim(0)?;
    let (input, gains, upstream) = (
        slice::f32(x)?,
        slice::f32(gain.table)?,
        slice::f32(gradient)?,
    );
    let (input, gains, upstream): (&[f32], &[f32], &[f32]) = (&input, &gains, &upstream);
    let mut dx = vec![0f32; rows * width];
    // One partial table per task; the tasks are few and large.
    let per_task = rows.div_ceil(rayon::current_num_threads()).max(1);
    let partial: Vec<Vec<f32>> = dx
        .par_chunks_mut(width * per_task)
        .enumerate()
        .map(|(task, dx)| {
            let mut sums = vec![0f32; 2 * lines * width];
            let mut normal = vec![0f32; width];
            let (dgain, dshift) = sums.split_at_mut(lines * width);
            for (i, dx) in dx.chunks_mut(width).enumerate() {
                let row = task * per_task + i;
                let (x, g) = (
                    &input[row * width..][..width],
                    &upstream[row * width..][..width],
                );
                let (mean, inverse) = Norm::DIT.of(x);
                let line = gain.line(row) * width;
                let gain = &gains[line..][..width];
                let (dgain, dshift) = (&mut dgain[line..][..width], &mut dshift[line..][..width]);
                for j in 0..width {
                    normal[j] = (x[j] - mean) * inverse;
                    dgain[j] = g[j].mul_add(normal[j], dgain[j]);
                    dshift[j] += g[j];
                    dx[j] = g[j] * gain[j];
                }
                let average = math::sum(dx) / width as f32;
                let along = math::dot(dx, &normal) / width as f32;
                for j in 0..width {
                    dx[j] = (dx[j] - average - normal[j] * along) * inverse;
                }
            }
            sums
        })
        .collect();
    let sums = super::pointwise::add_all(partial, 2 * lines * width);
    let dgain = slice::tensor(sums[..lines * width].to_vec(), lines, width)?;
    let dshift = slice::tensor(sums[lines * width..].to_vec(), lines, width)?;
    Ok((slice::tensor(dx, rows, width)?, dgain, dshift))
}
