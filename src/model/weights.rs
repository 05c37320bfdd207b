//! What an instance has beside its base: banks in served form, and what a variant brings.

use crate::model::error::Result;
use crate::ops::coded::Kept;
use crate::ops::quantized::{Quantisation, QuantizedMatrix};
use crate::superposition::CodedDelta;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One bank in the form it is served in, by tensor name.
#[derive(Debug)]
pub struct ServedBank {
    pub(super) tensors: BTreeMap<String, Arc<QuantizedMatrix>>,
}

impl ServedBank {
    /// Brings every matrix (name, rows, columns, S_b by rows) to `form`.
    pub fn build(
        form: Quantisation,
        tensors: impl IntoIterator<Item = (String, usize, usize, Vec<f32>)>,
    ) -> Result<Self> {
        let tensors = tensors
            .into_iter()
            .map(|(name, out, input, data)| {
                Ok((
                    name,
                    Arc::new(QuantizedMatrix::new(&data, out, input, form)?),
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Self { tensors })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.bytes()).sum()
    }

    /// Parameters superposed.
    pub fn parameters(&self) -> usize {
        self.tensors
            .values()
            .map(|tensor| tensor.shape().0 * tensor.shape().1)
            .sum()
    }
}

/// What one variant brings to an instance.
#[derive(Clone, Debug)]
pub struct VariantWeights {
    pub seed: u64,
    /// c_k.
    pub scale: f32,
    /// Indices of its banks in the instance.
    pub banks: Vec<usize>,
    /// a_k by matrix that lies in a bank, [out].
    pub gains: BTreeMap<String, Vec<f32>>,
    /// What it keeps of the other matrices for itself.
    pub kept: BTreeMap<String, Kept>,
    /// Deltas of the one-dimensional tensors.
    pub vectors: BTreeMap<String, Vec<f32>>,
}

impl VariantWeights {
    /// Those of a variant that is kept by itself. Tensors that are no matrices are not scaled.
    pub fn by_itself(delta: CodedDelta, scale: f32) -> VariantWeights {
        let (mut kept, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in delta.tensors {
            match tensor.kept {
                Kept::Whole(values) if tensor.shape.len() != 2 => {
                    let values = values.iter().map(|value| value.to_f32());
                    vectors.insert(name, values.collect());
                }
                matrix => drop(kept.insert(name, matrix)),
            }
        }
        VariantWeights {
            seed: delta.seed,
            scale,
            banks: Vec::new(),
            gains: BTreeMap::new(),
            kept,
            vectors,
        }
    }
}
