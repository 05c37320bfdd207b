//! Tiles, read as `kernels/tiles.cuh` tells.

use choir::ops::gpu::bytes_of;
use choir::ops::gpu::tiles::{Tile, tiles};
use half::f16;

/// A matrix in tiles, and what each weight is made of.
pub struct Tiled {
    pub tiles: Vec<Tile>,
    bytes: Vec<u8>,
    across: usize,
}

impl Tiled {
    pub fn new(weights: &[f32], out: usize, input: usize) -> Self {
        let tiles = tiles(weights, out, input);
        Self {
            bytes: bytes_of(&tiles).to_vec(),
            tiles,
            across: input.div_ceil(256),
        }
    }

    /// Quant, step and minimum of one weight: quant * step - minimum.
    pub fn parts(&self, output: usize, input: usize) -> (u32, f32, f32) {
        let tile = &self.bytes[(output / 16 * self.across + input / 256) * 2368..][..2368];
        let (g, upper) = (output % 8, output % 16 / 8);
        let (quarter, t, word, i) = (input % 256 / 64, input % 64 / 16, input % 16 / 4, input % 4);
        let at = ((quarter * 32 + 4 * g + t) * 4 + word) * 4;
        let word = u32::from_le_bytes(tile[at..at + 4].try_into().unwrap());
        let quant = word >> (4 * (upper + 2 * (i / 2) + 4 * (i % 2))) & 15;
        let levels = &tile[2048 + (t / 2 * 8 + g) * 16 + quarter * 4 + upper * 2..][..2];
        let halves = &tile[2304 + g * 8 + upper * 4..][..4];
        let half = |i: usize| f16::from_le_bytes([halves[2 * i], halves[2 * i + 1]]).to_f32();
        (
            quant,
            half(0) * f32::from(levels[0]),
            half(1) * f32::from(levels[1]),
        )
    }

    pub fn weight(&self, output: usize, input: usize) -> f32 {
        let (quant, step, minimum) = self.parts(output, input);
        step * quant as f32 - minimum
    }
}

#[test]
fn tiles_hold_what_is_quantised() {
    use candle_core::quantized::k_quants::{BlockQ4K, GgmlType};
    let (out, input) = (37, 600);
    let weights: Vec<f32> = crate::rig::normals(&mut crate::rig::stream("tiles"), out * input);
    let tiled = Tiled::new(&weights, out, input);
    for (output, row) in weights.chunks(input).enumerate() {
        let mut row = row.to_vec();
        row.resize(768, 0.0);
        let mut blocks = vec![BlockQ4K::zeros(); 3];
        BlockQ4K::from_float(&row, &mut blocks);
        BlockQ4K::to_float(&blocks, &mut row);
        for (at, &weight) in row[..input].iter().enumerate() {
            assert_eq!(tiled.weight(output, at), weight, "{output}, {at}");
        }
    }
}
