//! What a variant keeps of a matrix by itself, on a device (`kernels/own.cuh`): products (`kernels/own.cu`) and rows
//! (`kernels/own_rows.cu`).
//!
//! Everything is of the rotated input there: what a variant keeps that is not (an adapter, a whole matrix) is rotated when it is
//! uploaded.

use super::launch::{THREADS, launch, launch_of};
use super::products::TIERS;
use super::{Address, Buffer, Dtype, GpuDevice, Result, plain};
use crate::coded::{Kept, LowRank};
use crate::transform::{Rotation, hadamard_block};
use half::bf16;
use std::sync::Arc;

/// Elements that a row of rotated x is a multiple of.
const PITCH: usize = 256;
/// Weights that are no code's.
const AS_THEY_ARE: u32 = 8;

/// Elements of a row to a block of threads, where a block of the transform has not more.
const SPAN: usize = 1024;

/// Of rows of `input` elements: a block of the transform, what a block of threads has of it, and blocks of threads to a row.
fn spans(input: usize) -> (u32, u32, u32) {
    let size = hadamard_block(input);
    let span = size * (SPAN / size).max(1);
    (size as u32, span as u32, input.div_ceil(span) as u32)
}

/// A matrix as kernels see it; zeros where a variant has none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnFacts {
    weights: Address,
    gains: Address,
    tables: Address,
    signs: Address,
    a: Address,
    b: Address,
    scales: Address,
    /// Weights to a step; [`AS_THEY_ARE`], or none.
    kind: u32,
    bits: u32,
    stride: u32,
    rank: u32,
    nibbles: u32,
    scale: f32,
}

/// A matrix [out, in] of one variant on a device.
#[derive(Debug)]
pub struct GpuOwn {
    out: usize,
    input: usize,
    facts: OwnFacts,
    held: Vec<Buffer>,
}

/// Two numbers of a row to a word.
fn words(numbers: &[bf16], width: usize) -> Vec<u32> {
    let pair = |pair: &[bf16]| {
        let high = pair.get(1).map_or(0, |high| u32::from(high.to_bits()));
        u32::from(pair[0].to_bits()) | high << 16
    };
    numbers
        .chunks(width)
        .flat_map(|row| row.chunks(2).map(pair))
        .collect()
}

/// Rows of a code in words, with one more after the last.
fn stream(bytes: &[u8], row: usize) -> Vec<u32> {
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    };
    let rows = bytes.chunks(row).flat_map(|row| row.chunks(4).map(word));
    rows.chain([0]).collect()
}

/// Rows d to d Rᵀ.
fn rotated(numbers: impl Iterator<Item = f32>, rotation: &Rotation, width: usize) -> Vec<bf16> {
    let mut numbers: Vec<f32> = numbers.collect();
    numbers
        .chunks_exact_mut(width)
        .for_each(|row| rotation.apply(row));
    numbers.into_iter().map(bf16::from_f32).collect()
}

