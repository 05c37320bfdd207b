//! Memory that a step works in, as large as the largest step so far needed.

use super::linear::{GpuLinear, Scratch};
use super::pack::{RowSet, Shape, drawn_bytes};
use crate::model::architecture::Architecture;
use crate::model::target::{GpuTarget, padded};
use crate::ops::gpu::draw::LOOK;
use crate::ops::gpu::own::OwnProduct;
use crate::ops::gpu::{Buffer, Fault, GpuDevice, Plain, bytes_of_mut};
use std::sync::Arc;

/// Floats from one row of logits to the next.
pub fn logits_pitch(vocab: usize) -> usize {
    padded(vocab)
}

/// Bytes of every piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes([usize; 14]);

/// Addresses of every piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// The residual stream, [rows, hidden] f32.
    pub x: u64,
    /// What products read, [rows, widest].
    pub h: u64,
    /// What products give, [rows, widest], f32 at most.
    pub y: u64,
    pub q: u64,
    /// Keys and values of the batch.
    pub current: u64,
    pub cosines: u64,
    pub sines: u64,
    /// [wanted, hidden].
    pub last: u64,
    /// [wanted, logits_pitch(vocab)] f32.
    pub logits: u64,
    pub looks: u64,
    pub drawn: u64,
    pub scratch: Scratch,
}

/// The pieces and who holds them.
#[derive(Debug)]
pub struct StepMemory {
    sizes: Sizes,
    buffers: Vec<Buffer>,
}

impl StepMemory {
    pub fn new() -> Self {
        Self {
            sizes: Sizes::default(),
            buffers: Vec::new(),
        }
    }

    /// Makes room for batches of this shape. Pieces may lie elsewhere than before.
    pub fn reserve<'a>(
        &mut self,
        device: &GpuTarget,
        config: &Architecture,
        shape: &Shape,
        linears: impl Iterator<Item = (&'a GpuLinear, RowSet)>,
    ) -> Result<(), Fault> {
        let (hidden, vocab, element) = (config.hidden, config.vocabulary.rows, device.dtype.size());
        let (mut widest_in, mut widest_out) = (hidden, 3 * hidden);
        let (mut rotated, mut products, mut partial, mut counters) = (0, 0, 0, 0);
        for (linear, rows) in linears {
            let (out, input) = (linear.base.out, linear.base.input);
            widest_in = widest_in.max(input);
            if rows == RowSet::All {
                widest_out = widest_out.max(out);
            }
            for wave in shape.own(linear.list) {
                let ranks = linear.variants.ranks();
                let bytes = OwnProduct::rotated_bytes(wave.parts, input, device.dtype);
                rotated = rotated.max(bytes);
                products = products.max(OwnProduct::thin_bytes(wave.parts, ranks));
            }
            for wave in shape.waves(linear.list) {
                if linear.variants.tiled {
                    let split = wave.split(device.gpu.processors(), out, input);
                    partial = partial.max(split.partial_bytes());
                    rotated = rotated.max(split.image_bytes());
                    counters = counters.max(4 * split.counters());
                } else {
                    rotated = rotated.max(wave.parts * input * element);
                    products = products.max(wave.parts * out * 4);
                }
            }
        }
        let angles = shape.rows * config.attention().head_dim / 2 * 4;
        let needed = [
            shape.rows * hidden * 4,
            shape.rows * widest_in * element,
            shape.rows * widest_out * 4,
            shape.rows * hidden * element,
            shape.rows * 2 * hidden * element,
            angles,
            angles,
            shape.wanted * hidden * element,
            shape.wanted * logits_pitch(vocab) * 4,
            shape.wanted * LOOK,
            drawn_bytes(shape.wanted),
            rotated,
            products,
            partial,
        ];
        let grows = |(needed, held): (&usize, &usize)| needed > held;
        let counted = self.buffers.last().map_or(0, Buffer::bytes);
        if !needed.iter().zip(&self.sizes.0).any(grows)
            && counters <= counted
            && !self.buffers.is_empty()
        {
            return Ok(());
        }
        for (held, needed) in self.sizes.0.iter_mut().zip(needed) {
            *held = needed.max(*held);
        }
        self.buffers.clear(); // before the new ones are asked for
        let made = self
            .sizes
            .0
            .iter()
            .map(|&bytes| Buffer::new(&device.gpu, bytes));
        self.buffers = made
            .collect::<Result<_, _>>()
            .inspect_err(|_| self.sizes = Sizes::default())?;
        self.buffers
            .push(Buffer::zeros(&device.gpu, counters.max(counted))?);
        Ok(())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::bytes).sum()
    }

    pub fn pieces(&self) -> Pieces {
        let at = |index: usize| self.buffers.get(index).map_or(0, Buffer::address);
        Pieces {
            x: at(0),
            h: at(1),
            y: at(2),
            q: at(3),
            current: at(4),
            cosines: at(5),
            sines: at(6),
            last: at(7),
            logits: at(8),
            looks: at(9),
            drawn: at(10),
            scratch: Scratch {
                rotated: at(11),
                products: at(12),
                partial: at(13),
                counters: at(14),
            },
        }
    }
}

/// `count` elements at an address, once all that was asked for is done.
pub fn read<T: Plain>(gpu: &Arc<dyn GpuDevice>, at: u64, count: usize) -> Result<Vec<T>, Fault> {
    let mut data = vec![T::default(); count];
    if count > 0 {
        gpu.download(at, bytes_of_mut(&mut data))?;
    }
    Ok(data)
}
