//! Networks of random weights, made where they are used.

use super::Bench;
use anyhow::Result;
use choir::model::architecture::{MatrixRole, TensorSpec};
use choir::model::base::{Dense, read};
use choir::model::gpu::{GpuBank, GpuBase, GpuNetwork, GpuTarget, Matrix, padded};
use choir::model::{Architecture, BaseWeights, ServedBank, VariantWeights};
use choir::ops::gpu::tiles::tile_bytes;
use choir::ops::gpu::{Buffer, Dtype, Fault};
use choir::ops::quantized::Quantisation;
use choir::rng::{Key, Stream};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Variants that share a bank.
pub const TO_A_BANK: usize = 4;

fn stream(name: &str) -> Stream {
    Stream::new(Key::derive(&[b"choir/bench/network", name.as_bytes()]))
}

/// What lies on the device, with its outputs and inputs.
fn matrices(of: &Architecture) -> impl Iterator<Item = (&TensorSpec, usize, usize)> {
    of.tensors.iter().filter_map(|spec| match spec.shape[..] {
        [out, input] if spec.role.is_matrix() => Some((spec, out, input)),
        _ => None,
    })
}

/// Bytes of the base's matrices and of one bank's.
pub fn bytes(of: &Architecture) -> (usize, usize) {
    matrices(of).fold((0, 0), |(base, bank), (_, out, input)| {
        (base + 2 * out * input, bank + tile_bytes(out, input))
    })
}

/// Every matrix in the form that `make` gives it for its outputs, inputs and size of weights.
fn all(
    of: &Architecture,
    make: impl Fn(usize, usize, f32) -> Result<Buffer, Fault>,
) -> Result<BTreeMap<String, Arc<Matrix>>, Fault> {
    matrices(of)
        .map(|(spec, out, input)| {
            let scale = match spec.role {
                MatrixRole::Embedding => 0.5,
                _ => 1.0 / (input as f32).sqrt(),
            };
            let matrix = Matrix {
                out,
                input,
                few_bits: None,
                data: make(out, input, scale)?,
            };
            Ok((spec.name.clone(), Arc::new(matrix)))
        })
        .collect()
}

/// All of a base that is no matrix.
fn host(of: &Architecture) -> Result<Arc<BaseWeights>> {
    let tensor = |spec: &TensorSpec| {
        let (name, shape) = (spec.name.clone(), spec.shape.clone());
        let mut random = stream(&name);
        let middle = if name.contains("norm") { 1.0 } else { 0.0 };
        let count = match spec.role.is_matrix() {
            true => 0,
            false => shape.iter().product(),
        };
        let data = (0..count).map(|_| (middle + 0.02 * (random.uniform() - 0.5)) as f32);
        let data = data.collect();
        (name, (shape, data))
    };
    let tensors: Dense = of.tensors.par_iter().map(tensor).collect();
    let host = BaseWeights::load(of.clone(), Quantisation::F32, |spec| {
        let here = !spec.role.is_matrix();
        here.then(|| read(&tensors, spec)).transpose()
    })?;
    Ok(Arc::new(host))
}

/// A network in bf16, but for the base's matrices, which are in `form`; without variants.
pub fn in_few_bits(bench: &Bench, of: &Architecture, form: Quantisation) -> Result<GpuNetwork> {
    let device = GpuTarget {
        base: form,
        ..GpuTarget::new(bench.gpu.clone(), Dtype::Bf16)
    };
    let mut random = stream("few bits");
    let numbers: Vec<f32> = (0..65_521)
        .map(|_| (random.uniform() - 0.5) as f32)
        .collect();
    let matrices = matrices(of).map(|(spec, out, input)| {
        let scale = 1.0 / (input as f32).sqrt();
        let number = |at: usize| scale * numbers[at % numbers.len()];
        let data: Vec<f32> = (0..out * input).into_par_iter().map(number).collect();
        Ok((
            spec.name.clone(),
            Arc::new(device.of_base(&data, out, input)?),
        ))
    });
    let matrices = matrices.collect::<Result<_>>()?;
    let base = GpuBase::of(device.clone(), host(of)?, matrices)?;
    Ok(GpuNetwork::new(Arc::new(base), &[], Vec::new())?)
}

/// A network in bf16 with `banks` banks in tiles, [`TO_A_BANK`] variants to each, in the order of banks.
pub fn network(bench: &Bench, of: &Architecture, banks: usize) -> Result<GpuNetwork> {
    let device = GpuTarget::new(bench.gpu.clone(), Dtype::Bf16);
    let noise = |out, input, scale| bench.noise(Dtype::Bf16, padded(out) * input, scale);
    let base = GpuBase::of(device, host(of)?, all(of, noise)?)?;
    let banks: Vec<Arc<GpuBank>> = (0..banks)
        .map(|_| {
            let matrices = all(of, |out, input, scale| bench.tiles(out, input, scale))?;
            let host = ServedBank::build(Quantisation::Q4K, [])?;
            Ok(Arc::new(GpuBank::of(&base, host, matrices, true)?))
        })
        .collect::<Result<_>>()?;
    let variants = (0..TO_A_BANK * banks.len())
        .into_par_iter()
        .map(|index| variant(of, index))
        .collect();
    Ok(GpuNetwork::new(Arc::new(base), &banks, variants)?)
}

fn variant(of: &Architecture, index: usize) -> VariantWeights {
    let mut random = stream(&format!("variant {index}"));
    let mut numbers = |count: usize| {
        (0..count)
            .map(|_| (0.02 * random.uniform()) as f32)
            .collect()
    };
    let (mut gains, mut vectors) = (BTreeMap::new(), BTreeMap::new());
    for TensorSpec { name, shape, .. } in &of.tensors {
        match shape[..] {
            [length] => vectors.insert(name.clone(), numbers(length)),
            [out, _] if matrices(of).any(|(spec, ..)| spec.name == *name) => {
                gains.insert(name.clone(), numbers(out))
            }
            _ => None,
        };
    }
    VariantWeights {
        seed: index as u64,
        scale: 1.0,
        banks: vec![index / TO_A_BANK],
        gains,
        kept: BTreeMap::new(),
        vectors,
    }
}
