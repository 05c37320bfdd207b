//! What a model instance is made of: the base, banks in served form, and what a variant keeps for itself.

use super::tables::TableCache;
use super::{DitConfig, NetworkFacts};
use crate::ops::coded::Kept;
use crate::ops::quantized::{Form, Served};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tensors by internal name: shape and values.
pub type Dense = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The matrices that serve as products of rows; all other tensors are looked up or turned into tables.
pub fn is_product(name: &str) -> bool {
    let layer = name.starts_with("blocks.") && !name.contains("adaLN") && !name.contains("norm");
    (layer || name.starts_with("output_layer.linear")) && name.ends_with(".weight")
}

/// The output head's matrix.
pub const HEAD: &str = "output_layer.linear.weight";

/// A layer's matrices: queries, keys and values; attention's output; the wide and the narrow half of the MLP.
pub fn layer_products(layer: usize) -> [String; 4] {
    ["attn_qkv", "attn_out", "mlp.0", "mlp.2"]
        .map(|matrix| format!("blocks.{layer}.{matrix}.weight"))
}

/// The base: shared by all generations.
#[derive(Debug)]
pub struct BaseWeights {
    pub config: DitConfig,
    pub facts: NetworkFacts,
    pub(super) products: BTreeMap<String, Arc<Served>>,
    /// Everything else: the embedding, adaLN and sigma_map, norms and biases.
    pub(super) plain: BTreeMap<String, Tensor>,
    pub(super) tables: TableCache,
}

impl BaseWeights {
    /// Takes every tensor that the configuration names; an error names the first missing or misshapen one.
    pub fn new(config: DitConfig, tensors: &Dense) -> Result<Self> {
        Self::in_form(config, tensors, Form::F32)
    }

    /// The same, with the matrices of products in `form`. Where that is not f32, other matrices are bf16; vectors are f32
    /// always.
    pub fn in_form(config: DitConfig, tensors: &Dense, form: Form) -> Result<Self> {
        Self::build(config, tensors, form, |_| false)
    }

    /// The same checks, but holds nothing of the tensors that lie `elsewhere`.
    pub fn without(
        config: DitConfig,
        tensors: &Dense,
        elsewhere: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        Self::build(config, tensors, Form::F32, elsewhere)
    }

    fn build(
        config: DitConfig,
        tensors: &Dense,
        form: Form,
        elsewhere: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        config.check()?;
        let (mut products, mut plain) = (BTreeMap::new(), BTreeMap::new());
        for (name, shape) in config.tensors() {
            match tensors.get(&name) {
                Some((found, _)) if *found == shape && elsewhere(&name) => {}
                Some((found, data)) if *found == shape => match shape[..] {
                    [out, input] if is_product(&name) => {
                        products.insert(name, Arc::new(Served::new(data, out, input, form)?));
                    }
                    _ => {
                        let halved = shape.len() == 2 && form != Form::F32;
                        let dtype = if halved { DType::BF16 } else { DType::F32 };
                        let tensor = Tensor::from_slice(data, shape, &Device::Cpu)?;
                        plain.insert(name, tensor.to_dtype(dtype)?);
                    }
                },
                Some((found, _)) => bail!("tensor {name} has shape {found:?}, not {shape:?}"),
                None => bail!("tensor {name} is missing"),
            }
        }
        Ok(Self {
            facts: config.facts(),
            config,
            products,
            plain,
            tables: TableCache::default(),
        })
    }

    /// Bytes held, but for the tables.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let plain: usize = self.plain.values().map(bytes).sum();
        plain
            + self
                .products
                .values()
                .map(|product| product.bytes())
                .sum::<usize>()
    }

    pub(super) fn product(&self, name: &str) -> Result<&Arc<Served>> {
        match self.products.get(name) {
            Some(product) => Ok(product),
            None => bail!("matrix {name} is missing"),
        }
    }

    pub(super) fn plain(&self, name: &str) -> Result<&Tensor> {
        match self.plain.get(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("tensor {name} is missing"),
        }
    }
}

/// One bank in the form it is served in, by tensor name.
#[derive(Debug)]
pub struct ServedBank {
    pub(super) tensors: BTreeMap<String, Arc<Served>>,
}

impl ServedBank {
    /// Brings every matrix (name, rows, columns, S_b by rows) to `form`.
    pub fn build(
        form: Form,
        tensors: impl IntoIterator<Item = (String, usize, usize, Vec<f32>)>,
    ) -> Result<Self> {
        let tensors = tensors
            .into_iter()
            .map(|(name, out, input, data)| {
                Ok((name, Arc::new(Served::new(&data, out, input, form)?)))
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
