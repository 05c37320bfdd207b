//! A matrix of the base and of every variant on a device: see [`crate::model::linear`] for the mathematics.

use super::parts::{Placement, Sources, Wave};
use super::room::MatrixAddresses;
use super::variant::GpuVariant;
use super::weights::GpuBank;
use crate::model::batch::Mix;
use crate::model::error::{Error, Result};
use crate::model::target::{GpuTarget, Matrix, padded};
use crate::model::variant::Placed;
use crate::ops::gpu::own::{EmbedOwn, GpuOwn, OwnFacts, OwnProduct, RetrieveOwn};
use crate::ops::gpu::products::{BankGemm, PartFacts, SignIn, SignOut};
use crate::ops::gpu::quantised::{FewRows, MOST_ROWS};
use crate::ops::gpu::superposition::Retrieve;
use crate::ops::gpu::{Address, Buffer, Dtype, Fault, Gemm, GpuDevice};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the variants have of one matrix.
#[derive(Debug)]
pub struct GpuSuperposed {
    name: String,
    /// By their slots, with whether they are in tiles.
    banks: BTreeMap<u32, (Arc<Matrix>, bool)>,
    pub placement: Sources<Placement>,
    /// What each variant keeps by itself.
    own: Vec<Option<Arc<GpuOwn>>>,
}

impl GpuSuperposed {
    /// Tensor `name` [out, input] of `variants`, whose [`VariantId`] is their index, in those of `banks` that hold it.
    pub fn of(
        (name, out, input): (&str, usize, usize),
        banks: &[Arc<GpuBank>],
        variants: &[Placed<GpuVariant>],
    ) -> Result<Self> {
        let misshapen = |holder| Error::HeldShape {
            holder,
            name: name.to_owned(),
            shape: (out, input),
        };
        let mut held = BTreeMap::new();
        for bank in banks {
            let Some(matrix) = bank.matrices.get(name) else {
                continue;
            };
            if (matrix.out, matrix.input) != (out, input) {
                return Err(misshapen("a bank"));
            }
            held.insert(bank.slot.number, (matrix.clone(), bank.tiled));
        }
        let (mut placement, mut own) = (Sources::<Placement>::default(), Vec::new());
        for (index, variant) in variants.iter().enumerate() {
            let slot = variant.own.slot.number;
            let of_banks = variant.banks.iter().filter_map(|&bank| banks.get(bank));
            let mut homes = of_banks.map(|bank| bank.slot.number);
            let home = homes.find(|number| held.contains_key(number));
            let home = match (variant.own.has(name), home) {
                (true, None) => {
                    return Err(Error::InNoBank {
                        variant: index,
                        name: name.to_owned(),
                    });
                }
                (true, Some(bank)) => Some((bank, held[&bank].1)),
                (false, _) => None,
            };
            let in_bank = |tiles: bool| {
                home.filter(|home| home.1 == tiles)
                    .map(|(bank, _)| (slot, bank))
            };
            placement.tiled.push(in_bank(true));
            placement.dense.push(in_bank(false));
            let kept = variant.own.own.get(name).cloned();
            if kept
                .as_ref()
                .is_some_and(|kept| kept.shape() != (out, input))
            {
                return Err(misshapen("a variant"));
            }
            placement.own.push(kept.as_ref().map(|_| (slot, slot)));
            own.push(kept);
        }
        Ok(Self {
            name: name.to_owned(),
            banks: held,
            placement,
            own,
        })
    }

    /// The tensor.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The highest rank of what a variant keeps by itself.
    pub fn ranks(&self) -> usize {
        let ranks = self.own.iter().flatten().map(|own| own.rank());
        ranks.max().unwrap_or(0)
    }

    /// Bytes of what the variants keep by themselves.
    pub fn own_bytes(&self) -> usize {
        self.own.iter().flatten().map(|own| own.bytes()).sum()
    }
}

/// A matrix of the base with the variants' superposed deltas.
#[derive(Debug)]
pub struct GpuLinear {
    pub base: Arc<Matrix>,
    pub variants: Arc<GpuSuperposed>,
    /// Which of a step's lists of parts is this matrix's.
    pub list: usize,
}

/// Where products leave what is between their parts: addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    pub rotated: Address,
    pub products: Address,
    pub partial: Address,
    pub counters: Address,
    /// A piece of a base's matrix, widened.
    pub widened: Address,
}

/// Outputs of a piece at most, and bytes but for a few outputs.
const PIECE: (usize, usize) = (8192, 64 << 20);

/// Outputs to a piece of a base's matrix that is widened: a multiple of what cuBLAS is at its best with.
fn piece_rows(input: usize, dtype: Dtype) -> usize {
    let (most, bytes) = PIECE;
    (bytes / (input * dtype.size()))
        .clamp(1, most)
        .next_multiple_of(64)
}

