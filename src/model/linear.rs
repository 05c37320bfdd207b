//! A linear layer of the base and of every variant at once.
//!
//! ```text
//! y = W_0 x + sum over the row's parts of  weight · c_k · (a_k l_k) ⊙ (S_b (r_k ⊙ x))
//! ```
//!
//! The first term is one product that all rows share; the second is one product per bank touched, with the
//! rows of that bank only. A base row takes no part in it.

use super::VariantId;
use super::weights::{ServedBank, VariantWeights};
use crate::ops::quantized::{Rotated, Served};
use crate::transform::{Signs, Transform};
use candle_core::{Result, bail};
use half::bf16;
use rayon::prelude::*;
use std::sync::Arc;

/// One variant's share of one row of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub row: usize,
    pub variant: VariantId,
    pub weight: f32,
}

/// What one variant adds to one matrix: where its delta lies and how to read it back.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Index into the matrix's banks.
    bank: usize,
    /// r_k, [in].
    input: Signs,
    /// c_k a_k l_k, [out]. Eight bits of a gain are more than the bank's four need.
    output: Vec<bf16>,
}

impl Rotation {
    /// The rotation of tensor `name` [out, in] under `seed`, with gains a_k [out] and scale c_k.
    pub fn new(bank: usize, seed: u64, name: &str, gains: &[f32], input: usize, scale: f32) -> Self {
        let transform = Transform::new(seed, name, [gains.len(), input]);
        let mut output: Vec<f32> = gains.iter().map(|gain| gain * scale).collect();
        transform.output.apply(&mut output);
        Self {
            bank,
            input: transform.input,
            output: output.into_iter().map(bf16::from_f32).collect(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.input.words()) + size_of_val(&self.output[..])
    }
}

/// One matrix of every variant: the banks that hold it and each variant's rotation (none where the variant has
/// no delta for it).
#[derive(Clone, Debug, Default)]
pub struct Superposed {
    pub banks: Vec<Arc<Served>>,
    pub rotations: Vec<Option<Rotation>>,
}

impl Superposed {
    /// Tensor `name` of `variants`, whose [`VariantId`] is their index, in those of `banks` that hold it.
    pub fn of(name: &str, banks: &[Arc<ServedBank>], variants: &[VariantWeights]) -> Result<Self> {
        let holding: Vec<usize> = (0..banks.len())
            .filter(|&b| banks[b].tensors.contains_key(name))
            .collect();
        let mut rotations = Vec::with_capacity(variants.len());
        for (index, variant) in variants.iter().enumerate() {
            let bank = holding.iter().position(|bank| variant.banks.contains(bank));
            rotations.push(match (variant.gains.get(name), bank) {
                (Some(gains), Some(bank)) => {
                    let (out, input) = banks[holding[bank]].tensors[name].shape();
                    if gains.len() != out {
                        bail!("{} gains for {name}, which has {out} rows", gains.len())
                    }
                    Some(Rotation::new(bank, variant.seed, name, gains, input, variant.scale))
                }
                (Some(_), None) => bail!("variant {index} lies in no bank that holds {name}"),
                (None, _) => None,
            });
        }
        Ok(Superposed {
            banks: holding.iter().map(|&b| banks[b].tensors[name].clone()).collect(),
            rotations,
        })
    }

    /// Bytes of a variant's signs and gains.
    pub fn variant_bytes(&self, variant: VariantId) -> usize {
        let rotation = self.rotations.get(variant.0 as usize);
        rotation.and_then(Option::as_ref).map_or(0, Rotation::bytes)
    }

    fn rotation(&self, variant: VariantId) -> Result<Option<&Rotation>> {
        match self.rotations.get(variant.0 as usize) {
            Some(rotation) => Ok(rotation.as_ref()),
            None => bail!("no variant {} in this instance", variant.0),
        }
    }

    /// Adds the parts' retrieved products to y [rows, out], given x [rows, in].
    pub fn add_products(&self, x: &[f32], parts: &[Part], y: &mut [f32]) -> Result<()> {
        for (index, bank) in self.banks.iter().enumerate() {
            let mut touched = Vec::new();
            for part in parts {
                if let Some(rotation) = self.rotation(part.variant)?.filter(|rotation| rotation.bank == index) {
                    touched.push(Rotated {
                        row: part.row,
                        input: &rotation.input,
                        output: &rotation.output,
                        weight: part.weight,
                    });
                }
            }
            if !touched.is_empty() {
                bank.add_rotated(x, &touched, y)?;
            }
        }
        Ok(())
    }

    /// Adds `weight` times row `index` of the variant's retrieved delta to `target` [in].
    pub fn add_row(&self, variant: VariantId, weight: f32, index: usize, target: &mut [f32]) -> Result<()> {
        if let Some(rotation) = self.rotation(variant)? {
            let mut row = vec![0f32; target.len()];
            self.banks[rotation.bank].row(index, &mut row);
            rotation.input.apply(&mut row);
            let factor = weight * rotation.output[index].to_f32();
            for (t, d) in target.iter_mut().zip(&row) {
                *t = factor.mul_add(*d, *t);
            }
        }
        Ok(())
    }

    /// Adds `weight` times the variant's whole retrieved delta to `target` [out, in].
    pub fn add_matrix(&self, variant: VariantId, weight: f32, input: usize, target: &mut [f32]) -> Result<()> {
        target
            .par_chunks_mut(input)
            .enumerate()
            .try_for_each(|(row, target)| self.add_row(variant, weight, row, target))
    }
}

/// A matrix of the base with the variants' superposed deltas.
#[derive(Clone, Debug)]
pub struct SuperposedLinear {
    pub base: Arc<Served>,
    pub variants: Superposed,
}

impl SuperposedLinear {
    /// The base's matrix plus the mix's retrieved deltas, as one matrix of the base's form.
    pub fn materialise(&self, mix: &super::Mix) -> Result<Served> {
        let (out, input) = self.base.shape();
        let mut weights = vec![0f32; out * input];
        let rows = weights.par_chunks_mut(input).enumerate();
        rows.for_each(|(row, target)| self.base.row(row, target));
        for &(variant, weight) in &mix.0 {
            self.variants.add_matrix(variant, weight, input, &mut weights)?;
        }
        Served::new(&weights, out, input, self.base.form())
    }
}
