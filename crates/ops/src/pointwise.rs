//! Bias, GELU and gated residual, each one pass over the activation.

use super::isa::{Isa, Vectorised};
use super::math;
use super::slice::{self, PerRow};
use crate::error::Result;
use candle_core::Tensor;
use rayon::prelude::*;

const ROWS: usize = 16;

/// Adds up equally long partial sums.
pub(super) fn add_all(partial: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut parts = partial.into_iter();
    let mut total = parts.next().unwrap_or_else(|| vec![0.0; len]);
    for part in parts {
        for (a, b) in total.iter_mut().zip(part) {
            *a += b;
        }
    }
    total
}

/// Runs `row(index, out row)` over a fresh [rows, width] array, rows shared between threads.
fn map_rows(rows: usize, width: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> Result<Tensor> {
    let mut out = vec![0f32; rows * width];
    out.par_chunks_mut(width * ROWS)
        .enumerate()
        .for_each(|(task, out)| {
            for (i, out) in out.chunks_mut(width).enumerate() {
                row(task * ROWS + i, out);
            }
        });
    slice::tensor(out, rows, width)
}

/// Like [`map_rows`], with sums of `sums` floats collected per thread beside it.
fn map_rows_summing(
    rows: usize,
    width: usize,
    sums: usize,
    row: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Result<(Tensor, Vec<f32>)> {
    let mut out = vec![0f32; rows * width];
    let per_task = rows.div_ceil(rayon::current_num_threads()).max(1);
    let partial = out
        .par_chunks_mut(width * per_task)
        .enumerate()
        .map(|(task, out)| {
            let mut total = vec![0f32; sums];
            for (i, out) in out.chunks_mut(width).enumerate() {
                row(task * per_task + i, out, &mut total);
            }
            total
        })
        .collect();
    Ok((slice::tensor(out, rows, width)?, add_all(partial, sums)))
}

/// y + bias. y [rows, width].
pub fn add_bias(y: &Tensor, bias: PerRow) -> Result<Tensor> {
    let (rows, width) = y.dims2()?;
    let (input, biases) = (slice::f32(y)?, slice::f32(bias.table)?);
    let (input, biases): (&[f32], &[f32]) = (&input, &biases);
    map_rows(rows, width, |row, out| {
        let (y, b) = (
            &input[row * width..][..width],
            &biases[bias.line(row) * width..][..width],
        );
        for j in 0..width {
            out[j] = y[j] + b[j];
        }
    })
}

/// Elements to a task of [`biased`]: some microseconds of work, so that wide rows are shared even where they are few.
const ELEMENTS: usize = 8192;

/// y = f(y + bias), where y [rows, width] lies; `line` gives each row's bias.
fn biased<'a>(
    y: &mut [f32],
    width: usize,
    line: impl Fn(usize) -> &'a [f32] + Sync,
    f: impl Fn(f32) -> f32 + Sync,
) {
    let (rows, isa) = ((ELEMENTS / width.max(1)).max(1), Isa::best());
    y.par_chunks_mut(width * rows)
        .enumerate()
        .for_each(|(task, y)| {
            for (i, y) in y.chunks_mut(width).enumerate() {
                let bias = line(task * rows + i);
                isa.run(Biased { y, bias, f: &f });
            }
        });
}

/// y = f(y + bias) of one row.
struct Biased<'a, F> {
    y: &'a mut [f32],
    bias: &'a [f32],
    f: &'a F,
}

impl<F: Fn(f32) -> f32> Vectorised for Biased<'_, F> {
    #[inline(always)]
    fn run(self) {
        for (y, b) in self.y.iter_mut().zip(self.bias) {
            *y = (self.f)(*y + b);
        }
    }
}

/// y [rows, width] += bias: for logits, which may take more memory than all else and are not to be copied.
pub fn add_bias_in_place<'a>(
    y: &mut [f32],
    width: usize,
    line: impl Fn(usize) -> &'a [f32] + Sync,
) {
    biased(y, width, line, |y| y);
}

/// y [rows, width] = gelu(y + bias); as [`bias_gelu`].
pub fn bias_gelu_in_place<'a>(
    y: &mut [f32],
    width: usize,
    line: impl Fn(usize) -> &'a [f32] + Sync,
) {
    biased(y, width, line, math::gelu);
}

/// out [rows, width] = silu(gate) * up of wide [rows, 2 * width]: a row's gate, and up behind it.
pub fn swiglu(wide: &[f32], width: usize, out: &mut [f32]) {
    let (rows, isa) = ((ELEMENTS / width.max(1)).max(1), Isa::best());
    let tasks = out
        .par_chunks_mut(width * rows)
        .zip(wide.par_chunks(2 * width * rows));
    tasks.for_each(|(out, wide)| {
        for (out, wide) in out.chunks_mut(width).zip(wide.chunks(2 * width)) {
            let (gate, up) = wide.split_at(width);
            isa.run(Gated { gate, up, out });
        }
    });
}

/// One row of [`swiglu`].
struct Gated<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Vectorised for Gated<'_> {
    #[inline(always)]
    fn run(self) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate / (1.0 + math::exp(-gate)) * up;
        }
    }
}

