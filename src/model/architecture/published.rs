//! A family's tensors in a checkpoint as it is published: by the names outside, in parts, one below the other.

use super::{Architecture, TensorSpec};
use crate::checkpoint::{Checkpoint, TensorView, Unreadable};
use crate::superposition::{
    DeltaError, Mismatch, NamedTensor, NamedTensors, TensorSource, first_odd,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What a checkpoint has not, has in another shape, or has besides.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("tensor {tensor} is missing")]
    Missing { tensor: String },
    #[error(
        "every tensor has {prefix:?} before its name, as a wrapper leaves it; save the model inside"
    )]
    Wrapped { prefix: String },
    #[error("tensor {tensor} is none of the network's")]
    Extra { tensor: String },
    #[error("tensor {tensor} has shape {found:?}, not {expected:?}")]
    Shape {
        tensor: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("tensor {tensor} is another one than {of}, which config.json says that it is")]
    Untied { tensor: String, of: String },
    #[error("tensor {tensor} is not a finite number at element {index}")]
    NotFinite { tensor: String, index: usize },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl From<Unfit> for DeltaError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Missing { tensor } => Mismatch::Missing { tensor }.into(),
            Unfit::Extra { tensor } => Mismatch::Extra { tensor }.into(),
            Unfit::Shape {
                tensor,
                expected,
                found,
            } => Mismatch::Shape {
                tensor,
                expected,
                found,
            }
            .into(),
            Unfit::Wrapped { prefix } => Mismatch::Wrapped { prefix }.into(),
            Unfit::Untied { tensor, .. } => Mismatch::Extra { tensor }.into(),
            Unfit::NotFinite { tensor, index } => Mismatch::NotFinite { tensor, index }.into(),
            Unfit::Unreadable(error) => error.into(),
        }
    }
}

/// Buffers of the published classes: derived from the configuration, not weights.
const BUFFERS: [&str; 3] = [
    "rotary_emb.inv_freq",
    "sampling_eps_min",
    "sampling_eps_max",
];
/// What the DiT's published names begin with, and files of it may leave out.
const BACKBONE: &str = "backbone.";
/// A tied head's own tensor, which a file may have beside the embedding.
const HEAD: &str = "lm_head.weight";

fn plain(name: &str) -> &str {
    name.strip_prefix(BACKBONE).unwrap_or(name)
}

/// A checkpoint that has a network's tensors, whole, and no others.
#[derive(Debug)]
pub struct Published<'a> {
    specs: BTreeMap<String, TensorSpec>,
    checkpoint: Checkpoint<'a>,
}

impl<'a> Published<'a> {
    /// Looks at names and shapes alone, but for a tied head that the file has twice.
    ///
    /// # Errors
    /// The first tensor, by its published name, that is missing, of another shape, or none of the network's.
    pub fn new(architecture: &Architecture, checkpoint: Checkpoint<'a>) -> Result<Self, Unfit> {
        let checkpoint = architecture.unwrapped(checkpoint);
        let specs = architecture.tensors.iter();
        let specs = specs.map(|spec| (spec.name.clone(), spec.clone()));
        let published = Published {
            specs: specs.collect(),
            checkpoint,
        };
        let mut known = BTreeSet::new();
        for spec in published.specs.values() {
            for (name, rows) in &spec.parts {
                part(&published.checkpoint, spec, name, *rows)?;
                known.insert(plain(name));
            }
        }
        let mut seen = BTreeSet::new();
        for (full, view) in published.checkpoint.iter() {
            let name = plain(full);
            let tensor = name.to_owned();
            if !seen.insert(name) {
                return Err(Unreadable::Twice { tensor }.into());
            }
            let buffer = BUFFERS.contains(&name) || name.ends_with(".rotary_emb.inv_freq");
            match name {
                _ if buffer || known.contains(name) => {}
                HEAD if architecture.head.tied => published.check_tied(&view)?,
                _ => return Err(Unfit::Extra { tensor }),
            }
        }
        Ok(published)
    }

