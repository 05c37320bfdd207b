//! The base that a model instance is made of: shared by all generations.

use super::architecture::{Architecture, TensorSpec};
use super::facts::NetworkFacts;
use super::tables::TableCache;
use crate::model::error::{Error, Result};
use crate::ops::quantized::{Quantisation, QuantizedMatrix};
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

/// What a matrix's name ends with where its quants, and what makes weights of them, are kept.
const QUANTS: &str = "quants";
const LEVELS: &str = "levels";

/// A tensor's numbers as they lie in memory.
fn plain_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::BF16 => {
            let values = flat.to_vec1::<half::bf16>()?;
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        }
        _ => {
            let values = flat.to_vec1::<f32>()?;
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        }
    })
}

/// The base: shared by all generations.
#[derive(Debug)]
pub struct BaseWeights {
    pub architecture: Arc<Architecture>,
    pub facts: NetworkFacts,
    /// What rows go through or are looked up in, by name.
    pub(super) matrices: BTreeMap<String, Arc<QuantizedMatrix>>,
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
                    matrices.insert(
                        name,
                        Arc::new(QuantizedMatrix::new(&data, out, input, form)?),
                    );
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
        matrices: BTreeMap<String, Arc<QuantizedMatrix>>,
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

    /// Every tensor as it lies in memory, by name and part: what [`restore`](Self::restore) takes.
    pub fn raw(&self) -> Result<Vec<(String, Cow<'_, [u8]>)>> {
        let mut parts = Vec::new();
        for (name, matrix) in &self.matrices {
            let [quants, levels] = matrix.raw();
            parts.push((format!("{name}.{QUANTS}"), Cow::Borrowed(quants)));
            parts.push((format!("{name}.{LEVELS}"), Cow::Borrowed(levels)));
        }
        for (name, tensor) in &self.plain {
            parts.push((name.clone(), Cow::Owned(plain_bytes(tensor)?)));
        }
        Ok(parts)
    }

    /// A base in `form` of what [`raw`](Self::raw) gave, which `part` finds by name. `None` where something is missing or of another size.
    pub fn restore(
        architecture: Architecture,
        form: Quantisation,
        part: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Option<Self> {
        let (mut matrices, mut plain) = (BTreeMap::new(), BTreeMap::new());
        for TensorSpec {
            name, shape, role, ..
        } in &architecture.tensors
        {
            match shape[..] {
                [out, input] if role.is_matrix() => {
                    let [quants, levels] = [QUANTS, LEVELS]
                        .map(|of| part(&format!("{name}.{of}")).unwrap_or_default());
                    let matrix = QuantizedMatrix::from_raw([&quants, &levels], [out, input], form)?;
                    matrices.insert(name.clone(), Arc::new(matrix));
                }
                _ => {
                    let dtype = if shape.len() == 2 {
                        DType::BF16
                    } else {
                        DType::F32
                    };
                    let bytes = part(name)?;
                    let elements: usize = shape.iter().product();
                    if bytes.len() != elements * dtype.size_in_bytes() {
                        return None;
                    }
                    let tensor = Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu);
                    plain.insert(name.clone(), tensor.ok()?);
                }
            }
        }
        Some(Self::of(Arc::new(architecture), matrices, plain))
    }

    /// Bytes held, but for the tables.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let plain: usize = self.plain.values().map(bytes).sum();
        let matrices = self.matrices.values().map(|matrix| matrix.bytes());
        plain + matrices.sum::<usize>()
    }

    pub(super) fn matrix(&self, name: &str) -> Result<&Arc<QuantizedMatrix>> {
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
