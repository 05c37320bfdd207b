//! Rotary position embedding: base 10000, full head, halves not interleaved (`cat(-x2, x1)`).

/// Cosines and sines of one head for positions `0 .. positions`: [positions, head_dim / 2] each.
#[derive(Clone, Debug)]
pub struct Rotary {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    pub fn new(head_dim: usize, positions: impl IntoIterator<Item = usize>) -> Self {
        let half = head_dim / 2;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for i in 0..half {
                // In f64, so that far positions keep their precision.
                let angle = position as f64 * 10000f64.powf(-(i as f64) / half as f64);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        Self { half, cos, sin }
    }

    /// Rotates one head [head_dim] by the angles of table line `line`.
    pub fn apply(&self, line: usize, head: &mut [f32]) {
        let (cos, sin) = (
            &self.cos[line * self.half..][..self.half],
            &self.sin[line * self.half..][..self.half],
        );
        let (first, second) = head.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }

    /// Rotates back: the transpose, which gradients go through.
    pub fn apply_inverse(&self, line: usize, head: &mut [f32]) {
        let (cos, sin) = (
            &self.cos[line * self.half..][..self.half],
            &self.sin[line * self.half..][..self.half],
        );
        let (first, second) = head.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] + b * sin[i];
            second[i] = b * cos[i] - a * sin[i];
        }
    }
}

impl Rotary {
    /// The tables as tensors [positions, head_dim / 2], for the slow twins.
    pub fn tables(
        &self,
        device: &candle_core::Device,
    ) -> candle_core::Result<(candle_core::Tensor, candle_core::Tensor)> {
        let shape = (self.cos.len() / self.half.max(1), self.half);
        Ok((
            candle_core::Tensor::from_slice(&self.cos, shape, device)?,
            candle_core::Tensor::from_slice(&self.sin, shape, device)?,
        ))
    }
}
