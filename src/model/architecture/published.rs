//! A tensor out of a published checkpoint: its parts, one below the other.

use super::{Architecture, TensorSpec};
use crate::checkpoint::{Checkpoint, Unreadable};
use crate::superposition::{Mismatch, NamedTensor, NamedTensors, Refused};

/// What a checkpoint has not, or has in another shape.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("tensor {tensor} is missing")]
    Missing { tensor: String },
    #[error("tensor {tensor} has shape {found:?}, not {expected:?}")]
    Shape {
        tensor: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Architecture {
    /// The same checkpoint by the names that this family publishes.
    pub fn unwrapped<'a>(&self, checkpoint: Checkpoint<'a>) -> Checkpoint<'a> {
        let specs = self.tensors.iter();
        let names: Vec<&str> = specs
            .flat_map(|spec| spec.parts.iter().map(|(name, _)| &**name))
            .collect();
        checkpoint.unwrapped(|name| names.contains(&name))
    }

    /// All tensors by their names inside, in f32. What else the checkpoint has does not matter.
    ///
    /// # Errors
    /// Those of [`read`].
    pub fn tensors_of(&self, checkpoint: &Checkpoint<'_>) -> Result<NamedTensors, Unfit> {
        let tensor = |spec: &TensorSpec| {
            let (shape, data) = (spec.shape.clone(), read(checkpoint, spec)?);
            Ok((spec.name.clone(), NamedTensor { shape, data }))
        };
        let tensors: Result<_, Unfit> = self.tensors.iter().map(tensor).collect();
        tensors.map(NamedTensors)
    }
}

impl From<Unfit> for Refused {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Missing { tensor } => Mismatch::Missing { tensor }.into(),
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
            Unfit::Unreadable(error) => error.into(),
        }
    }
}

/// The values of a tensor, of its parts in `checkpoint`.
///
/// # Errors
/// The first part that is missing, of another shape, or of a type that is none of ours.
pub fn read(checkpoint: &Checkpoint<'_>, spec: &TensorSpec) -> Result<Vec<f32>, Unfit> {
    let mut all = vec![0.0; spec.shape.iter().product()];
    let (row, mut begun) = (spec.shape[1..].iter().product::<usize>(), 0);
    for (name, rows) in &spec.parts {
        let Some(view) = checkpoint.get(name) else {
            let tensor = name.clone();
            return Err(Unfit::Missing { tensor });
        };
        let expected: Vec<usize> = [*rows]
            .into_iter()
            .chain(spec.shape[1..].to_vec())
            .collect();
        if view.shape != expected {
            let (tensor, found) = (name.clone(), view.shape.to_vec());
            return Err(Unfit::Shape {
                tensor,
                expected,
                found,
            });
        }
        view.read(0, &mut all[begun * row..(begun + rows) * row])?;
        begun += rows;
    }
    Ok(all)
}