/// The parts of a matrix in a step, and where what they are multiplied with is found.
#[derive(Clone, Copy, Debug)]
pub struct Waves<'a> {
    pub of: &'a Sources<Vec<Wave>>,
    pub at: MatrixAddresses,
}

impl Waves<'_> {
    pub fn is_empty(&self) -> bool {
        self.of.by_ref().each().into_iter().all(Vec::is_empty)
    }
}

impl GpuLinear {
    /// y [rows, pitch] of `gives` = the rows' products with x [rows, input]; f32 where there are parts.
    pub fn forward(
        &self,
        device: &GpuTarget,
        (x, y, rows, pitch): (Address, Address, usize, usize),
        gives: Dtype,
        waves: Waves,
        scratch: Scratch,
    ) -> std::result::Result<(), Fault> {
        self.of_base(device, (x, y, rows, pitch), gives, scratch.widened)?;
        self.tiled(device, (x, y, pitch), (waves, false), scratch)?;
        self.dense(device, (x, y, pitch), waves, scratch)?;
        self.own(device, (x, y, pitch), waves, scratch)
    }

    /// y [rows, pitch] of `gives` = the rows' products with the base's matrix alone.
    fn of_base(
        &self,
        device: &GpuTarget,
        (x, y, rows, pitch): (Address, Address, usize, usize),
        gives: Dtype,
        widened: Address,
    ) -> std::result::Result<(), Fault> {
        let (base, out, input) = (&self.base, self.base.out, self.base.input);
        let product = |w, y, out| {
            device.gpu.gemm(Gemm {
                x,
                w,
                y,
                rows,
                out,
                input,
                pitch,
                dtype: device.dtype,
                gives,
            })
        };
        let Some(form) = base.few_bits else {
            // Rows of zeros go along where there is room for what they give.
            let all = Some(padded(out)).filter(|&all| all <= pitch);
            return product(base.data.address(), y, all.unwrap_or(out));
        };
        if rows <= MOST_ROWS && gives == Dtype::F32 {
            return FewRows {
                quants: base.data.address(),
                levels: base.levels(form),
                x,
                y,
                rows: rows as u32,
                out: out as u32,
                input: input as u32,
                pitch: pitch as u32,
            }
            .launch(&*device.gpu, form, device.dtype);
        }
        let piece = piece_rows(input, device.dtype);
        (0..out).step_by(piece).try_for_each(|first| {
            let count = piece.min(out - first);
            base.widen(device, form, (first, count), widened)?;
            product(widened, y + first * gives.size(), count)
        })
    }

    /// Bytes of a piece of the base's matrix where one is widened.
    pub fn widened_bytes(&self, dtype: Dtype) -> usize {
        let (out, input) = (self.base.out, self.base.input);
        match self.base.few_bits {
            None => 0,
            Some(_) => piece_rows(input, dtype).min(out) * input * dtype.size(),
        }
    }

    /// y [rows, pitch] f32 += what banks in tiles give for the rows' parts, or = where that is said: of rows that have parts alone.
    pub fn tiled(
        &self,
        device: &GpuTarget,
        (x, y, pitch): (Address, Address, usize),
        (waves, writes): (Waves, bool),
        scratch: Scratch,
    ) -> std::result::Result<(), Fault> {
        let (out, input) = (self.base.out, self.base.input);
        let gpu = &*device.gpu;
        let filled = waves.of.tiled.iter().filter(|wave| wave.shape.groups > 0);
        for (ordinal, wave) in filled.enumerate() {
            let split = wave.shape.split(gpu.processors(), out, input);
            BankGemm {
                x,
                y,
                banks: waves.at.banks,
                parts: wave.parts,
                groups: wave.groups,
                keys: waves.at.keys,
                outputs: waves.at.outputs,
                partial: scratch.partial,
                counters: scratch.counters,
                out: out as u32,
                pitch: pitch as u32,
                input: input as u32,
                writes: (writes && ordinal == 0).into(),
                ..BankGemm::default()
            }
            .launch(gpu, device.dtype, split, scratch.rotated)?;
        }
        Ok(())
    }

