//! Cross-entropy of each row of logits against its target, with one token that can never occur.

use super::math;
use super::slice;
use crate::error::{Error, Result};
use candle_core::{D, Tensor};
use rayon::prelude::*;

fn check(logits: &Tensor, targets: &[u32], forbid: Option<u32>) -> Result<(usize, usize)> {
    let (rows, vocab) = logits.dims2()?;
    if targets.len() != rows {
        return Err(Error::PerRow {
            what: "targets",
            found: targets.len(),
            rows,
        });
    }
    match targets
        .iter()
        .find(|&&t| t as usize >= vocab || Some(t) == forbid)
    {
        Some(&token) => Err(Error::Target { token }),
        None => Ok((rows, vocab)),
    }
}

/// -log softmax(logits)[target] in nats, the forbidden token's logit taken as -infinity (the `subs`
/// parameterisation). logits [rows, vocab] -> [rows].
pub fn cross_entropy(logits: &Tensor, targets: &[u32], forbid: Option<u32>) -> Result<Tensor> {
    let (_, vocab) = check(logits, targets, forbid)?;
    let input = slice::f32(logits)?;
    let nll: Vec<f32> = input
        .par_chunks(vocab)
        .zip(targets)
        .map_init(
            || vec![0f32; vocab],
            |scratch, (row, &target)| {
                scratch.copy_from_slice(row);
                if let Some(forbid) = forbid {
                    scratch[forbid as usize] = f32::NEG_INFINITY;
                }
                math::softmax(scratch) - row[target as usize]
            },
        )
        .collect();
    Ok(Tensor::new(nll, logits.device())?)
}

/// The slow twin.
pub fn cross_entropy_slow(logits: &Tensor, targets: &[u32], forbid: Option<u32>) -> Result<Tensor> {
    let masked = forbidden(logits, forbid)?;
    let index = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    Ok((masked.log_sum_exp(D::Minus1)? - logits.gather(&index, 1)?.squeeze(1)?)?)
}

fn forbidden(logits: &Tensor, forbid: Option<u32>) -> Result<Tensor> {
    let Some(forbid) = forbid else {
        return Ok(logits.clone());
    };
    let mut mask = vec![0f32; logits.dim(1)?];
    mask[forbid as usize] = -1e30;
    Ok(logits.broadcast_add(&Tensor::new(mask, logits.device())?)?)
}

/// The gradient of sum over rows of weight * cross-entropy: weight * (softmax - onehot). [rows, vocab]
pub fn cross_entropy_backward(
    logits: &Tensor,
    targets: &[u32],
    forbid: Option<u32>,
    weights: &[f32],
) -> Result<Tensor> {
    let (rows, vocab) = check(logits, targets, forbid)?;
    if weights.len() != rows {
        return Err(Error::PerRow {
            what: "weights",
            found: weights.len(),
            rows,
        });
    }
    let input = slice::f32(logits)?;
    let mut out = input.to_vec();
    out.par_chunks_mut(vocab)
        .zip(targets)
        .zip(weights)
        .for_each(|((row, &target), &weight)| {
            if let Some(forbid) = forbid {
                row[forbid as usize] = f32::NEG_INFINITY;
            }
            math::softmax(row);
            if let Some(forbid) = forbid {
                row[forbid as usize] = 0.0;
            }
            row[target as usize] -= 1.0;
            row.iter_mut().for_each(|x| *x *= weight);
        });
    slice::tensor(out, rows, vocab)
}
