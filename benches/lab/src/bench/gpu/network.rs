//! Networks of random weights, made where they are used.

use super::Bench;
use anyhow::Result;
use choir::model::architecture::dit::EMBEDDING;
use choir::model::base::{Dense, read};
use choir::model::gpu::{GpuBank, GpuBase, GpuDit, GpuTarget, Matrix, on_device, padded};
use choir::model::{BaseWeights, DitConfig, ServedBank, VariantWeights};
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

/// What lies on the device: name, outputs, inputs.
fn matrices(config: &DitConfig) -> impl Iterator<Item = (String, usize, usize)> {
    let tensors = config.tensors().into_iter();
    tensors.filter_map(|(name, shape)| match shape[..] {
        [out, input] if on_device(&name) => Some((name, out, input)),
        _ => None,
    })
}

/// Bytes of the base's matrices and of one bank's.
pub fn bytes(config: &DitConfig) -> (usize, usize) {
    matrices(config).fold((0, 0), |(base, bank), (_, out, input)| {
        (base + 2 * out * input, bank + tile_bytes(out, input))
    })
}

/// Every matrix in the form that `make` gives it for its outputs, inputs and size of weights.
fn all(
    config: &DitConfig,
    make: impl Fn(usize, usize, f32) -> Result<Buffer, Fault>,
) -> Result<BTreeMap<String, Arc<Matrix>>, Fault> {
    matrices(config)
        .map(|(name, out, input)| {
            let scale = if name == EMBEDDING {
                0.5
            } else {
                1.0 / (input as f32).sqrt()
            };
            let data = make(out, input, scale)?;
            Ok((name, Arc::new(Matrix { out, input, data })))
        })
        .collect()
}

/// A network in bf16 with `banks` banks in tiles, [`TO_A_BANK`] variants to each, in the order of banks.
pub fn network(bench: &Bench, config: &DitConfig, banks: usize) -> Result<GpuDit> {
    let device = GpuTarget {
        gpu: bench.gpu.clone(),
        dtype: Dtype::Bf16,
    };
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let mut random = stream(&name);
        let middle = if name.contains("norm") { 1.0 } else { 0.0 };
        let count = if on_device(&name) {
            0
        } else {
            shape.iter().product()
        };
        let data = (0..count).map(|_| (middle + 0.02 * (random.uniform() - 0.5)) as f32);
        let data = data.collect();
        (name, (shape, data))
    };
    let tensors: Dense = config.tensors().into_par_iter().map(tensor).collect();
    let base = GpuBase {
        host: Arc::new(BaseWeights::load(
            config.architecture()?,
            Quantisation::F32,
            |spec| {
                let here = !on_device(&spec.name);
                here.then(|| read(&tensors, spec)).transpose()
            },
        )?),
        matrices: all(config, |out, input, scale| {
            bench.noise(Dtype::Bf16, padded(out) * input, scale)
        })?,
        slots: Arc::default(),
        device,
    };
    let banks: Vec<Arc<GpuBank>> = (0..banks)
        .map(|_| {
            Ok(Arc::new(GpuBank {
                host: Arc::new(ServedBank::build(Quantisation::Q4K, [])?),
                matrices: all(config, |out, input, scale| bench.tiles(out, input, scale))?,
                tiled: true,
            }))
        })
        .collect::<Result<_>>()?;
    let variants = (0..TO_A_BANK * banks.len())
        .into_par_iter()
        .map(|index| variant(config, index))
        .collect();
    Ok(GpuDit::new(Arc::new(base), &banks, variants)?)
}

fn variant(config: &DitConfig, index: usize) -> VariantWeights {
    let mut random = stream(&format!("variant {index}"));
    let mut numbers = |count: usize| {
        (0..count)
            .map(|_| (0.02 * random.uniform()) as f32)
            .collect()
    };
    let (mut gains, mut vectors) = (BTreeMap::new(), BTreeMap::new());
    for (name, shape) in config.tensors() {
        if on_device(&name) {
            gains.insert(name, numbers(shape[0]));
        } else if let [length] = shape[..] {
            vectors.insert(name, numbers(length));
        }
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
