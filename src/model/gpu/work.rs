//! Memory that a step works in, as large as the largest step so far needed.

use super::linear::{GpuLinear, Scratch};
use super::pack::drawn_bytes;
use super::parts::{RowSet, Sources, WaveShape};
use crate::model::architecture::Architecture;
use crate::model::target::{GpuTarget, padded};
use crate::ops::gpu::draw::LOOK;
use crate::ops::gpu::own::OwnProduct;
use crate::ops::gpu::{Address, Buffer, Fault, GpuDevice, Plain, bytes_of_mut};
use std::sync::Arc;

/// Rows and wanted rows that there is memory for from the start.
const MOST: (usize, usize) = (512, 64);

/// Floats from one row of logits to the next.
pub fn logits_pitch(vocab: usize) -> usize {
    padded(vocab)
}

/// Pieces, counters of shares included, which are 0 between launches.
const PIECES: usize = 16;

/// Bytes of every piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs([usize; PIECES]);

/// Addresses of every piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceAddresses {
    /// The residual stream, [rows, hidden] f32.
    pub x: Address,
    /// What products read, [rows, widest].
    pub h: Address,
    /// What products give, [rows, widest], f32 at most.
    pub y: Address,
    pub q: Address,
    /// Keys and values of the batch.
    pub current: Address,
    pub cosines: Address,
    pub sines: Address,
    /// [wanted, hidden].
    pub last: Address,
    /// [wanted, logits_pitch(vocab)] f32.
    pub logits: Address,
    pub looks: Address,
    pub drawn: Address,
    pub scratch: Scratch,
}

impl Needs {
    /// Of batches of `rows` rows, of which `wanted` are wanted, whose matrices' launches for parts are `waves`, by list.
    pub fn of<'a>(
        device: &GpuTarget,
        config: &Architecture,
        (rows, wanted): (usize, usize),
        waves: &[Sources<Vec<WaveShape>>],
        linears: impl Iterator<Item = (&'a GpuLinear, RowSet)>,
    ) -> Self {
        let (hidden, element) = (config.hidden, device.dtype.size());
        let attention = config.attention();
        let queries = attention.heads * attention.head_dim;
        let keys = attention.kv_heads * attention.head_dim;
        let (mut widest_in, mut widest_out) = (hidden, 0);
        let (mut rotated, mut products, mut partial, mut widened, mut counters) = (0, 0, 0, 0, 0);
        for (linear, of) in linears {
            let (out, input) = (linear.base.out, linear.base.input);
            widest_in = widest_in.max(input);
            widened = widened.max(linear.widened_bytes(device.dtype));
            if of == RowSet::All {
                widest_out = widest_out.max(out);
            }
            let Some(waves) = waves.get(linear.list) else {
                continue;
            };
            let ranks = linear.variants.ranks();
            for wave in &waves.own {
                let bytes = OwnProduct::rotated_bytes(wave.parts, input, device.dtype);
                rotated = rotated.max(bytes);
                products = products.max(OwnProduct::thin_bytes(wave.parts, ranks));
            }
            for wave in &waves.tiled {
                let split = wave.split(device.gpu.processors(), out, input);
                partial = partial.max(split.partial_bytes());
                rotated = rotated.max(split.image_bytes());
                counters = counters.max(4 * split.counters());
            }
            for wave in &waves.dense {
                rotated = rotated.max(wave.parts * input * element);
                products = products.max(wave.parts * out * 4);
            }
        }
        let angles = rows * attention.head_dim / 2 * 4;
        Self([
            rows * hidden * 4,
            rows * widest_in * element,
            rows * widest_out * 4,
            rows * queries.max(hidden) * element,
            rows * 2 * keys * element,
            angles,
            angles,
            wanted * hidden * element,
            wanted * logits_pitch(config.vocabulary.rows) * 4,
            wanted * LOOK,
            drawn_bytes(wanted),
            rotated,
            products,
            partial,
            widened,
            counters,
        ])
    }

    /// Enough for either.
    fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at].max(other.0[at])))
    }
}

/// The pieces and who holds them.
#[derive(Debug)]
pub struct StepMemory {
    sizes: Needs,
    buffers: Vec<Buffer>,
    /// Rows and wanted rows of the largest step so far, each for itself.
    most: (usize, usize),
}

impl StepMemory {
    pub fn new() -> Self {
        Self {
            sizes: Needs::default(),
            buffers: Vec::new(),
            most: MOST,
        }
    }

    /// Rows and wanted rows of the largest step so far.
    pub fn most(&self) -> (usize, usize) {
        self.most
    }

    /// Says that there are steps of so many rows.
    pub fn expect(&mut self, rows: usize, wanted: usize) {
        self.most = (self.most.0.max(rows), self.most.1.max(wanted));
    }

    /// Makes room for what is needed. Pieces may lie elsewhere than before.
    ///
    /// # Errors
    /// Where there is no such room; there is as much as before then.
    pub fn reserve(&mut self, gpu: &Arc<dyn GpuDevice>, needs: Needs) -> Result<(), Fault> {
        let (before, sizes) = (self.sizes, self.sizes.and(needs));
        if sizes == before && !self.buffers.is_empty() {
            return Ok(());
        }
        self.buffers.clear(); // before the new ones are asked for
        self.sizes = Needs::default();
        let made = Self::buffers(gpu, sizes);
        let (buffers, sizes, refused) = match made {
            Ok(made) => (Ok(made), sizes, None),
            Err(fault) => (Self::buffers(gpu, before), before, Some(fault)),
        };
        if let Ok(buffers) = buffers {
            (self.buffers, self.sizes) = (buffers, sizes);
        }
        refused.map_or(Ok(()), Err)
    }

    fn buffers(gpu: &Arc<dyn GpuDevice>, sizes: Needs) -> Result<Vec<Buffer>, Fault> {
        let [pieces @ .., counters] = sizes.0;
        let pieces = pieces.iter().map(|&bytes| Buffer::new(gpu, bytes));
        pieces.chain([Buffer::zeros(gpu, counters)]).collect()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::bytes).sum()
    }

    pub fn pieces(&self) -> PieceAddresses {
        let at = |index: usize| {
            self.buffers
                .get(index)
                .map(Buffer::address)
                .unwrap_or_default()
        };
        PieceAddresses {
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
                widened: at(14),
                counters: at(15),
            },
        }
    }
}

/// `count` elements at an address, once all that was asked for is done.
pub fn read<T: Plain>(
    gpu: &Arc<dyn GpuDevice>,
    at: Address,
    count: usize,
) -> Result<Vec<T>, Fault> {
    let mut data = vec![T::default(); count];
    if count > 0 {
        gpu.download(at, bytes_of_mut(&mut data))?;
    }
    Ok(data)
}
