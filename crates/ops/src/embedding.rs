//! Rows of a table by token, mixtures of rows, and the gradient of the table.

use super::slice;
use crate::error::{Error, Result};
use candle_core::Tensor;

/// table [vocab, width], ids -> [ids, width].
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (vocab, width) = table.dims2()?;
    if let Some(&token) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::Token { token, vocab });
    }
    let rows = slice::f32(table)?;
    let mut out = Vec::with_capacity(ids.len() * width);
    for &id in ids {
        out.extend_from_slice(&rows[id as usize * width..][..width]);
    }
    slice::tensor(out, ids.len(), width)
}

/// The gradient of the table [vocab, width] from that of the rows.
pub fn embedding_backward(table: &Tensor, ids: &[u32], gradient: &Tensor) -> Result<Tensor> {
    let (vocab, width) = table.dims2()?;
    let upstream = slice::f32(gradient)?;
    let mut out = vec![0f32; vocab * width];
    for (&id, row) in ids.iter().zip(upstream.chunks(width)) {
        for (sum, g) in out[id as usize * width..][..width].iter_mut().zip(row) {
            *sum += g;
        }
    }
    slice::tensor(out, vocab, width)
}

fn check(table: &Tensor, choices: usize, tokens: &[u32], weights: &[f32]) -> Result<()> {
    let vocab = table.dim(0)?;
    if choices == 0 || !tokens.len().is_multiple_of(choices) || tokens.len() != weights.len() {
        return Err(Error::Mixtures {
            tokens: tokens.len(),
            weights: weights.len(),
            choices,
        });
    }
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(&token) => Err(Error::Token { token, vocab }),
        None => Ok(()),
    }
}

/// table [vocab, width], tokens and weights [rows * choices] -> [rows, width]: sums of weighted rows of the table.
pub fn embedding_mix(
    table: &Tensor,
    choices: usize,
    tokens: &[u32],
    weights: &[f32],
) -> Result<Tensor> {
    check(table, choices, tokens, weights)?;
    let (lines, width) = (slice::f32(table)?, table.dim(1)?);
    let mut out = vec![0f32; tokens.len() / choices * width];
    let mixtures = tokens.chunks(choices).zip(weights.chunks(choices));
    for (out, (tokens, weights)) in out.chunks_mut(width).zip(mixtures) {
        for (&token, &weight) in tokens
            .iter()
            .zip(weights)
            .filter(|(_, weight)| **weight != 0.0)
        {
            let line = &lines[token as usize * width..][..width];
            out.iter_mut()
                .zip(line)
                .for_each(|(sum, x)| *sum += weight * x);
        }
    }
    slice::tensor(out, tokens.len() / choices, width)
}

/// The slow twin.
pub fn embedding_mix_slow(
    table: &Tensor,
    choices: usize,
    tokens: &[u32],
    weights: &[f32],
) -> Result<Tensor> {
    let width = table.dim(1)?;
    let lines = table.index_select(&Tensor::new(tokens, table.device())?, 0)?;
    let weighted = lines.broadcast_mul(&Tensor::new(weights, table.device())?.unsqueeze(1)?)?;
    Ok(weighted
        .reshape((tokens.len() / choices, choices, width))?
        .sum(1)?)
}

/// The gradient of the table [vocab, width] from that of the mixtures [rows, width].
pub fn embedding_mix_backward(
    table: &Tensor,
    choices: usize,
    tokens: &[u32],
    weights: &[f32],
    gradient: &Tensor,
) -> Result<Tensor> {
    check(table, choices, tokens, weights)?;
    let (vocab, width) = table.dims2()?;
    let upstream = slice::f32(gradient)?;
    let mut out = vec![0f32; vocab * width];
    let mixtures = tokens.chunks(choices).zip(weights.chunks(choices));
    for (row, (tokens, weights)) in upstream.chunks(width).zip(mixtures) {
        for (&token, &weight) in tokens
            .iter()
            .zip(weights)
            .filter(|(_, weight)| **weight != 0.0)
        {
            let line = &mut out[token as usize * width..][..width];
            line.iter_mut()
                .zip(row)
                .for_each(|(sum, g)| *sum += weight * g);
        }
    }
    slice::tensor(out, vocab, width)
}
