//! Adapters as the `peft` library writes them: two thin factors for each module of the published network, and modules saved whole.
//!
//! ```text
//! base_model.model.<module>.lora_A.weight            [r, in]          delta = alpha / r · B A, or alpha / sqrt(r) · B A
//! base_model.model.<module>.lora_B.weight            [out, r]
//! base_model.model.<module>.lora_embedding_A         [r, rows]        of an embedding [rows, width]: delta = alpha / r · (B A)ᵀ
//! base_model.model.<module>.lora_embedding_B         [width, r]
//! base_model.model.<module>.lora_B.bias              [out]            delta of the module's bias, times the same
//! base_model.model.<module>[.base_layer].weight      its own shape    a module that is saved whole, or its bias
//! ```
//!
//! What is one tensor inside, such as queries, keys and values, takes the factors of all its modules side by side: the first factor has the
//! rows of all, the second one a block for each.

mod config;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use half::bf16;

use self::config::AdapterConfig;
use super::{Architecture, TensorSpec};
use crate::checkpoint::{Checkpoint, TensorView, Unreadable};
use crate::ops::coded::{Kept, LowRank};
use crate::superposition::{self, CodedDelta, Digest, KeptTensor, Mismatch, TensorSource};

/// The files of an adapter's folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";
pub const CONFIG: &str = "adapter_config.json";
/// What every tensor's name begins with.
const PREFIX: &str = "base_model.model.";

/// Why an adapter is none of a network's.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("adapter_config.json: {detail}")]
    Config { detail: String },
    #[error("adapter_config.json: what {field} asks for is not served")]
    Unserved { field: &'static str },
    #[error("adapter_config.json is not beside it")]
    NoConfig,
    #[error("the tensor {tensor} belongs to no module of the network")]
    Unknown { tensor: String },
    #[error("the tensor {tensor} has shape {found:?}, not {expected:?}")]
    Shape {
        tensor: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("{module} has the factor {has} and not the other")]
    Half { module: String, has: &'static str },
    #[error("{tensor} is not a finite number at element {index}")]
    NotFinite { tensor: String, index: usize },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Base(#[from] superposition::DeltaError),
}

/// Whether a checkpoint is an adapter, by its tensors' names.
pub fn is_one(checkpoint: &Checkpoint) -> bool {
    let mut names = checkpoint.iter().map(|(name, _)| name).peekable();
    names.peek().is_some() && names.all(|name| name.starts_with(PREFIX))
}

/// Rows of one of the network's tensors that are published by themselves.
struct Rows<'a> {
    spec: &'a TensorSpec,
    first: usize,
    count: usize,
}

/// What an adapter adds to one of the network's tensors.
#[derive(Default)]
struct Added {
    /// In order: the first row, rows, rank, B [rows, rank] with the scale in it, A [rank, in].
    thin: Vec<Thin>,
    /// All its elements, where a part of it is saved whole.
    whole: Option<Vec<f32>>,
}

struct Thin {
    first: usize,
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

/// What an adapter changes of `base`, whose digest is given: kept exactly but for modules saved whole, which are differences in bf16.
///
/// # Errors
/// By name, the first tensor that belongs to no module, has another shape than the rank and the module give it, is half of a pair, or is not
/// finite; a configuration that asks for what is not served.
pub fn read(
    architecture: &Architecture,
    (digest, base): (Digest, &dyn TensorSource),
    config: &[u8],
    checkpoint: &Checkpoint,
) -> Result<CodedDelta, AdapterError> {
    let config = AdapterConfig::read(config)?;
    let modules = modules(architecture);
    let mut added: BTreeMap<&str, Added> = BTreeMap::new();
    for (full, view) in checkpoint.iter() {
        let unknown = || AdapterError::Unknown {
            tensor: full.to_owned(),
        };
        let name = full.strip_prefix(PREFIX).ok_or_else(unknown)?;
        if name.contains(".lora_magnitude_vector") {
            return Err(AdapterError::Unserved { field: "use_dora" });
        }
        let name = name.replace(".default.", ".");
        let name = name.strip_suffix(".default").unwrap_or(&name);
        let found = |module: &str, what: &str| {
            let rows = modules.get(&*format!("{module}.{what}"));
            rows.ok_or_else(unknown)
        };
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let rows = found(module, "weight")?;
            let thin = pair(checkpoint, &config, rows, module, full, false)?;
            added.entry(&rows.spec.name).or_default().thin.push(thin);
        } else if let Some(module) = name.strip_suffix(".lora_embedding_A") {
            let rows = found(module, "weight")?;
            let thin = pair(checkpoint, &config, rows, module, full, true)?;
            added.entry(&rows.spec.name).or_default().thin.push(thin);
        } else if let Some(module) = name
            .strip_suffix(".lora_B.weight")
            .or_else(|| name.strip_suffix(".lora_embedding_B"))
        {
            found(module, "weight")?;
            if checkpoint.get(&other_half(full)).is_none() {
                let (module, has) = (module.to_owned(), "B");
                return Err(AdapterError::Half { module, has });
            }
        } else if let Some(module) = name.strip_suffix(".lora_B.bias") {
            let rows = found(module, "bias")?;
            let scale = config.scale(module);
            let delta = values(&view, &[rows.count])?;
            let delta = delta.into_iter().map(|value| scale * value);
            let whole = whole(&mut added, rows);
            let target = &mut whole[rows.first..rows.first + rows.count];
            target.iter_mut().zip(delta).for_each(|(to, by)| *to += by);
        } else {
            let own = name.replace(".base_layer.", ".");
            let rows = modules.get(&*own).ok_or_else(unknown)?;
            saved(&mut added, rows, &view, base)?;
        }
    }
    if added.values().all(Added::is_nothing) {
        return Err(superposition::DeltaError::from(Mismatch::Same).into());
    }
    let mut shapes = base.shapes();
    let tensors = added.into_iter().map(|(name, added)| {
        let shape = shapes.remove(name).unwrap_or_default();
        let kept = added.kept(&shape);
        (name.to_owned(), KeptTensor { shape, kept })
    });
    let tensors = tensors.collect();
    Ok(CodedDelta::exactly(digest, tensors))
}

/// Where every published tensor lies inside. A tied head is the embedding.
fn modules(architecture: &Architecture) -> BTreeMap<&str, Rows<'_>> {
    let mut modules = BTreeMap::new();
    for spec in &architecture.tensors {
        let mut first = 0;
        for (name, count) in &spec.parts {
            let (begins, count) = (first, *count);
            first += count;
            let rows = || Rows {
                spec,
                first: begins,
                count,
            };
            modules.insert(&**name, rows());
            if architecture.head.tied && spec.role == super::MatrixRole::Embedding {
                modules.insert("lm_head.weight", rows());
            }
        }
    }
    modules
}

