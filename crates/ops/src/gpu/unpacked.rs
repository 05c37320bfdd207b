//! A super-block of candle's `q4_K`, a byte to a number.

use crate::quantized::bytes;
use crate::quantized::rows::{BLOCK, BLOCKS, SUPER};
use candle_core::quantized::k_quants::BlockQ4K;
use half::f16;

/// With `[d, e]` of `ends` and `[s, m]` of a block's levels, a weight is `d s quant - e m`.
pub struct Unpacked {
    pub ends: [f16; 2],
    /// By block of 32 inputs: scale and minimum.
    pub levels: [[u8; 2]; BLOCKS],
    pub quants: [u8; SUPER],
}

impl From<&BlockQ4K> for Unpacked {
    /// Scale, minimum, twelve bytes of levels in six bits, then for every two blocks 32 bytes with the first block in the low halves.
    fn from(block: &BlockQ4K) -> Self {
        let bytes = bytes(block);
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let sixes = &bytes[4..16];
        let level = |block: usize| match block {
            0..4 => [sixes[block] & 63, sixes[block + 4] & 63],
            _ => [
                sixes[block + 4] & 15 | sixes[block - 4] >> 6 << 4,
                sixes[block + 4] >> 4 | sixes[block] >> 6 << 4,
            ],
        };
        let quant = |input: usize| {
            let block = input / BLOCK;
            bytes[16 + block / 2 * BLOCK + input % BLOCK] >> (block % 2 * 4) & 15
        };
        Unpacked {
            ends: [half(0), half(2)],
            levels: std::array::from_fn(level),
            quants: std::array::from_fn(quant),
        }
    }
}