impl GpuOwn {
    /// `kept`, which was found to fit a matrix [out, in], under `rotation` and times `scale`.
    pub fn new(
        gpu: &Arc<dyn GpuDevice>,
        kept: &Kept,
        [out, input]: [usize; 2],
        rotation: &Rotation,
        scale: f32,
    ) -> Result<Self> {
        let mut made = GpuOwn {
            out,
            input,
            facts: OwnFacts {
                scale,
                ..OwnFacts::default()
            },
            held: Vec::new(),
        };
        made.facts.signs = made.hold(Buffer::from(gpu, rotation.signs.words()))?;
        let low_rank = match kept {
            Kept::Coded {
                code,
                gains,
                low_rank,
            } => {
                let (rate, bytes) = (code.rate(), code.rate().row_bytes(input));
                made.facts.weights = made.hold(Buffer::from(gpu, &stream(code.stream(), bytes)))?;
                made.facts.gains = made.hold(Buffer::from(gpu, gains))?;
                made.facts.tables = made.hold(Buffer::from(gpu, rate.tables().as_flattened()))?;
                made.facts.kind = rate.step_weights() as u32;
                made.facts.bits = rate.step_bits() as u32;
                made.facts.stride = bytes.div_ceil(4) as u32;
                low_rank.as_ref()
            }
            Kept::LowRank(part) => Some(part),
            Kept::Whole(numbers) => {
                let numbers = numbers.iter().map(|number| number.to_f32());
                let numbers = rotated(numbers, rotation, input);
                made.facts.weights = made.hold(Buffer::from(gpu, &words(&numbers, input)))?;
                made.facts.gains = made.hold(Buffer::from(gpu, &vec![bf16::ONE; out]))?;
                made.facts.kind = AS_THEY_ARE;
                made.facts.stride = input.div_ceil(2) as u32;
                None
            }
        };
        let Some(low_rank) = low_rank else {
            return Ok(made);
        };
        let rank = low_rank.rank();
        made.facts.rank = rank as u32;
        match low_rank {
            LowRank::Nibbles(nibbles) => {
                made.facts.nibbles = 1;
                made.facts.a = made.hold(Buffer::from(gpu, &nibbles.a))?;
                made.facts.b = made.hold(Buffer::from(gpu, &nibbles.b))?;
                made.facts.scales = made.hold(Buffer::from(gpu, &nibbles.scales))?;
            }
            LowRank::Exact { a, b, .. } => {
                let a = rotated(a.iter().copied(), rotation, input);
                let by_rank = (0..rank * out).map(|at| b[at % out * rank + at / out]);
                let b: Vec<bf16> = by_rank.map(bf16::from_f32).collect();
                made.facts.a = made.hold(Buffer::from(gpu, &a))?;
                made.facts.b = made.hold(Buffer::from(gpu, &b))?;
                made.facts.scales = made.hold(Buffer::from(gpu, &vec![1f32; rank]))?;
            }
        }
        Ok(made)
    }

    fn hold(&mut self, buffer: Result<Buffer>) -> Result<Address> {
        let buffer = buffer?;
        let address = buffer.address();
        self.held.push(buffer);
        Ok(address)
    }

    pub fn shape(&self) -> (usize, usize) {
        (self.out, self.input)
    }

    /// What kernels see, as long as this lives.
    pub fn facts(&self) -> OwnFacts {
        self.facts
    }

    pub fn rank(&self) -> usize {
        self.facts.rank as usize
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.held.iter().map(Buffer::bytes).sum()
    }
}

/// y [rows, y_pitch] f32 += what the parts' variants keep of a matrix, times x [rows, input].
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnProduct {
    pub x: Address,
    pub y: Address,
    /// [variants] [`OwnFacts`].
    pub own: Address,
    /// [`PartFacts`](super::products::PartFacts), no two of one row; the variant is the bank.
    pub parts: Address,
    pub part_count: usize,
    /// [`ProductGroup`](super::products::ProductGroup)s.
    pub groups: Address,
    pub group_count: usize,
    /// Parts to a group at most, one of [`TIERS`].
    pub tier: usize,
    pub out: usize,
    pub input: usize,
    pub y_pitch: usize,
    /// The highest rank of any variant.
    pub ranks: usize,
    /// Address of [`OwnProduct::rotated_bytes`] bytes.
    pub rotated: Address,
    /// Address of [`OwnProduct::thin_bytes`] bytes.
    pub thin: Address,
}

impl OwnProduct {
    /// Bytes of so many parts' rotated rows.
    pub fn rotated_bytes(parts: usize, input: usize, dtype: Dtype) -> usize {
        parts * input.next_multiple_of(PITCH) * dtype.size()
    }

