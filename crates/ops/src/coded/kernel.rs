//! The inner loops, once for every instruction set; sums are integers, so all give the same.

use super::panels::{CHUNK, CodePanel, GROUP, LANES};
use super::rows::{self, CodedSource, Facts, RotatedRows};
use super::thin::{DEEP, ThinLine};
use super::{Rate, WINDOW};
use crate::isa::{Isa, Set};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod rotate;
#[cfg(target_arch = "x86_64")]
mod vbmi;

/// Rows of x computed together.
pub const TILE: usize = 8;

/// What decodes, on a processor that can: nothing but asking it makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeKernel(Way);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VBMI, which has a window at every bit in one instruction and a table of 128 bytes in another.
    #[cfg(target_arch = "x86_64")]
    Vbmi,
}

impl DecodeKernel {
    /// The fastest one on this processor.
    pub fn best() -> DecodeKernel {
        DecodeKernel(match Isa::best().set() {
            Set::Portable => Way::Portable,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => Way::Avx2,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => {
                let vbmi = is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vbmi2");
                if vbmi { Way::Vbmi } else { Way::Avx2 }
            }
        })
    }

    /// All that this processor has, for tests that compare them.
    #[cfg(test)]
    pub fn all() -> Vec<DecodeKernel> {
        let mut all = vec![Way::Portable];
        #[cfg(target_arch = "x86_64")]
        match DecodeKernel::best().0 {
            Way::Portable => {}
            Way::Avx2 => all.push(Way::Avx2),
            Way::Vbmi => all.extend([Way::Avx2, Way::Vbmi]),
        }
        all.into_iter().map(DecodeKernel).collect()
    }

    /// Makes a row; see [`rows::make`].
    #[allow(unsafe_code)]
    pub fn rotate(
        self,
        source: CodedSource,
        values: &mut [f32],
        plain: &mut [i8],
        row: &mut [i8],
    ) -> Facts {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Way::Vbmi && rotate::takes(source.rotation.block()) {
            let (x, rotation) = (source.x, source.rotation);
            // SAFETY: whoever has this value has asked the processor for its instructions.
            return unsafe {
                rotate::rotate(x, rotation, source.per_step, values, &mut row[..x.len()])
            };
        }
        rows::make(source, values, plain, row)
    }

    /// Sums of up to [`TILE`] rows of x, from `start`, with the sixteen rows of a panel. They must be rows made for the panel's rate.
    #[allow(unsafe_code)]
    pub fn run(self, panel: CodePanel, x: &RotatedRows, start: usize, sums: &mut [[i32; LANES]]) {
        let length = panel.chunks() * CHUNK * panel.rate.step_weights();
        assert!(
            sums.len() <= TILE
                && sums
                    .iter()
                    .zip(start..)
                    .all(|(_, row)| length <= x.row(row).len())
        );
        match self.0 {
            Way::Portable => portable(panel, x, start, sums),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever has this value has asked the processor for its instructions; rows are long enough.
            Way::Avx2 => unsafe { avx2::run(panel, x, start, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Way::Vbmi => unsafe { vbmi::run(panel, x, start, sums) },
        }
    }

    /// Sums of some rows of x, at most [`TILE`], with sixteen outputs of numbers of four bits, as they lie there from 0 to 15.
    #[allow(unsafe_code)]
    pub fn nibbles(self, lines: &[ThinLine], x: &[&[[i8; DEEP]]], sums: &mut [[i32; LANES]]) {
        assert!(x.len() == sums.len() && x.len() <= TILE);
        assert!(x.iter().all(|x| x.len() == lines.len()));
        match self.0 {
            Way::Portable => {
                for (x, sums) in x.iter().zip(sums) {
                    *sums = [0; LANES];
                    for (line, x) in lines.iter().zip(*x) {
                        for (sum, bytes) in sums.iter_mut().zip(line.0.as_chunks::<4>().0) {
                            for (at, byte) in bytes.iter().enumerate() {
                                *sum += i32::from(byte & 15) * i32::from(x[at])
                                    + i32::from(byte >> 4) * i32::from(x[4 + at]);
                            }
                        }
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever has this value has asked the processor for its instructions; rows have all inputs.
            Way::Avx2 => unsafe { avx2::nibbles(lines, x, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Way::Vbmi => unsafe { vbmi::nibbles(lines, x, sums) },
        }
    }
}

/// The definition, weight by weight.
fn portable(panel: CodePanel, x: &RotatedRows, start: usize, sums: &mut [[i32; LANES]]) {
    let (tables, steps) = (panel.rate.tables(), panel.chunks() * CHUNK);
    for (row, sums) in (start..).zip(sums) {
        let x = x.row(row);
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum = 0;
            for step in 0..steps {
                let window = panel.bits(lane, step) as usize % (1 << WINDOW);
                for (at, table) in tables.iter().enumerate() {
                    let place = step / 8 * 8 * tables.len() + 8 * at + step % 8;
                    *sum = sum.wrapping_add(i32::from(table[window]) * i32::from(x[place]));
                }
            }
        }
    }
}
