//! The tensors that are no products of rows (the embedding, adaLN, sigma_map, norms and biases), of the base and of every
//! variant, and the modulation tables that come of them.

use super::base::BaseWeights;
use super::batch::{Mix, VariantId};
use super::conditioning::{ModulationRow, line};
use super::linear::Superposed;
use super::tables::{Mixed, mixed};
use super::variant::{Placed, ServedVariant};
use super::weights::ServedBank;
use crate::model::error::{Error, Result};
use crate::ops::slice;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What modulates the layers: shared by all rows of one mix at one noise level.
pub struct Modulation {
    base: Arc<BaseWeights>,
    /// The matrices that are looked up.
    plain: BTreeMap<String, Superposed>,
    variants: Vec<Placed<ServedVariant>>,
    /// Where they are read from.
    homes: Vec<Vec<usize>>,
    /// The variants' numbers among the base's tables.
    numbers: Vec<u64>,
}

impl Modulation {
    /// `homes`: the banks that every variant is read from; see [`homes`](super::variant::homes).
    pub fn new(
        base: Arc<BaseWeights>,
        banks: &[Arc<ServedBank>],
        variants: Vec<Placed<ServedVariant>>,
        homes: Vec<Vec<usize>>,
    ) -> Result<Self> {
        let mut plain = BTreeMap::new();
        for (name, tensor) in &base.plain {
            if tensor.rank() == 2 {
                plain.insert(name.clone(), Superposed::of(name, banks, &variants)?);
            }
        }
        Ok(Self {
            numbers: base.tables.number(banks, &variants),
            base,
            plain,
            variants,
            homes,
        })
    }

    /// Bytes of the tables kept so far, of all instances of the base.
    pub fn table_bytes(&self) -> usize {
        self.base.tables.bytes()
    }

    /// The banks that a variant is read from, the one that is its own, if any, first; none where there is no such variant.
    pub fn home(&self, variant: VariantId) -> &[usize] {
        self.homes
            .get(variant.0 as usize)
            .map_or(&[], |homes| homes)
    }

    /// A tensor of the mix, base plus deltas, in f32.
    pub fn retrieve(&self, name: &str, mix: &Mix) -> Result<Tensor> {
        let base = self.base.plain(name)?.to_dtype(DType::F32)?;
        if mix.0.is_empty() {
            return Ok(base);
        }
        let mut data = slice::f32(&base)?.to_vec();
        for &(variant, weight) in &mix.0 {
            if let Some(superposed) = self.plain.get(name) {
                superposed.add_matrix(variant, weight, base.dim(1)?, &mut data)?;
                continue;
            }
            let Some(placed) = self.variants.get(variant.0 as usize) else {
                return Err(Error::NoVariant { variant: variant.0 });
            };
            for (value, delta) in data
                .iter_mut()
                .zip(placed.own.vectors.get(name).into_iter().flatten())
            {
                *value = weight.mul_add(delta.to_f32(), *value);
            }
        }
        Ok(Tensor::from_vec(data, base.shape(), &Device::Cpu)?)
    }

    /// Every tensor of the mix, by name, of the base's types.
    pub fn retrieve_all(&self, mix: &Mix) -> Result<BTreeMap<String, Tensor>> {
        let tensors = self.base.plain.iter();
        tensors
            .map(|(name, base)| {
                Ok((
                    name.clone(),
                    self.retrieve(name, mix)?.to_dtype(base.dtype())?,
                ))
            })
            .collect()
    }

    /// What a mix is in whichever instance that reads its variants from the same banks.
    pub fn mixed(&self, mix: &Mix) -> Mixed {
        mixed(&self.numbers, mix)
    }

    /// The modulation tables, one line each, of a mix at a noise level.
    pub fn tables(&self, mix: &Mix, sigma: f32) -> Result<Arc<ModulationRow>> {
        let make = || {
            line(
                &self.base.architecture,
                |name| self.retrieve(name, mix),
                sigma,
            )
        };
        self.base.tables.get(&self.numbers, mix, sigma, make)
    }
}
