//! The tensors that are no products of rows (the embedding, adaLN, sigma_map, norms and biases), of the base and of every
//! variant, and the modulation tables that come of them.

use super::DitConfig;
use super::batch::{Mix, MixKey, VariantId};
use super::conditioning::{Line, tables};
use super::linear::Superposed;
use super::variant::{Placed, ServedVariant};
use super::weights::{BaseWeights, ServedBank};
use crate::ops::slice;
use candle_core::{Device, Result, Tensor, bail};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of modulation tables kept for (mix, sigma) pairs, and pairs kept whatever their size: the grids of two sequences
/// of 128 steps. Past both they are forgotten and made again.
const TABLES_BYTES: usize = 32 << 20;
const TABLES_KEPT: usize = 258;

/// Bytes of the tables of one mix at one noise level, without its biases.
fn line_bytes(config: &DitConfig) -> usize {
    (6 * config.n_blocks + 2) * config.hidden_dim * size_of::<f32>()
}

/// What modulates the layers: shared by all rows of one mix at one noise level.
pub struct Modulation {
    base: Arc<BaseWeights>,
    /// The matrices that are looked up.
    plain: BTreeMap<String, Superposed>,
    variants: Vec<Placed<ServedVariant>>,
    tables: Mutex<HashMap<(MixKey, u32), Arc<Line>>>,
}

impl Modulation {
    pub fn new(
        base: Arc<BaseWeights>,
        banks: &[Arc<ServedBank>],
        variants: Vec<Placed<ServedVariant>>,
    ) -> Result<Self> {
        let mut plain = BTreeMap::new();
        for (name, tensor) in &base.plain {
            if tensor.rank() == 2 {
                plain.insert(name.clone(), Superposed::of(name, banks, &variants)?);
            }
        }
        Ok(Self {
            base,
            plain,
            variants,
            tables: Mutex::default(),
        })
    }

    /// Bytes of the tables kept so far.
    pub fn table_bytes(&self) -> usize {
        let kept = self.tables.lock().unwrap_or_else(PoisonError::into_inner).len();
        kept * line_bytes(&self.base.config)
    }

    /// Adds `weight` times row `index` of the variant's retrieved delta of a matrix to `target`.
    pub fn add_row(&self, name: &str, part: (VariantId, f32), index: usize, target: &mut [f32]) -> Result<()> {
        match self.plain.get(name) {
            Some(superposed) => superposed.add_row(part.0, part.1, index, target),
            None => bail!("tensor {name} is missing"),
        }
    }

    /// The instance's banks that hold a variant; none where there is no such variant.
    pub fn home(&self, variant: VariantId) -> &[usize] {
        self.variants
            .get(variant.0 as usize)
            .map_or(&[], |placed| &placed.banks)
    }

    /// A tensor of the mix: base plus deltas.
    pub fn retrieve(&self, name: &str, mix: &Mix) -> Result<Tensor> {
        let base = self.base.plain(name)?;
        if mix.0.is_empty() {
            return Ok(base.clone());
        }
        let mut data = slice::f32(base)?.to_vec();
        for &(variant, weight) in &mix.0 {
            if let Some(superposed) = self.plain.get(name) {
                superposed.add_matrix(variant, weight, base.dim(1)?, &mut data)?;
                continue;
            }
            let Some(placed) = self.variants.get(variant.0 as usize) else {
                bail!("no variant {} in this instance", variant.0)
            };
            for (value, delta) in data.iter_mut().zip(placed.own.vectors.get(name).into_iter().flatten()) {
                *value = weight.mul_add(delta.to_f32(), *value);
            }
        }
        Tensor::from_vec(data, base.shape(), &Device::Cpu)
    }

    /// Every tensor of the mix, by name.
    pub fn retrieve_all(&self, mix: &Mix) -> Result<BTreeMap<String, Tensor>> {
        let names = self.base.plain.keys();
        names
            .map(|name| Ok((name.clone(), self.retrieve(name, mix)?)))
            .collect()
    }

    /// The modulation tables, one line each, of a mix at a noise level.
    pub fn tables(&self, mix: &Mix, sigma: f32) -> Result<Arc<Line>> {
        let key = (mix.key(), sigma.to_bits());
        let mut kept = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.get(&key) {
            return Ok(found.clone());
        }
        let config = &self.base.config;
        let mut made = tables(config, |name| self.retrieve(name, mix), &[sigma], &Device::Cpu)?.line()?;
        // The mix's biases are the same at every noise level.
        if let Some((_, other)) = kept.iter().find(|((mix, _), _)| *mix == key.0) {
            made.bias = other.bias.clone();
            for (made, other) in made.layers.iter_mut().zip(&other.layers) {
                (made.bias0, made.bias2) = (other.bias0.clone(), other.bias2.clone());
            }
        }
        let made = Arc::new(made);
        if kept.len() >= (TABLES_BYTES / line_bytes(config)).max(TABLES_KEPT) {
            kept.clear();
        }
        kept.insert(key, made.clone());
        Ok(made)
    }
}
