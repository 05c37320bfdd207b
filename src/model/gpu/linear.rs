//! A matrix of the base and of every variant on a device: see [`crate::model::linear`] for the mathematics.

use super::pack::Wave;
use super::variant::{GpuVariant, MatrixSlots};
use super::weights::{GpuBank, GpuBase};
use crate::model::batch::Mix;
use crate::model::error::{Error, Result};
use crate::model::target::{GpuTarget, Matrix, padded};
use crate::model::variant::Placed;
use crate::ops::gpu::own::{EmbedOwn, GpuOwn, OwnFacts, OwnProduct, RetrieveOwn};
use crate::ops::gpu::products::{BankGemm, SignIn, SignOut};
use crate::ops::gpu::superposition::Retrieve;
use crate::ops::gpu::{Buffer, Dtype, Fault, Gemm, GpuDevice};
use std::sync::Arc;

/// For every variant, its slot and the index of the bank it lies in among a matrix's banks.
pub type Placement = Vec<Option<(u32, u32)>>;

/// What the variants have of one matrix.
#[derive(Debug)]
pub struct GpuSuperposed {
    pub banks: Vec<Arc<Matrix>>,
    pub tiled: bool,
    pub placement: Placement,
    /// Addresses of the banks, u64.
    pub addresses: Buffer,
    /// The variants' keys and gains; none without variants.
    slots: Option<Arc<MatrixSlots>>,
    /// What each variant keeps by itself.
    own: Vec<Option<Arc<GpuOwn>>>,
    /// The same as kernels see it, [variants].
    own_facts: Buffer,
}

impl GpuSuperposed {
    /// Tensor `name` [out, input] of `variants`, whose [`VariantId`] is their index, in those of `banks` that hold it.
    pub fn of(
        base: &GpuBase,
        (name, out, input): (&str, usize, usize),
        banks: &[Arc<GpuBank>],
        variants: &[Placed<GpuVariant>],
    ) -> Result<Self> {
        let holding: Vec<usize> = (0..banks.len())
            .filter(|&b| banks[b].matrices.contains_key(name))
            .collect();
        let mut placement = Vec::with_capacity(variants.len());
        for (index, variant) in variants.iter().enumerate() {
            let mut held = variant
                .banks
                .iter()
                .filter_map(|bank| holding.binary_search(bank).ok());
            if let Some(own) = variant.own.own.get(name)
                && own.shape() != (out, input)
            {
                return Err(Error::HeldShape {
                    holder: "a variant",
                    name: name.to_owned(),
                    shape: (out, input),
                });
            }
            placement.push(match (variant.own.has(name), held.next()) {
                (true, Some(bank)) => Some((variant.own.slot, bank as u32)),
                (true, None) => {
                    return Err(Error::InNoBank {
                        variant: index,
                        name: name.to_owned(),
                    });
                }
                (false, _) => None,
            });
        }
        let banks_of: Vec<Arc<Matrix>> = holding
            .iter()
            .map(|&b| banks[b].matrices[name].clone())
            .collect();
        if banks_of
            .iter()
            .any(|bank| (bank.out, bank.input) != (out, input))
        {
            return Err(Error::HeldShape {
                holder: "a bank",
                name: name.to_owned(),
                shape: (out, input),
            });
        }
        let addresses: Vec<u64> = banks_of.iter().map(|bank| bank.data.address()).collect();
        let tiled = holding.first().is_some_and(|&b| banks[b].tiled);
        let own: Vec<Option<Arc<GpuOwn>>> = (variants.iter())
            .map(|variant| variant.own.own.get(name).cloned())
            .collect();
        let facts = own
            .iter()
            .map(|own| own.as_ref().map_or(OwnFacts::default(), |own| own.facts()));
        Ok(Self {
            own_facts: Buffer::from(&base.device.gpu, &facts.collect::<Vec<_>>())?,
            own,
            tiled,
            banks: banks_of,
            slots: base.slots.table(name).filter(|_| !variants.is_empty()),
            placement,
            addresses: Buffer::from(&base.device.gpu, &addresses)?,
        })
    }

