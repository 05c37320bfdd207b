//! What a variant keeps for itself, in the form it is served in: made once, and shared by all generations that have it.

use super::weights::VariantWeights;
use crate::model::error::{Error, Result};
use crate::ops::coded::OwnMatrix;
use crate::transform::{Rotation, Signs, Transform};
use half::bf16;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How one matrix of a variant is read back from its bank.
#[derive(Clone, Debug)]
pub struct SignedGains {
    /// r_k, [in].
    pub input: Signs,
    /// c_k a_k l_k, [out]. Eight bits of a gain are more than the bank's four need.
    pub output: Vec<bf16>,
}

impl SignedGains {
    /// Signs and gains of tensor `name` [out, in] under `seed`, with gains a_k [out] and scale c_k.
    pub fn new(seed: u64, name: &str, gains: &[f32], input: usize, scale: f32) -> Self {
        let transform = Transform::new(seed, name, [gains.len(), input]);
        let mut output: Vec<f32> = gains.iter().map(|gain| gain * scale).collect();
        transform.output.apply(&mut output);
        Self {
            input: transform.input,
            output: output.into_iter().map(bf16::from_f32).collect(),
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(self.input.words()) + size_of_val(&self.output[..])
    }
}

/// A variant but for its share of the banks.
#[derive(Debug)]
pub struct ServedVariant {
    /// By matrix that lies in a bank.
    pub(super) signed_gains: BTreeMap<String, Arc<SignedGains>>,
    /// By matrix that it keeps for itself.
    pub(super) own: BTreeMap<String, Arc<OwnMatrix>>,
    /// Deltas of the one-dimensional tensors.
    pub(super) vectors: BTreeMap<String, Vec<bf16>>,
}

/// What `weights` has of the matrices among `tensors` (name, shape).
///
/// # Errors
/// Where a matrix has other than one gain a row.
pub(super) fn signed_gains(
    weights: &VariantWeights,
    tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
) -> Result<BTreeMap<String, Arc<SignedGains>>> {
    let mut signed_gains = BTreeMap::new();
    for (name, shape) in tensors {
        let (&[out, input], Some(gains)) = (&shape[..], weights.gains.get(&name)) else {
            continue;
        };
        if gains.len() != out {
            return Err(Error::Gains {
                name,
                found: gains.len(),
                rows: out,
            });
        }
        let signed = SignedGains::new(weights.seed, &name, gains, input, weights.scale);
        signed_gains.insert(name, Arc::new(signed));
    }
    Ok(signed_gains)
}

impl ServedVariant {
    /// Takes what `weights` has of the matrices among `tensors` (name, shape), and its vectors.
    ///
    /// # Errors
    /// Where a matrix has other than one gain a row, or what is kept of it does not fit it.
    pub fn new(
        weights: &VariantWeights,
        tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
    ) -> Result<Self> {
        let rounded = |values: &Vec<f32>| values.iter().copied().map(bf16::from_f32).collect();
        let (vectors, tensors) = (weights.vectors.iter(), Vec::from_iter(tensors));
        let mut own = BTreeMap::new();
        for (name, shape) in &tensors {
            if let (&[out, input], Some(kept)) = (&shape[..], weights.kept.get(name)) {
                let rotation = Rotation::new(weights.seed, name, input);
                let refused = |reason| Error::Kept {
                    name: name.clone(),
                    reason,
                };
                kept.check([out, input]).map_err(refused)?;
                let matrix = OwnMatrix::new(kept, [out, input], rotation, weights.scale)?;
                own.insert(name.clone(), Arc::new(matrix));
            }
        }
        Ok(Self {
            own,
            signed_gains: signed_gains(weights, tensors)?,
            vectors: vectors
                .map(|(name, values)| (name.clone(), rounded(values)))
                .collect(),
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let vectors = self.vectors.values().map(|vector| size_of_val(&vector[..]));
        let own = self.own.values().map(|own| own.bytes());
        vectors.chain(own).sum::<usize>()
            + self
                .signed_gains
                .values()
                .map(|signed| signed.bytes())
                .sum::<usize>()
    }
}

/// A variant in one instance.
#[derive(Debug)]
pub struct Placed<V> {
    pub own: Arc<V>,
    /// Indices of its banks in the instance.
    pub banks: Vec<usize>,
}

/// What every variant of an instance with so many `banks` is read from. What a variant keeps for itself, where `keeps` says that
/// it does, is a bank of one: those come after the others, by variant.
pub(super) fn homes<V>(
    banks: usize,
    variants: &[Placed<V>],
    keeps: impl Fn(&V) -> bool,
) -> Vec<Vec<usize>> {
    let homes = variants.iter().enumerate().map(|(index, variant)| {
        let own = keeps(&variant.own).then_some(banks + index);
        own.into_iter()
            .chain(variant.banks.iter().copied())
            .collect()
    });
    homes.collect()
}

impl<V> Clone for Placed<V> {
    fn clone(&self) -> Self {
        Placed {
            own: self.own.clone(),
            banks: self.banks.clone(),
        }
    }
}
