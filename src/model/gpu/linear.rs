//! A matrix of the base and of every variant on a device: see [`crate::model::linear`] for the mathematics.

use super::pack::Wave;
use super::weights::{Device, GpuBank, Matrix, padded};
use crate::model::batch::{Mix, VariantId};
use crate::model::weights::VariantWeights;
use crate::ops::gpu::draw::key_words;
use crate::ops::gpu::products::{BankGemm, Room, RotateIn, RotateOut};
use crate::ops::gpu::superposition::Retrieve;
use crate::ops::gpu::{Buffer, Fault, Gemm};
use crate::transform::{self, Side, Transform};
use candle_core::{Result, bail};
use half::bf16;
use std::sync::Arc;

/// For every variant, the index of the bank it lies in among a matrix's banks.
pub type Placement = Vec<Option<u32>>;

/// What the variants have of one matrix.
#[derive(Debug)]
pub struct GpuSuperposed {
    pub banks: Vec<Arc<Matrix>>,
    pub tiled: bool,
    pub placement: Placement,
    /// Addresses of the banks, u64.
    pub addresses: Buffer,
    /// [variants][8] u32: keys of the input side's signs.
    pub keys: Buffer,
    /// [variants][out] bf16: c a l.
    pub outputs: Buffer,
}

impl GpuSuperposed {
    /// Tensor `name` [out, input] of `variants`, whose [`VariantId`] is their index, in those of `banks` that hold it.
    pub fn of(
        device: &Device,
        (name, out, input): (&str, usize, usize),
        banks: &[Arc<GpuBank>],
        variants: &[VariantWeights],
    ) -> Result<Self> {
        let holding: Vec<usize> = (0..banks.len())
            .filter(|&b| banks[b].matrices.contains_key(name))
            .collect();
        let mut placement = Vec::with_capacity(variants.len());
        let mut outputs = vec![bf16::ZERO; variants.len() * out];
        let mut keys = Vec::with_capacity(8 * variants.len());
        for (index, variant) in variants.iter().enumerate() {
            keys.extend(key_words(&transform::key(variant.seed, name, Side::Input)));
            let bank = holding.iter().position(|bank| variant.banks.contains(bank));
            match (variant.gains.get(name), bank) {
                (Some(gains), Some(_)) => {
                    if gains.len() != out {
                        bail!("{} gains for {name}, which has {out} rows", gains.len())
                    }
                    let mut row: Vec<f32> = gains.iter().map(|gain| gain * variant.scale).collect();
                    let transform = Transform::new(variant.seed, name, [out, input]);
                    transform.output.apply(&mut row);
                    for (output, value) in outputs[index * out..].iter_mut().zip(row) {
                        *output = bf16::from_f32(value);
                    }
                }
                (Some(_), None) => bail!("variant {index} lies in no bank that holds {name}"),
                (None, _) => {}
            }
            placement.push(
                bank.filter(|_| variant.gains.contains_key(name))
                    .map(|bank| bank as u32),
            );
        }
        let banks_of: Vec<Arc<Matrix>> = holding.iter().map(|&b| banks[b].matrices[name].clone()).collect();
        if banks_of.iter().any(|bank| (bank.out, bank.input) != (out, input)) {
            bail!("a bank holds {name} in another shape than {out} x {input}")
        }
        let addresses: Vec<u64> = banks_of.iter().map(|bank| bank.data.address()).collect();
        let machine = &device.machine;
        Ok(Self {
            tiled: holding.first().is_some_and(|&b| banks[b].tiled),
            banks: banks_of,
            placement,
            addresses: Buffer::from(machine, &addresses)?,
            keys: Buffer::from(machine, &keys)?,
            outputs: Buffer::from(machine, &outputs)?,
        })
    }

    /// Bytes of the variants' keys and gains.
    pub fn variant_bytes(&self) -> usize {
        self.keys.bytes() + self.outputs.bytes()
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

impl GpuLinear {
    /// y [rows, pitch] f32 = the rows' products with x [rows, input].
    pub fn forward(
        &self,
        device: &Device,
        (x, y, rows, pitch): (u64, u64, usize, usize),
        waves: &[Wave],
        scratch: Scratch,
    ) -> std::result::Result<(), Fault> {
        let (out, input) = (self.base.out, self.base.input);
        let gemm = Gemm {
            x,
            w: self.base.data.address(),
            y,
            rows,
            out,
            input,
            pitch,
            dtype: device.dtype,
        };
        let machine = &*device.machine;
        machine.gemm(Gemm {
            // Rows of zeros go along where there is room for what they give.
            out: Some(padded(out)).filter(|&all| all <= pitch).unwrap_or(out),
            ..gemm
        })?;
        let variants = &self.variants;
        for wave in waves {
            if variants.tiled {
                if wave.shape.groups == 0 {
                    continue;
                }
                let split = wave.shape.split(Room::of(machine), out, input);
                BankGemm {
                    x,
                    y,
                    banks: variants.addresses.address(),
                    parts: wave.parts,
                    groups: wave.groups,
                    keys: variants.keys.address(),
                    outputs: variants.outputs.address(),
                    partial: scratch.partial,
                    counters: scratch.counters,
                    out: out as u32,
                    pitch: pitch as u32,
                    input: input as u32,
                    ..BankGemm::default()
                }
                .launch(machine, device.dtype, split, (wave.shape.parts, scratch.rotated))?;
                continue;
            }
            for (bank, parts) in &wave.dense {
                let first = wave.parts + 16 * parts.start as u64;
                RotateIn {
                    x,
                    out: scratch.rotated,
                    parts: first,
                    keys: variants.keys.address(),
                    input: input as u32,
                    unused: 0,
                }
                .launch(machine, device.dtype, parts.len())?;
                machine.gemm(Gemm {
                    x: scratch.rotated,
                    w: variants.banks[*bank as usize].data.address(),
                    y: scratch.products,
                    rows: parts.len(),
                    pitch: out,
                    ..gemm
                })?;
                RotateOut {
                    products: scratch.products,
                    y,
                    parts: first,
                    outputs: variants.outputs.address(),
                    out: out as u32,
                    pitch: pitch as u32,
                }
                .launch(machine, parts.len())?;
            }
        }
        Ok(())
    }
}

/// The base's matrix plus the mix's retrieved deltas, as one matrix: a pass over both for every variant of the mix.
pub fn materialise(device: &Device, base: &Matrix, variants: &GpuSuperposed, mix: &Mix) -> Result<Matrix> {
    let machine = &device.machine;
    let target = device.matrix(base.out, base.input)?;
    let held = |part: &&(VariantId, f32)| variants.placement.get(part.0.0 as usize).is_some_and(Option::is_some);
    let mut source = base.data.address();
    for &(variant, weight) in mix.0.iter().filter(held) {
        let Some(bank) = variants.placement[variant.0 as usize] else {
            continue;
        };
        let (targets, ids, weights) = (
            Buffer::from(machine, &[target.data.address()])?,
            Buffer::from(machine, &[variant.0])?,
            Buffer::from(machine, &[weight])?,
        );
        Retrieve {
            base: source,
            bank: variants.banks[bank as usize].data.address(),
            targets: targets.address(),
            variants: ids.address(),
            weights: weights.address(),
            keys: variants.keys.address(),
            outputs: variants.outputs.address(),
            out: base.out as u32,
            input: base.input as u32,
            count: 1,
            unused: 0,
        }
        .launch(&**machine, device.dtype, variants.tiled)?;
        source = target.data.address();
    }
    if source == base.data.address() {
        machine.copy(target.data.address(), source, base.data.bytes())?;
    }
    Ok(target)
}
