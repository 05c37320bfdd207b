//! The base that a model instance is made of: shared by all generations.

use super::architecture::{Architecture, TensorSpec};
use super::facts::NetworkFacts;
use super::tables::TableCache;
use crate::model::error::{Error, Result};
use crate::ops::quantized::{Quantisation, Served};
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tensors by internal name: shape and values.
pub type Dense = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The values of one of `tensors`; an error names the first missing or misshapen one.
pub fn read<'a>(tensors: &'a Dense, spec: &TensorSpec) -> Result<Cow<'a, [f32]>> {
    let TensorSpec { name, shape, .. } = spec;
    match tensors.get(name) {
        Some((found, data)) if found == shape => Ok(Cow::Borrowed(data)),
        Some((found, _)) => Err(Error::TensorShape {
            name: name.clone(),
            found: found.clone(),
            expected: shape.clone(),
        }),
        None => Err(Error::MissingTensor {
            name: name.to_owned(),
        }),
    }
}

/// The base: shared by all generations.
#[derive(Debug)]
pub struct BaseWeights {
    pub architecture: Arc<Architecture>,
    pub facts: NetworkFacts,
    /// What rows go through or are looked up in, by name.
    pub(super) matrices: BTreeMap<String, Arc<Served>>,
    /// Everything else: norms and biases, and what modulates the layers.
    pub(super) plain: BTreeMap<String, Tensor>,
    pub(super) tables: TableCache,
}

impl BaseWeights {
    /// Takes every tensor of the architecture, in f32; an error names the first missing or misshapen one.
    pub fn new(architecture: Architecture, tensors: &Dense) -> Result<Self> {
        Self::in_form(architecture, tensors, Quantisation::F32)
    }

    /// The same, in `form`; see [`BaseWeights::load`].
    pub fn in_form(
        architecture: Architecture,
        tensors: &Dense,
        form: Quantisation,
    ) -> Result<Self> {
        Self::load(architecture, form, |spec| read(tensors, spec).map(Some))
    }

    /// Takes one tensor after the other, in order of name, from `read`, which gives the values of one, or nothing where it lies elsewhere. Matrices
    /// are brought to `form` before the next is read; where that is not f32, other matrices are bf16. Vectors are f32 always.
    pub fn load<'a>(
        architecture: Architecture,
        form: Quantisation,
        mut read: impl FnMut(&TensorSpec) -> Result<Option<Cow<'a, [f32]>>>,
    ) -> Result<Self> {
        let (mut matrices, mut plain) = (BTreeMap::new(), BTreeMap::new());
        let mut specs: Vec<&TensorSpec> = architecture.tensors.iter().collect();
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        for spec in specs {
            let Some(data) = read(spec)? else {
                continue;
            };
            let (name, shape) = (spec.name.clone(), &spec.shape[..]);
            match shape {
                &[out, input] if spec.role.is_matrix() => {
                    matrices.insert(name, Arc::new(Served::new(&data, out, input, form)?));
                }
                _ => {
                    let halved = shape.len() == 2 && form != Quantisation::F32;
                    let dtype = if halved { DType::BF16 } else { DType::F32 };
                    let tensor = Tensor::from_slice(&data, shape, &Device::Cpu)?;
                    plain.insert(name, tensor.to_dtype(dtype)?);
                }
            }
        }
        Ok(Self::of(Arc::new(architecture), matrices, plain))
    }

    /// Of tensors that are those of `architecture`.
    pub(super) fn of(
        architecture: Arc<Architecture>,
        matrices: BTreeMap<String, Arc<Served>>,
        plain: BTreeMap<String, Tensor>,
    ) -> Self {
        Self {
            facts: architecture.facts(),
            architecture,
            matrices,
            plain,
            tables: TableCache::default(),
        }
    }

    /// Bytes held, but for the tables.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let plain: usize = self.plain.values().map(bytes).sum();
        let matrices = self.matrices.values().map(|matrix| matrix.bytes());
        plain + matrices.sum::<usize>()
    }

    pub(super) fn matrix(&self, name: &str) -> Result<&Arc<Served>> {
        match self.matrices.get(name) {
            Some(matrix) => Ok(matrix),
            None => Err(Error::MissingTensor {
                name: name.to_owned(),
            }),
        }
    }

    pub(super) fn plain(&self, name: &str) -> Result<&Tensor> {
        match self.plain.get(name) {
            Some(tensor) => Ok(tensor),
            None => Err(Error::MissingTensor {
                name: name.to_owned(),
            }),
        }
    }
}
