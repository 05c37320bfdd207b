//! Rotary position embedding: full head, halves not interleaved (`cat(-x2, x1)`).

use crate::error::Result;
use candle_core::{Device, Tensor};

/// Cosines and sines of one head for a list of positions: [lines, head_dim / 2] each.
#[derive(Clone, Debug, Default)]
pub struct Rotary {
    half: usize,
    /// By pair.
    frequencies: Vec<f64>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// One line for each of `positions`: angle of pair i at p is p theta^(-2i / head_dim).
    pub fn new(head_dim: usize, theta: f64, positions: impl IntoIterator<Item = usize>) -> Self {
        let half = head_dim / 2;
        let mut rotary = Self {
            half,
            frequencies: (0..half)
                .map(|i| theta.powf(-(i as f64) / half as f64))
                .collect(),
            cos: Vec::new(),
            sin: Vec::new(),
        };
        positions
            .into_iter()
            .for_each(|position| rotary.push(position));
        rotary
    }

    fn push(&mut self, position: usize) {
        for frequency in &self.frequencies {
            // In f64, so that far positions keep their precision.
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            self.cos.push(cos as f32);
            self.sin.push(sin as f32);
        }
    }

    /// Makes `picked` the lines for `positions`, copied from this table of positions `0 ..` where it reaches so far.
    pub fn pick(&self, positions: impl IntoIterator<Item = usize>, picked: &mut Self) {
        let half = self.half;
        picked.half = half;
        picked.frequencies.clone_from(&self.frequencies);
        picked.cos.clear();
        picked.sin.clear();
        for position in positions {
            match self.cos.get(position * half..(position + 1) * half) {
                Some(cos) => {
                    picked.cos.extend_from_slice(cos);
                    picked
                        .sin
                        .extend_from_slice(&self.sin[position * half..][..half]);
                }
                None => picked.push(position),
            }
        }
    }

    /// Cosines and sines, [lines, head_dim / 2] each.
    pub fn values(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.cos[..]) + size_of_val(&self.sin[..])
    }

    fn line(&self, line: usize) -> (&[f32], &[f32]) {
        (
            &self.cos[line * self.half..][..self.half],
            &self.sin[line * self.half..][..self.half],
        )
    }

    /// Rotates one head [head_dim] by the angles of table line `line`.
    pub fn apply(&self, line: usize, head: &mut [f32]) {
        let (cos, sin) = self.line(line);
        let (first, second) = head.split_at_mut(self.half);
        for ((first, second), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            let (a, b) = (*first, *second);
            *first = a * cos - b * sin;
            *second = b * cos + a * sin;
        }
    }

    /// Rotates back: the transpose, which gradients go through.
    pub fn apply_inverse(&self, line: usize, head: &mut [f32]) {
        let (cos, sin) = self.line(line);
        let (first, second) = head.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] + b * sin[i];
            second[i] = b * cos[i] - a * sin[i];
        }
    }

    /// The tables as tensors [lines, head_dim / 2], for the slow twins.
    pub fn tables(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (self.cos.len() / self.half.max(1), self.half);
        Ok((
            Tensor::from_slice(&self.cos, shape, device)?,
            Tensor::from_slice(&self.sin, shape, device)?,
        ))
    }
}