/// Sums of the columns of a gradient [rows, width]: the gradient [1, width] of a bias all rows share.
pub fn column_sums(gradient: &Tensor) -> Result<Tensor> {
    let (rows, width) = gradient.dims2()?;
    let upstream = slice::f32(gradient)?;
    let upstream: &[f32] = &upstream;
    let per_task = rows.div_ceil(rayon::current_num_threads()).max(1);
    let partial = upstream
        .par_chunks(width * per_task)
        .map(|part| {
            let mut total = vec![0f32; width];
            for row in part.chunks(width) {
                for j in 0..width {
                    total[j] += row[j];
                }
            }
            total
        })
        .collect();
    slice::tensor(add_all(partial, width), 1, width)
}

/// gelu(y + bias), tanh form. y [rows, width].
pub fn bias_gelu(y: &Tensor, bias: PerRow) -> Result<Tensor> {
    let (rows, width) = y.dims2()?;
    let (input, biases) = (slice::f32(y)?, slice::f32(bias.table)?);
    let (input, biases): (&[f32], &[f32]) = (&input, &biases);
    map_rows(rows, width, |row, out| {
        let (y, b) = (
            &input[row * width..][..width],
            &biases[bias.line(row) * width..][..width],
        );
        for j in 0..width {
            out[j] = math::gelu(y[j] + b[j]);
        }
    })
}

/// Gradients of (y, bias table) of [`bias_gelu`].
pub fn bias_gelu_backward(y: &Tensor, bias: PerRow, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, width) = y.dims2()?;
    let lines = bias.table.dim(0)?;
    let (input, biases, upstream) = (
        slice::f32(y)?,
        slice::f32(bias.table)?,
        slice::f32(gradient)?,
    );
    let (input, biases, upstream): (&[f32], &[f32], &[f32]) = (&input, &biases, &upstream);
    let (dy, dbias) = map_rows_summing(rows, width, lines * width, |row, out, sums| {
        let line = bias.line(row) * width;
        let (y, b, sums) = (
            &input[row * width..][..width],
            &biases[line..][..width],
            &mut sums[line..][..width],
        );
        let g = &upstream[row * width..][..width];
        for j in 0..width {
            out[j] = g[j] * math::gelu_derivative(y[j] + b[j]);
            sums[j] += out[j];
        }
    })?;
    Ok((dy, slice::tensor(dbias, lines, width)?))
}

/// x + gate * (y + bias). x, y [rows, width]; the bias may be absent.
pub fn gate_residual(x: &Tensor, y: &Tensor, gate: PerRow, bias: Option<PerRow>) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let biases = bias.map(|bias| slice::f32(bias.table)).transpose()?;
    let (x, y, gates) = (slice::f32(x)?, slice::f32(y)?, slice::f32(gate.table)?);
    let (x, y, gates): (&[f32], &[f32], &[f32]) = (&x, &y, &gates);
    let biases: Option<&[f32]> = biases.as_deref();
    map_rows(rows, width, |row, out| {
        out.copy_from_slice(&x[row * width..][..width]);
        let bias = bias.zip(biases);
        let bias = bias.map(|(bias, table)| &table[bias.line(row) * width..][..width]);
        gated(
            out,
            &y[row * width..][..width],
            &gates[gate.line(row) * width..][..width],
            bias,
        );
    })
}

/// One row of [`gate_residual`], where x lies.
pub(super) fn gated(x: &mut [f32], y: &[f32], gate: &[f32], bias: Option<&[f32]>) {
    let steps = x.iter_mut().zip(y).zip(gate);
    match bias {
        None => steps.for_each(|((x, y), gate)| *x = y.mul_add(*gate, *x)),
        Some(bias) => steps
            .zip(bias)
            .for_each(|(((x, y), gate), bias)| *x = (y + bias).mul_add(*gate, *x)),
    }
}

/// Gradients of (y, gate table, bias table) of [`gate_residual`]; that of x is `gradient` itself. The
/// bias, where there is one, is shared by all rows (one line).
pub fn gate_residual_backward(
    y: &Tensor,
    gate: PerRow,
    bias: Option<&Tensor>,
    gradient: &Tensor,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let (rows, width) = y.dims2()?;
    let lines = gate.table.dim(0)?;
    let zeros = vec![0f32; width];
    let bias_values = bias.map(slice::f32).transpose()?;
    let (y, gates, upstream) = (
        slice::f32(y)?,
        slice::f32(gate.table)?,
        slice::f32(gradient)?,
    );
    let (y, gates, upstream): (&[f32], &[f32], &[f32]) = (&y, &gates, &upstream);
    let shared: &[f32] = bias_values.as_deref().unwrap_or(&zeros);
    let (dy, sums) = map_rows_summing(rows, width, (lines + 1) * width, |row, out, sums| {
        let (dgates, dbias) = sums.split_at_mut(lines * width);
        let line = gate.line(row) * width;
        let (gate, dgate) = (&gates[line..][..width], &mut dgates[line..][..width]);
        let (y, g) = (
            &y[row * width..][..width],
            &upstream[row * width..][..width],
        );
        for j in 0..width {
            out[j] = g[j] * gate[j];
            dgate[j] = g[j].mul_add(y[j] + shared[j], dgate[j]);
            dbias[j] += out[j];
        }
    })?;
    let dbias = bias
        .map(|_| slice::tensor(sums[lines * width..].to_vec(), 1, width))
        .transpose()?;
    Ok((
        dy,
        slice::tensor(sums[..lines * width].to_vec(), lines, width)?,
        dbias,
    ))
}
