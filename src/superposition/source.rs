//! A model's tensors where they lie, read one after another.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rayon::prelude::*;

use super::digest::TensorDigest;
use super::{DeltaError, Digest, Mismatch, NamedTensors};

/// Tensors by internal name, in f32, of which only those are in memory that somebody holds.
pub trait TensorSource: Sync {
    /// Every tensor's shape.
    fn shapes(&self) -> BTreeMap<String, Vec<usize>>;

    /// The values of one, in row order.
    ///
    /// # Errors
    /// Where there is none of that name, or it cannot be read.
    fn values(&self, name: &str) -> Result<Cow<'_, [f32]>, DeltaError>;
}

impl TensorSource for NamedTensors {
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        NamedTensors::shapes(self)
    }

    fn values(&self, name: &str) -> Result<Cow<'_, [f32]>, DeltaError> {
        let tensor = || name.to_owned();
        let found = self.0.get(name);
        let found = found.ok_or_else(|| Mismatch::Missing { tensor: tensor() })?;
        Ok(Cow::Borrowed(&found.data))
    }
}

/// The digest of all of them, as [`NamedTensors::digest`].
///
/// # Errors
/// Where one cannot be read.
pub fn digest(source: &dyn TensorSource) -> Result<Digest, DeltaError> {
    let mut digest = TensorDigest::default();
    for (name, shape) in source.shapes() {
        digest.add(&name, &shape, &source.values(&name)?);
    }
    Ok(digest.finish())
}

/// The first of the values that is `odd`.
pub fn first_odd(values: &[f32], odd: impl Fn(f32) -> bool + Sync) -> Option<usize> {
    const PIECE: usize = 1 << 16;
    let pieces = values.par_chunks(PIECE).enumerate();
    let found = pieces.filter_map(|(number, piece)| {
        let found = piece.iter().position(|value| odd(*value))?;
        Some(number * PIECE + found)
    });
    found.min()
}

/// What a fine-tune changed of the tensor `name`: fine-tuned − base.
pub(super) fn difference(
    base: &dyn TensorSource,
    fine_tuned: &dyn TensorSource,
    name: &str,
) -> Result<Vec<f32>, DeltaError> {
    let (tuned, base) = rayon::join(|| fine_tuned.values(name), || base.values(name));
    let (mut delta, base) = (tuned?.into_owned(), base?);
    let pieces = delta.par_chunks_mut(1 << 16).zip(base.par_chunks(1 << 16));
    pieces.for_each(|(values, base)| {
        for (value, base) in values.iter_mut().zip(base) {
            *value -= base;
        }
    });
    Ok(delta)
}