    /// The same of banks in the device's own type, one after the other.
    fn dense(
        &self,
        device: &GpuTarget,
        (x, y, pitch): (Address, Address, usize),
        waves: Waves,
        scratch: Scratch,
    ) -> std::result::Result<(), Fault> {
        let (out, input) = (self.base.out, self.base.input);
        let gpu = &*device.gpu;
        for wave in &waves.of.dense {
            for (bank, parts) in &wave.banks {
                let Some((matrix, _)) = self.variants.banks.get(bank) else {
                    continue;
                };
                let first = wave.parts + parts.start * size_of::<PartFacts>();
                SignIn {
                    x,
                    out: scratch.rotated,
                    parts: first,
                    keys: waves.at.keys,
                    input: input as u32,
                    unused: 0,
                }
                .launch(gpu, device.dtype, parts.len())?;
                gpu.gemm(Gemm {
                    x: scratch.rotated,
                    w: matrix.data.address(),
                    y: scratch.products,
                    rows: parts.len(),
                    out,
                    input,
                    pitch: out,
                    dtype: device.dtype,
                    gives: Dtype::F32,
                })?;
                SignOut {
                    products: scratch.products,
                    y,
                    parts: first,
                    outputs: waves.at.outputs,
                    out: out as u32,
                    pitch: pitch as u32,
                }
                .launch(gpu, parts.len())?;
            }
        }
        Ok(())
    }

    /// y [rows, pitch] f32 += what variants keep by themselves, for the rows' parts.
    pub fn own(
        &self,
        device: &GpuTarget,
        (x, y, pitch): (Address, Address, usize),
        waves: Waves,
        scratch: Scratch,
    ) -> std::result::Result<(), Fault> {
        let product = |wave: &Wave| {
            OwnProduct {
                x,
                y,
                own: waves.at.own,
                parts: wave.parts,
                part_count: wave.shape.parts,
                groups: wave.groups,
                group_count: wave.shape.groups,
                tier: wave.shape.tier,
                out: self.base.out,
                input: self.base.input,
                y_pitch: pitch,
                ranks: self.variants.ranks(),
                rotated: scratch.rotated,
                thin: scratch.products,
            }
            .launch(&*device.gpu, device.dtype)
        };
        waves.of.own.iter().try_for_each(product)
    }

    /// x [rows, width] f32 += what the parts' variants keep of the rows of `tokens`, a wave after the other.
    pub fn embed(
        &self,
        gpu: &dyn GpuDevice,
        (x, tokens): (Address, Address),
        waves: Waves,
    ) -> std::result::Result<(), Fault> {
        let embed = |wave: &Wave| {
            EmbedOwn {
                x,
                tokens,
                parts: wave.parts,
                own: waves.at.own,
                vocab: self.base.out as u32,
                width: self.base.input as u32,
                ..EmbedOwn::default()
            }
            .launch(gpu, wave.shape.parts)
        };
        waves.of.own.iter().try_for_each(embed)
    }
}

/// The base's matrix plus the mix's retrieved deltas, as one matrix: a pass over both for every variant of the mix.
pub fn materialise(
    device: &GpuTarget,
    base: &Matrix,
    (variants, tables): (&GpuSuperposed, MatrixAddresses),
    mix: &Mix,
) -> Result<Matrix> {
    let gpu = &device.gpu;
    let target = device.matrix(base.out, base.input)?;
    let mut source = base.data.address();
    if let Some(form) = base.few_bits {
        source = target.data.address();
        base.widen(device, form, (0, base.out), source)?;
    }
    for &(variant, weight) in &mix.0 {
        let index = variant.0 as usize;
        let place = |placement: &Placement| placement.get(index).copied().flatten();
        if let Some((slot, _)) = place(&variants.placement.own) {
            RetrieveOwn {
                base: source,
                target: target.data.address(),
                own: tables.own + slot as usize * size_of::<OwnFacts>(),
                out: base.out as u32,
                input: base.input as u32,
                weight,
                ..RetrieveOwn::default()
            }
            .launch(&**gpu, device.dtype)?;
            source = target.data.address();
            continue;
        }
        let [tiled, dense] = [&variants.placement.tiled, &variants.placement.dense].map(place);
        let Some((slot, bank)) = tiled.or(dense) else {
            continue;
        };
        let Some((matrix, _)) = variants.banks.get(&bank) else {
            return Err(Error::NoBank {
                bank: bank as usize,
            });
        };
        let (targets, ids, weights) = (
            Buffer::from(gpu, &[target.data.address()])?,
            Buffer::from(gpu, &[slot])?,
            Buffer::from(gpu, &[weight])?,
        );
        Retrieve {
            base: source,
            bank: matrix.data.address(),
            targets: targets.address(),
            variants: ids.address(),
            weights: weights.address(),
            keys: tables.keys,
            outputs: tables.outputs,
            out: base.out as u32,
            input: base.input as u32,
            count: 1,
            unused: 0,
        }
        .launch(&**gpu, device.dtype, tiled.is_some())?;
        source = target.data.address();
    }
    if source == base.data.address() {
        gpu.copy(target.data.address(), source, base.data.bytes())?;
    }
    Ok(target)
}