    /// Address of [slots][8] u32: keys of the input side's signs.
    pub fn keys(&self) -> u64 {
        self.slots.as_ref().map_or(0, |slots| slots.keys.address())
    }

    /// Address of [slots][out] bf16: c a l.
    pub fn outputs(&self) -> u64 {
        self.slots
            .as_ref()
            .map_or(0, |slots| slots.outputs.address())
    }

    /// Variants that keep this matrix by themselves: each is its own bank.
    pub fn own_placement(&self) -> Placement {
        let place = |(index, own): (u32, &Option<_>)| own.as_ref().map(|_| (index, index));
        (0..).zip(&self.own).map(place).collect()
    }

    /// The highest rank of what a variant keeps by itself.
    pub fn ranks(&self) -> usize {
        self.own
            .iter()
            .flatten()
            .map(|own| own.rank())
            .max()
            .unwrap_or(0)
    }

    /// Bytes of the variants' keys and gains, and of what they keep by themselves.
    pub fn variant_bytes(&self) -> usize {
        let bytes = |slots: &Arc<MatrixSlots>| slots.keys.bytes() + slots.outputs.bytes();
        let own = self.own.iter().flatten().map(|own| own.bytes());
        own.sum::<usize>() + self.own_facts.bytes() + self.slots.as_ref().map_or(0, bytes)
    }

    /// x [rows, width] f32 += what the parts' variants keep of the rows of `tokens`, a wave after the other.
    pub fn embed(
        &self,
        gpu: &dyn GpuDevice,
        (x, tokens): (u64, u64),
        (vocab, width): (usize, usize),
        waves: &[Wave],
    ) -> std::result::Result<(), Fault> {
        let embed = |wave: &Wave| {
            EmbedOwn {
                x,
                tokens,
                parts: wave.parts,
                own: self.own_facts.address(),
                vocab: vocab as u32,
                width: width as u32,
                ..EmbedOwn::default()
            }
            .launch(gpu, wave.shape.parts)
        };
        waves.iter().try_for_each(embed)
    }
}

/// A matrix of the base with the variants' superposed deltas.
#[derive(Debug)]
pub struct GpuLinear {
    pub base: Arc<Matrix>,
    pub variants: GpuSuperposed,
    /// Which of a step's lists of parts is this matrix's.
    pub list: usize,
}

/// Where products leave what is between their parts: addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    pub rotated: u64,
    pub products: u64,
    pub partial: u64,
    pub counters: u64,
}

/// The parts of a matrix in a step.
#[derive(Clone, Copy, Debug)]
pub struct Waves<'a> {
    /// Of banks.
    pub banks: &'a [Wave],
    /// Of what variants keep by themselves.
    pub own: &'a [Wave],
}

impl GpuLinear {
    /// y [rows, pitch] of `gives` = the rows' products with x [rows, input]; f32 where there are parts.
    pub fn forward(
        &self,
        device: &GpuTarget,
        (x, y, rows, pitch): (u64, u64, usize, usize),
        gives: Dtype,
        waves: Waves,
        scratch: Scratch,
    ) -> std::result::Result<(), Fault> {
        let out = self.base.out;
        device.gpu.gemm(Gemm {
            x,
            w: self.base.data.address(),
            y,
            rows,
            // Rows of zeros go along where there is room for what they give.
            out: Some(padded(out)).filter(|&all| all <= pitch).unwrap_or(out),
            input: self.base.input,
            pitch,
            dtype: device.dtype,
            gives,
        })?;
        self.banks(device, (x, y, pitch), (waves.banks, false), scratch)?;
        self.own(device, (x, y, pitch), waves.own, scratch)
    }

