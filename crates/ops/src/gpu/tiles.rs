//! A matrix in 4.625 bits, laid out for the tensor cores: the numbers of `q4_K`, which the CPU serves (`kernels/tiles.cuh`).

use super::plain;
use super::unpacked::Unpacked;
use candle_core::quantized::k_quants::{BlockQ4K, GgmlType};
use half::f16;
use rayon::prelude::*;

/// Outputs to a tile.
const OUT: usize = 16;
/// Inputs to a tile.
const IN: usize = 256;

/// Sixteen outputs by 256 inputs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tile {
    /// By 64 inputs, by lane: a nibble a weight.
    quants: [[[u32; 4]; 32]; 4],
    /// By half of 64 inputs, by lane / 4: for every 64 inputs and both outputs a scale and a minimum.
    levels: [[[[[u8; 2]; 2]; 4]; 8]; 2],
    /// By lane / 4: scale and minimum of both outputs.
    halves: [[[f16; 2]; 2]; 8],
}

impl Default for Tile {
    fn default() -> Self {
        Self {
            quants: [[[0; 4]; 32]; 4],
            levels: [[[[[0; 2]; 2]; 4]; 8]; 2],
            halves: [[[f16::ZERO; 2]; 2]; 8],
        }
    }
}

const _: () = assert!(size_of::<Tile>() == 2368);
plain!(Tile);

impl Tile {
    /// Takes one output's super-block.
    fn put(&mut self, output: usize, block: &BlockQ4K) {
        let block = Unpacked::from(block);
        let (g, upper) = (output % 8, output / 8);
        self.halves[g][upper] = block.ends;
        for (number, level) in block.levels.into_iter().enumerate() {
            self.levels[number % 2][g][number / 2][upper] = level;
        }
        for (input, quant) in block.quants.into_iter().enumerate() {
            let (quarter, t, word, i) = (input / 64, input % 64 / 16, input % 16 / 4, input % 4);
            let nibble = i / 2 * 2 + upper + 4 * (i % 2);
            self.quants[quarter][4 * g + t][word] |= u32::from(quant) << (4 * nibble);
        }
    }
}

/// The tiles of `weights` [out, input], quantised as candle does: [ceil(out / 16)][ceil(input / 256)], padded with zeros.
pub fn tiles(weights: &[f32], out: usize, input: usize) -> Vec<Tile> {
    assert_eq!(weights.len(), out * input, "a matrix of {out} x {input}");
    let across = input.div_ceil(IN);
    let mut tiles = vec![Tile::default(); out.div_ceil(OUT) * across];
    tiles
        .par_chunks_mut(across.max(1))
        .enumerate()
        .for_each(|(strip, tiles)| {
            let (mut row, mut blocks) = (vec![0f32; across * IN], vec![BlockQ4K::zeros(); across]);
            for output in 0..OUT.min(out - strip * OUT) {
                row[..input].copy_from_slice(&weights[(strip * OUT + output) * input..][..input]);
                BlockQ4K::from_float(&row, &mut blocks);
                for (tile, block) in tiles.iter_mut().zip(&blocks) {
                    tile.put(output, block);
                }
            }
        });
    tiles
}

/// Bytes of a matrix [out, input] in tiles.
pub fn tile_bytes(out: usize, input: usize) -> usize {
    out.div_ceil(OUT) * input.div_ceil(IN) * size_of::<Tile>()
}