    /// Refuses a head beside the embedding that is another matrix.
    fn check_tied(&self, head: &TensorView) -> Result<(), Unfit> {
        let of = "model.embed_tokens.weight";
        let differs = || Unfit::Untied {
            tensor: head.name.to_owned(),
            of: of.to_owned(),
        };
        let embedding = self.checkpoint.get(of).ok_or_else(differs)?;
        let same = head.shape == embedding.shape && head.to_f32()? == embedding.to_f32()?;
        if same { Ok(()) } else { Err(differs()) }
    }

    /// The values of one tensor.
    ///
    /// # Errors
    /// Those of [`read`], and a value that is not finite.
    pub fn read(&self, spec: &TensorSpec) -> Result<Vec<f32>, Unfit> {
        let values = read(&self.checkpoint, spec)?;
        match first_odd(&values, |value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(Unfit::NotFinite {
                tensor: spec.name.clone(),
                index,
            }),
        }
    }

    /// All tensors, in f32 and in memory.
    ///
    /// # Errors
    /// Those of [`read`].
    pub fn all(&self) -> Result<NamedTensors, Unfit> {
        let tensor = |(name, spec): (&String, &TensorSpec)| {
            let (shape, data) = (spec.shape.clone(), self.read(spec)?);
            Ok((name.clone(), NamedTensor { shape, data }))
        };
        let tensors: Result<_, Unfit> = self.specs.iter().map(tensor).collect();
        tensors.map(NamedTensors)
    }
}

impl TensorSource for Published<'_> {
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shape = |(name, spec): (&String, &TensorSpec)| (name.clone(), spec.shape.clone());
        self.specs.iter().map(shape).collect()
    }

    fn values(&self, name: &str) -> Result<Cow<'_, [f32]>, DeltaError> {
        match self.specs.get(name) {
            Some(spec) => Ok(Cow::Owned(self.read(spec)?)),
            None => {
                let tensor = name.to_owned();
                Err(Mismatch::Missing { tensor }.into())
            }
        }
    }
}

impl Architecture {
    /// The same checkpoint by the names that this family publishes.
    pub fn unwrapped<'a>(&self, checkpoint: Checkpoint<'a>) -> Checkpoint<'a> {
        let parts = self.tensors.iter().flat_map(|spec| &spec.parts);
        let names: BTreeSet<&str> = parts.flat_map(|(name, _)| [&**name, plain(name)]).collect();
        checkpoint.unwrapped(|name| names.contains(name))
    }
}

/// The `rows` of `spec` that are published under `name`.
fn part<'v>(
    checkpoint: &'v Checkpoint<'_>,
    spec: &TensorSpec,
    name: &str,
    rows: usize,
) -> Result<TensorView<'v>, Unfit> {
    let found = checkpoint.get(name);
    let found = found.or_else(|| checkpoint.get(plain(name)));
    let tensor = || plain(name).to_owned();
    let Some(view) = found else {
        return Err(match wrapper(checkpoint, name) {
            Some(prefix) => Unfit::Wrapped { prefix },
            None => Unfit::Missing { tensor: tensor() },
        });
    };
    let mut expected = spec.shape.clone();
    expected[0] = rows;
    match view.shape == expected {
        true => Ok(view),
        false => Err(Unfit::Shape {
            tensor: tensor(),
            expected,
            found: view.shape.to_vec(),
        }),
    }
}

/// What stands before `name`, and before all others.
fn wrapper(checkpoint: &Checkpoint, name: &str) -> Option<String> {
    let mut names = checkpoint.iter().map(|(name, _)| name);
    let wrapped = names.find_map(|found| found.strip_suffix(plain(name)))?;
    let mut all = checkpoint.iter();
    all.all(|(found, _)| found.starts_with(wrapped))
        .then(|| wrapped.to_owned())
}

/// The values of a tensor, of its parts in `checkpoint`.
///
/// # Errors
/// The first part that is missing, of another shape, or of a type that is none of ours; a file that cannot be read.
pub fn read(checkpoint: &Checkpoint<'_>, spec: &TensorSpec) -> Result<Vec<f32>, Unfit> {
    let mut all = vec![0.0; spec.shape.iter().product()];
    let row: usize = spec.shape[1..].iter().product();
    let mut begun = 0;
    for (name, rows) in &spec.parts {
        let view = part(checkpoint, spec, name, *rows)?;
        view.read(0, &mut all[begun * row..(begun + rows) * row])?;
        begun += rows;
    }
    Ok(all)
}