/// The name of the B that goes with an A, and the reverse.
fn other_half(name: &str) -> String {
    match name.contains(".lora_A.") || name.contains(".lora_embedding_A") {
        true => name
            .replace(".lora_A.", ".lora_B.")
            .replace(".lora_embedding_A", ".lora_embedding_B"),
        false => name
            .replace(".lora_B.", ".lora_A.")
            .replace(".lora_embedding_B", ".lora_embedding_A"),
    }
}

/// The two factors of a module, whose A is called `full`.
fn pair(
    checkpoint: &Checkpoint,
    config: &AdapterConfig,
    rows: &Rows,
    module: &str,
    full: &str,
    embedding: bool,
) -> Result<Thin, AdapterError> {
    let half = || AdapterError::Half {
        module: module.to_owned(),
        has: "A",
    };
    let unknown = || AdapterError::Unknown {
        tensor: full.to_owned(),
    };
    let &[_, input] = &rows.spec.shape[..] else {
        return Err(unknown());
    };
    let first = checkpoint.get(full).ok_or_else(unknown)?;
    let second = checkpoint.get(&other_half(full)).ok_or_else(half)?;
    let (rank, scale) = (config.rank(module), config.scale(module));
    let (mut a, mut b) = match embedding {
        false => (
            values(&first, &[rank, input])?,
            values(&second, &[rows.count, rank])?,
        ),
        // Its product is the transposed delta.
        true => {
            let a = values(&first, &[rank, rows.count])?;
            let b = values(&second, &[input, rank])?;
            (transposed(&b, rank), transposed(&a, rows.count))
        }
    };
    b.iter_mut().for_each(|value| *value *= scale);
    a.shrink_to_fit();
    let first = rows.first;
    Ok(Thin { first, rank, a, b })
}

