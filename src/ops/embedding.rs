//! Rows of a table by token, and the gradient of the table.

use super::slice::{self, on_cpu};
use candle_core::{Result, Tensor, bail};

/// table [vocab, width], ids -> [ids, width].
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (vocab, width) = table.dims2()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        bail!("token {id} is outside the vocabulary of {vocab}")
    }
    if !on_cpu(table) {
        return table.index_select(&Tensor::new(ids, table.device())?, 0);
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
    if !on_cpu(table) {
        return table
            .zeros_like()?
            .index_add(&Tensor::new(ids, table.device())?, gradient, 0);
    }
    let upstream = slice::f32(gradient)?;
    let mut out = vec![0f32; vocab * width];
    for (&id, row) in ids.iter().zip(upstream.chunks(width)) {
        for (sum, g) in out[id as usize * width..][..width].iter_mut().zip(row) {
            *sum += g;
        }
    }
    slice::tensor(out, vocab, width)
}
