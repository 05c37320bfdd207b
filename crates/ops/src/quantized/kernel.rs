//! The inner loop, once for every instruction set; all give the same bits.

use super::levels::{LANES, Levels};
use super::panels::QuantLine;
use super::rows::{BLOCK, BLOCKS, QuantisedRows};
use crate::isa::{Isa, Set};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

/// Rows computed together.
pub const TILE: usize = 8;

/// Sixteen outputs: every block's lines, and the levels of all blocks.
#[derive(Clone, Copy)]
pub struct QuantPanel<'a, L> {
    pub lines: &'a [QuantLine],
    pub levels: &'a [L],
}

impl<L: Levels> QuantPanel<'_, L> {
    /// The first block of every super-block of inputs, and how many it has.
    #[inline(always)]
    fn supers(self) -> impl Iterator<Item = (usize, usize)> {
        let blocks = self.levels.len() * L::BLOCKS;
        let first = (0..blocks).step_by(BLOCKS);
        first.map(move |first| {
            (
                first,
                if L::SUPER {
                    BLOCKS
                } else {
                    BLOCKS.min(blocks - first)
                },
            )
        })
    }
}

/// Sums of up to [`TILE`] rows of x, from `start`, with the outputs of a panel.
#[allow(unsafe_code)]
pub fn run<L: Levels>(
    isa: Isa,
    panel: QuantPanel<L>,
    x: &QuantisedRows,
    start: usize,
    sums: &mut [[f32; LANES]],
) {
    assert!(sums.len() <= TILE && panel.lines.len() == panel.levels.len() * L::BLOCKS * L::BITS);
    match isa.set() {
        Set::Portable => portable(panel, x, start, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: whoever has this value has asked the processor for its instructions; a block has its lines.
        Set::Avx2 => unsafe { avx2::run(panel, x, start, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Set::Avx512 => unsafe { avx512::run(panel, x, start, sums) },
    }
}

fn portable<L: Levels>(
    panel: QuantPanel<L>,
    x: &QuantisedRows,
    start: usize,
    sums: &mut [[f32; LANES]],
) {
    for (row, sums) in (start..).zip(sums) {
        for (at, (first, blocks)) in panel.supers().enumerate() {
            let part = x.part(row, at);
            for (lane, sum) in sums.iter_mut().enumerate() {
                let (mut inner, mut minima) = (0f32, 0i32);
                for of_super in 0..blocks {
                    let block = first + of_super;
                    let (levels, of) = (&panel.levels[block / L::BLOCKS], block % L::BLOCKS);
                    let x = part.quants[of_super].as_flattened();
                    let mut dot = 0;
                    for half in 0..2 {
                        let inputs = half * BLOCK / 2..(half + 1) * BLOCK / 2;
                        let product = |input| {
                            i32::from(panel.quant(block, lane, input)) * i32::from(x[input])
                        };
                        let (factor, minimum) =
                            (levels.factors(of, half)[lane], levels.minima(of)[lane]);
                        let sum = i32::from(part.sums[of_super][half]);
                        dot += (factor & 0xffff) as i32 * inputs.map(product).sum::<i32>()
                            - i32::from(L::OFFSET) * sum;
                        minima += (minimum >> (16 * half) & 0xffff) as i32 * sum;
                    }
                    inner = (dot as f32).mul_add(levels.scales(of)[lane], inner);
                }
                if L::SUPER {
                    let [scale, minimum] = panel.levels[first / L::BLOCKS].ends();
                    inner = (-minimum[lane]).mul_add(minima as f32, scale[lane] * inner);
                }
                *sum = inner.mul_add(part.scale, *sum);
            }
        }
    }
}

/// Four inputs of x as a word.
#[inline(always)]
fn word(quants: [i8; 4]) -> i32 {
    i32::from_le_bytes(quants.map(i8::cast_unsigned))
}

/// Two sums of x as a word.
#[inline(always)]
fn pair([low, high]: [i16; 2]) -> i32 {
    i32::from(low.cast_unsigned()) | i32::from(high) << 16
}
