//! A model's tensors by name, from a checkpoint.

use std::collections::BTreeMap;

use super::digest::TensorDigest;
use super::{Digest, Unreadable};
use crate::checkpoint::Checkpoint;

/// One tensor, f32 in row order.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl NamedTensor {
    /// [out, in] where this is a matrix; everything else is kept whole by a variant.
    pub fn matrix(&self) -> Option<[usize; 2]> {
        match self.shape[..] {
            [rows, cols] => Some([rows, cols]),
            _ => None,
        }
    }
}

/// A model's tensors by internal name: without the checkpoint's `backbone.` prefix, its buffers dropped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedTensors(pub BTreeMap<String, NamedTensor>);

impl FromIterator<(String, (Vec<usize>, Vec<f32>))> for NamedTensors {
    fn from_iter<I: IntoIterator<Item = (String, (Vec<usize>, Vec<f32>))>>(parts: I) -> Self {
        let named = |(name, (shape, data))| (name, NamedTensor { shape, data });
        NamedTensors(parts.into_iter().map(named).collect())
    }
}

/// Buffers of the published classes: derived from the configuration, not weights.
const BUFFERS: [&str; 3] = [
    "rotary_emb.inv_freq",
    "sampling_eps_min",
    "sampling_eps_max",
];

impl NamedTensors {
    /// Reads a safetensors checkpoint in F32, F16 or BF16.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, Unreadable> {
        Self::read(&Checkpoint::from_bytes(bytes)?)
    }

    /// All tensors of a checkpoint, in f32 and in memory.
    pub fn read(checkpoint: &Checkpoint<'_>) -> Result<Self, Unreadable> {
        let mut tensors = BTreeMap::new();
        for (full, view) in checkpoint.iter() {
            let name = full.strip_prefix("backbone.").unwrap_or(full);
            if BUFFERS.contains(&name) {
                continue;
            }
            let tensor = name.to_owned();
            let (shape, data) = (view.shape.to_vec(), view.to_f32()?);
            if tensors
                .insert(tensor, NamedTensor { shape, data })
                .is_some()
            {
                return Err(Unreadable::Twice {
                    tensor: name.to_owned(),
                });
            }
        }
        Ok(NamedTensors(tensors))
    }

    /// Shapes and values by name, as networks take them.
    pub fn into_parts(self) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let parts = |(name, tensor): (String, NamedTensor)| (name, (tensor.shape, tensor.data));
        self.0.into_iter().map(parts).collect()
    }

    /// SHA-256 over every tensor in order of name: name, shape and the values as little-endian f32.
    pub fn digest(&self) -> Digest {
        let mut digest = TensorDigest::default();
        for (name, tensor) in &self.0 {
            digest.add(name, &tensor.shape, &tensor.data);
        }
        digest.finish()
    }

    /// Every tensor's shape.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shape = |(name, tensor): (&String, &NamedTensor)| (name.clone(), tensor.shape.clone());
        self.0.iter().map(shape).collect()
    }
}
