//! Layer normalisation with modulation: y = (x - mean) / sqrt(var + eps) * gain + shift.
//!
//! The DiT's `modulate(layer_norm(x) * weight)` is this with gain = weight * (1 + scale).

use super::math;
use super::slice::{self, PerRow, on_cpu};
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

/// The epsilon of every layer norm in the published networks.
pub const EPSILON: f32 = 1e-5;
/// Rows to a task: enough work to pay for a task, few enough to share between threads.
const ROWS: usize = 16;

fn statistics(x: &[f32]) -> (f32, f32) {
    let mean = math::sum(x) / x.len() as f32;
    let mut lanes = [0f32; 8];
    let chunks = x.chunks_exact(8);
    let rest: f32 = chunks.remainder().iter().map(|v| (v - mean) * (v - mean)).sum();
    for chunk in chunks {
        for lane in 0..8 {
            let centred = chunk[lane] - mean;
            lanes[lane] = centred.mul_add(centred, lanes[lane]);
        }
    }
    let variance = (lanes.iter().sum::<f32>() + rest) / x.len() as f32;
    (mean, 1.0 / (variance + EPSILON).sqrt())
}

/// x [rows, width]; gain and shift: tables [lines, width] with the same index. Returns [rows, width].
pub fn norm_modulate(x: &Tensor, gain: PerRow, shift: PerRow) -> Result<Tensor> {
    if !on_cpu(x) {
        return norm_modulate_slow(x, gain, shift);
    }
    let (rows, width) = x.dims2()?;
    let (input, gains, shifts) = (slice::f32(x)?, slice::f32(gain.table)?, slice::f32(shift.table)?);
    let (input, gains, shifts): (&[f32], &[f32], &[f32]) = (&input, &gains, &shifts);
    let mut out = vec![0f32; rows * width];
    out.par_chunks_mut(width * ROWS).enumerate().for_each(|(task, out)| {
        for (i, out) in out.chunks_mut(width).enumerate() {
            let row = task * ROWS + i;
            let x = &input[row * width..][..width];
            let (mean, inverse) = statistics(x);
            let gain = &gains[gain.line(row) * width..][..width];
            let shift = &shifts[shift.line(row) * width..][..width];
            for j in 0..width {
                out[j] = ((x[j] - mean) * inverse).mul_add(gain[j], shift[j]);
            }
        }
    });
    slice::tensor(out, rows, width)
}

/// The slow twin.
pub fn norm_modulate_slow(x: &Tensor, gain: PerRow, shift: PerRow) -> Result<Tensor> {
    normalised_slow(x)?
        .0
        .broadcast_mul(&gain.spread()?)?
        .broadcast_add(&shift.spread()?)
}

fn normalised_slow(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let inverse = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPSILON))?
        .sqrt()?
        .recip()?;
    Ok((centred.broadcast_mul(&inverse)?, inverse))
}

/// Gradients of (x, gain table, shift table), given that of the result.
pub fn norm_modulate_backward(x: &Tensor, gain: PerRow, gradient: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    if !on_cpu(x) {
        let (normal, inverse) = normalised_slow(x)?;
        let inner = gradient.broadcast_mul(&gain.spread()?)?;
        let along = (&inner * &normal)?.mean_keepdim(D::Minus1)?;
        let centred = inner.broadcast_sub(&inner.mean_keepdim(D::Minus1)?)?;
        let dx = (centred - normal.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?;
        return Ok((dx, gain.gather(&(gradient * normal)?)?, gain.gather(gradient)?));
    }
    let (rows, width) = x.dims2()?;
    let lines = gain.table.dim(0)?;
    let (input, gains, upstream) = (slice::f32(x)?, slice::f32(gain.table)?, slice::f32(gradient)?);
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
                let (x, g) = (&input[row * width..][..width], &upstream[row * width..][..width]);
                let (mean, inverse) = statistics(x);
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
