//! A batch's memory, written from its beginning.

use crate::ops::categorical::Draw;
use crate::ops::gpu::draw::DrawFacts;
use crate::ops::gpu::{Plain, bytes_of};
use rayon::prelude::*;

/// Few sizes, none more than half too large.
pub fn rounded(count: usize) -> usize {
    match count {
        0..=1 => count,
        2..=8 => count.next_power_of_two(),
        _ => {
            let power = count.next_power_of_two();
            if count <= power / 4 * 3 {
                power / 4 * 3
            } else {
                power
            }
        }
    }
}

/// What is appended to a batch's memory.
#[derive(Debug)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// Room for `count` elements at a multiple of sixteen bytes: its offset.
    fn room<T>(&mut self, count: usize) -> usize {
        let start = self.0.len().next_multiple_of(16);
        self.0.resize(start + count * size_of::<T>(), 0);
        start
    }

    /// Appends `data` and padding up to `count` elements; returns its offset.
    pub fn put<T: Plain>(&mut self, mut data: Vec<T>, count: usize, padding: T) -> usize {
        data.resize(count.max(data.len()), padding);
        let start = self.room::<T>(0);
        self.0.extend_from_slice(bytes_of(&data));
        start
    }

    /// Appends a draw or none for every row, and none up to `count`; returns its offset.
    pub fn put_draws(&mut self, draws: &[Option<&Draw>], count: usize, vocab: usize) -> usize {
        const BYTES: usize = size_of::<DrawFacts>();
        let start = self.room::<DrawFacts>(count.max(draws.len()));
        let (facts, _) = self.0[start..].as_chunks_mut::<BYTES>();
        let put = |(to, draw): (&mut [u8; BYTES], &Option<&Draw>)| {
            if let Some(draw) = draw {
                to.copy_from_slice(bytes_of(&[DrawFacts::of(draw, vocab)]));
            }
        };
        // Only of many are several threads quicker than one, which asking them alone would take longer than.
        match draws.len() {
            0..2048 => facts.iter_mut().zip(draws).for_each(put),
            _ => facts
                .par_iter_mut()
                .zip(draws)
                .with_min_len(1024)
                .for_each(put),
        }
        start
    }
}