    /// Bytes of what is between factors.
    pub fn thin_bytes(parts: usize, ranks: usize) -> usize {
        parts * ranks * size_of::<f32>()
    }

    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype) -> Result<()> {
        debug_assert!(TIERS.contains(&self.tier));
        let (input, (size, span, across)) = (self.input as u32, spans(self.input));
        let (pitch, parts) = (
            self.input.next_multiple_of(PITCH) as u32,
            self.part_count as u32,
        );
        RotateOwn {
            x: self.x,
            rotated: self.rotated,
            parts: self.parts,
            own: self.own,
            input,
            pitch,
            size,
            span,
        }
        .launch(gpu, dtype, [parts, across, 1])?;
        let ranks = self.ranks as u32;
        let thin = ThinOwn {
            rotated: self.rotated,
            t: self.thin,
            parts: self.parts,
            own: self.own,
            input,
            pitch,
            ranks,
            unused: 0,
        };
        launch_of(
            gpu,
            ("thin_own", dtype),
            [parts, ranks.div_ceil(4), 1],
            (128, 0),
            &thin,
        )?;
        let product = ProductOwn {
            rotated: self.rotated,
            t: self.thin,
            y: self.y,
            parts: self.parts,
            groups: self.groups,
            own: self.own,
            out: self.out as u32,
            input,
            pitch,
            ranks,
            y_pitch: self.y_pitch as u32,
            unused: 0,
        };
        let name = format!("product_own_{}", self.tier);
        let grid = [product.out.div_ceil(16), self.group_count as u32, 1];
        launch_of(gpu, (&name, dtype), grid, (128, 0), &product)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RotateOwn {
    x: Address,
    rotated: Address,
    parts: Address,
    own: Address,
    input: u32,
    pitch: u32,
    size: u32,
    span: u32,
}

impl RotateOwn {
    fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype, grid: [u32; 3]) -> Result<()> {
        launch_of(gpu, ("rotate_own", dtype), grid, (THREADS, 0), self)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ThinOwn {
    rotated: Address,
    t: Address,
    parts: Address,
    own: Address,
    input: u32,
    pitch: u32,
    ranks: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ProductOwn {
    rotated: Address,
    t: Address,
    y: Address,
    parts: Address,
    groups: Address,
    own: Address,
    out: u32,
    input: u32,
    pitch: u32,
    ranks: u32,
    y_pitch: u32,
    unused: u32,
}

/// x [rows, width] f32 += what the parts' variants keep of the rows of their tokens.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbedOwn {
    pub x: Address,
    /// [rows] u32.
    pub tokens: Address,
    /// No two of one row; those without weight do nothing.
    pub parts: Address,
    /// [variants] [`OwnFacts`].
    pub own: Address,
    pub vocab: u32,
    pub width: u32,
    /// Filled in by `launch`, like the next one.
    pub size: u32,
    pub span: u32,
}

impl EmbedOwn {
    pub fn launch(&self, gpu: &dyn GpuDevice, parts: usize) -> Result<()> {
        let (size, span, across) = spans(self.width as usize);
        let args = EmbedOwn {
            size,
            span,
            ..*self
        };
        let grid = [parts as u32, across, 1];
        launch(gpu, "embed_own", grid, (THREADS, 0), &args)
    }
}

/// A whole matrix: target = base + weight · c · delta.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RetrieveOwn {
    /// [out, input].
    pub base: Address,
    /// [out, input]; the base's own is allowed.
    pub target: Address,
    /// One [`OwnFacts`].
    pub own: Address,
    pub out: u32,
    pub input: u32,
    /// Filled in by `launch`, like the next one.
    pub size: u32,
    pub span: u32,
    pub weight: f32,
    pub unused: u32,
}

impl RetrieveOwn {
    pub fn launch(&self, gpu: &dyn GpuDevice, dtype: Dtype) -> Result<()> {
        let (size, span, across) = spans(self.input as usize);
        let args = RetrieveOwn {
            size,
            span,
            ..*self
        };
        let grid = [self.out, across, 1];
        launch_of(gpu, ("retrieve_own", dtype), grid, (THREADS, 0), &args)
    }
}

plain!(
    OwnFacts,
    RotateOwn,
    ThinOwn,
    ProductOwn,
    EmbedOwn,
    RetrieveOwn
);