/// Of a matrix with rows of `cols`.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    let at = |index: usize| values[index % rows * cols + index / rows];
    (0..values.len()).map(at).collect()
}

/// A tensor of this shape, all of it finite.
fn values(view: &TensorView, expected: &[usize]) -> Result<Vec<f32>, AdapterError> {
    let tensor = || view.name.to_owned();
    if view.shape != expected {
        return Err(AdapterError::Shape {
            tensor: tensor(),
            expected: expected.to_vec(),
            found: view.shape.to_vec(),
        });
    }
    let values = view.to_f32()?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(index) => Err(AdapterError::NotFinite {
            tensor: tensor(),
            index,
        }),
    }
}

/// All elements of what is added to the tensor that has these rows.
fn whole<'a, 's>(added: &'a mut BTreeMap<&'s str, Added>, rows: &Rows<'s>) -> &'a mut Vec<f32> {
    let elements = rows.spec.shape.iter().product();
    let added = added.entry(&rows.spec.name).or_default();
    added.whole.get_or_insert_with(|| vec![0.0; elements])
}

/// Takes a module that is saved whole; one that is the base's adds nothing.
fn saved<'s>(
    added: &mut BTreeMap<&'s str, Added>,
    rows: &Rows<'s>,
    view: &TensorView,
    base: &dyn TensorSource,
) -> Result<(), AdapterError> {
    let mut shape = rows.spec.shape.clone();
    shape[0] = rows.count;
    let values = values(view, &shape)?;
    let row: usize = shape[1..].iter().product();
    let here = rows.first * row..(rows.first + rows.count) * row;
    let base = base.values(&rows.spec.name)?;
    if values == base[here.clone()] {
        return Ok(());
    }
    let whole = whole(added, rows);
    let target = whole[here.clone()].iter_mut().zip(&values);
    for ((to, value), base) in target.zip(&base[here]) {
        *to += value - base;
    }
    Ok(())
}

impl Added {
    fn is_nothing(&self) -> bool {
        let zeros = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        self.thin.iter().all(|thin| zeros(&thin.b)) && self.whole.as_deref().is_none_or(zeros)
    }

    fn kept(self, shape: &[usize]) -> Kept {
        let rounded = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect();
        match (self.whole, shape) {
            (Some(mut whole), &[_, input]) => {
                for thin in &self.thin {
                    thin.add(input, &mut whole);
                }
                Kept::Whole(rounded(whole))
            }
            (Some(whole), _) => Kept::Whole(rounded(whole)),
            (None, shape) => {
                let rows = shape.first().copied().unwrap_or(0);
                let rank: usize = self.thin.iter().map(|thin| thin.rank).sum();
                let (mut a, mut b) = (Vec::new(), vec![0.0; rows * rank]);
                let mut begun = 0;
                for thin in self.thin {
                    for (row, values) in thin.b.chunks_exact(thin.rank).enumerate() {
                        let at = (thin.first + row) * rank + begun;
                        b[at..at + thin.rank].copy_from_slice(values);
                    }
                    begun += thin.rank;
                    a.extend(thin.a);
                }
                Kept::LowRank(LowRank::Exact { rank, a, b })
            }
        }
    }
}

impl Thin {
    /// Adds the product to a matrix with rows of `input`.
    fn add(&self, input: usize, whole: &mut [f32]) {
        let rows = whole[self.first * input..].chunks_exact_mut(input);
        for (row, factors) in rows.zip(self.b.chunks_exact(self.rank)) {
            for (a, b) in self.a.chunks_exact(input).zip(factors) {
                row.iter_mut().zip(a).for_each(|(to, a)| *to += a * b);
            }
        }
    }
}

impl From<AdapterError> for superposition::DeltaError {
    fn from(refused: AdapterError) -> Self {
        match refused {
            AdapterError::NotFinite { tensor, index } => {
                Mismatch::NotFinite { tensor, index }.into()
            }
            AdapterError::Shape {
                tensor,
                expected,
                found,
            } => Mismatch::Shape {
                tensor,
                expected,
                found,
            }
            .into(),
            AdapterError::Unreadable(error) => error.into(),
            AdapterError::Base(error) => error,
            other => Mismatch::Adapter {
                detail: other.to_string(),
            }
            .into(),
        }
    }
}