    /// y [rows, pitch] f32 += what banks give for the rows' parts, or = where that is said and banks are tiled: of rows that have
    /// parts alone.
    pub fn banks(
        &self,
        device: &GpuTarget,
        (x, y, pitch): (u64, u64, usize),
        (waves, writes): (&[Wave], bool),
        scratch: Scratch,
    ) -> std::result::Result<(), Fault> {
        let (out, input) = (self.base.out, self.base.input);
        let (gpu, variants) = (&*device.gpu, &self.variants);
        for (ordinal, wave) in waves.iter().enumerate() {
            if variants.tiled {
                if wave.shape.groups == 0 {
                    continue;
                }
                let split = wave.shape.split(gpu.processors(), out, input);
                BankGemm {
                    x,
                    y,
                    banks: variants.addresses.address(),
                    parts: wave.parts,
                    groups: wave.groups,
                    keys: variants.keys(),
                    outputs: variants.outputs(),
                    partial: scratch.partial,
                    counters: scratch.counters,
                    out: out as u32,
                    pitch: pitch as u32,
                    input: input as u32,
                    writes: (writes && ordinal == 0).into(),
                    ..BankGemm::default()
                }
                .launch(gpu, device.dtype, split, scratch.rotated)?;
                continue;
            }
            for (bank, parts) in &wave.dense {
                let first = wave.parts + 16 * parts.start as u64;
                SignIn {
                    x,
                    out: scratch.rotated,
                    parts: first,
                    keys: variants.keys(),
                    input: input as u32,
                    unused: 0,
                }
                .launch(gpu, device.dtype, parts.len())?;
                gpu.gemm(Gemm {
                    x: scratch.rotated,
                    w: variants.banks[*bank as usize].data.address(),
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
                    outputs: variants.outputs(),
                    out: out as u32,
                    pitch: pitch as u32,
                }
                .launch(gpu, parts.len())?;
            }
        }
        Ok(())
    }
}

impl GpuLinear {
    /// y [rows, pitch] f32 += what variants keep by themselves, for the rows' parts.
    pub fn own(
        &self,
        device: &GpuTarget,
        (x, y, pitch): (u64, u64, usize),
        waves: &[Wave],
        scratch: Scratch,
    ) -> std::result::Result<(), Fault> {
        let product = |wave: &Wave| {
            OwnProduct {
                x,
                y,
                own: self.variants.own_facts.address(),
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
        waves.iter().try_for_each(product)
    }
}

/// The base's matrix plus the mix's retrieved deltas, as one matrix: a pass over both for every variant of the mix.
pub fn materialise(
    device: &GpuTarget,
    base: &Matrix,
    variants: &GpuSuperposed,
    mix: &Mix,
) -> Result<Matrix> {
    let gpu = &device.gpu;
    let target = device.matrix(base.out, base.input)?;
    let mut source = base.data.address();
    for &(variant, weight) in &mix.0 {
        let own = variants.own.get(variant.0 as usize);
        if let Some(Some(_)) = own {
            let at = variant.0 as usize * size_of::<OwnFacts>();
            RetrieveOwn {
                base: source,
                target: target.data.address(),
                own: variants.own_facts.address() + at as u64,
                out: base.out as u32,
                input: base.input as u32,
                weight,
                ..RetrieveOwn::default()
            }
            .launch(&**gpu, device.dtype)?;
            source = target.data.address();
            continue;
        }
        let Some(&Some((slot, bank))) = variants.placement.get(variant.0 as usize) else {
            continue;
        };
        let (targets, ids, weights) = (
            Buffer::from(gpu, &[target.data.address()])?,
            Buffer::from(gpu, &[slot])?,
            Buffer::from(gpu, &[weight])?,
        );
        Retrieve {
            base: source,
            bank: variants.banks[bank as usize].data.address(),
            targets: targets.address(),
            variants: ids.address(),
            weights: weights.address(),
            keys: variants.keys(),
            outputs: variants.outputs(),
            out: base.out as u32,
            input: base.input as u32,
            count: 1,
            unused: 0,
        }
        .launch(&**gpu, device.dtype, variants.tiled)?;
        source = target.data.address();
    }
    if source == base.data.address() {
        gpu.copy(target.data.address(), source, base.data.bytes())?;
    }
    Ok(target)
}
