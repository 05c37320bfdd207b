//! A variant's delta θ_k − θ_0 in archive form: matrices in 8 bits with one scale a row, everything else in f32.
//! What is archived is exactly what is accumulated, so that it can be taken out of a superposition again.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::digest::TensorHash;
use super::source::difference;
use super::{
    CodedDelta, DeltaError, Digest, Mismatch, NamedTensor, NamedTensors, Relation, TensorSource,
    code, container, packed,
};

/// The delta of one matrix [rows, cols]: element (i, j) is `scales[i] * values[i * cols + j]`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaMatrix {
    pub rows: usize,
    pub cols: usize,
    /// One a row, finite and not negative.
    pub scales: Vec<f32>,
    /// -127 to 127; a row that is not all zero reaches one of the two.
    pub values: Vec<i8>,
}

/// Every tensor's delta of one variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// The base it belongs to.
    pub base: Digest,
    pub matrices: BTreeMap<String, DeltaMatrix>,
    /// Tensors that are no matrices: norms and biases.
    pub vectors: BTreeMap<String, NamedTensor>,
}

impl Delta {
    /// The delta of a fine-tuned checkpoint, one tensor in memory at a time.
    ///
    /// # Errors
    /// What [`Relation::of`] refuses.
    pub fn between(
        base: &dyn TensorSource,
        fine_tuned: &dyn TensorSource,
    ) -> Result<Delta, DeltaError> {
        let digest = Relation::of(base, fine_tuned)?.base;
        Delta::differences(digest, base, fine_tuned)
    }

    /// The same of one whose relation to the base `digest` is known.
    ///
    /// # Errors
    /// A tensor that cannot be read, or whose delta is not finite.
    pub fn differences(
        digest: Digest,
        base: &dyn TensorSource,
        fine_tuned: &dyn TensorSource,
    ) -> Result<Delta, DeltaError> {
        Delta::from_tensors(digest, &base.shapes(), |name, _| {
            difference(base, fine_tuned, name)
        })
    }

    /// The delta in any of the forms a file may hold: a coded delta, a packed or an archived one, or a
    /// whole checkpoint.
    pub fn read(base: &NamedTensors, bytes: &[u8]) -> Result<Delta, DeltaError> {
        match container::is_own(bytes) {
            true => Delta::from_own(base.digest(), &base.shapes(), bytes),
            false => Delta::between(base, &NamedTensors::from_safetensors(bytes)?),
        }
    }

    /// The delta in a file of this program's own, which is not a checkpoint, for the base `digest` whose tensors have these shapes.
    ///
    /// # Errors
    /// A file of another base, of a format that is not known, or that cannot be read.
    pub fn from_own(
        digest: Digest,
        shapes: &BTreeMap<String, Vec<usize>>,
        bytes: &[u8],
    ) -> Result<Delta, DeltaError> {
        let metadata = container::metadata(bytes)?;
        match metadata.get("format").map(String::as_str) {
            Some(packed::FORMAT) => Delta::from_packed(digest, shapes, bytes),
            Some(code::FORMAT) => {
                Delta::from_coded(digest, shapes, &CodedDelta::from_bytes(bytes)?)
            }
            _ => {
                let delta = Delta::from_archive(bytes)?;
                delta.check(digest, shapes)?;
                Ok(delta)
            }
        }
    }

    /// What a coded delta stands for; refuses one that was made for another base.
    fn from_coded(
        digest: Digest,
        shapes: &BTreeMap<String, Vec<usize>>,
        coded: &CodedDelta,
    ) -> Result<Delta, DeltaError> {
        coded.check(digest, shapes)?;
        Delta::from_tensors(digest, shapes, |name, elements| {
            Ok(coded.dense(name).unwrap_or_else(|| vec![0.0; elements]))
        })
    }

    /// Quantises the delta that `dense` gives for each of the tensors of the base `digest`, one after the other, as many elements as it
    /// is told, in row order.
    pub(super) fn from_tensors<E: From<Mismatch>>(
        digest: Digest,
        shapes: &BTreeMap<String, Vec<usize>>,
        dense: impl Fn(&str, usize) -> Result<Vec<f32>, E>,
    ) -> Result<Delta, E> {
        let mut delta = Delta {
            base: digest,
            matrices: BTreeMap::new(),
            vectors: BTreeMap::new(),
        };
        for (name, shape) in shapes {
            let data = dense(name, shape.iter().product())?;
            if let Some(index) = data.iter().position(|value| !value.is_finite()) {
                let tensor = name.clone();
                return Err(Mismatch::NotFinite { tensor, index }.into());
            }
            let (name, shape) = (name.clone(), shape.clone());
            match shape[..] {
                [rows, cols] => {
                    let matrix = DeltaMatrix::quantise([rows, cols], &data);
                    delta.matrices.insert(name, matrix);
                }
                _ => drop(delta.vectors.insert(name, NamedTensor { shape, data })),
            }
        }
        Ok(delta)
    }

    /// SHA-256 over every tensor in order of name, matrices first; the base takes no part in it.
    pub fn digest(&self) -> Digest {
        let mut hash = TensorHash::new("choir/delta/1");
        for (name, matrix) in &self.matrices {
            hash.tensor(name, &[matrix.rows, matrix.cols]);
            hash.f32s(&matrix.scales);
            hash.i8s(&matrix.values);
        }
        for (name, vector) in &self.vectors {
            hash.tensor(name, &vector.shape);
            hash.f32s(&vector.data);
        }
        hash.finish()
    }

    /// The delta of one tensor in row order, as it is accumulated; `None` where there is no such tensor.
    pub fn dense(&self, name: &str) -> Option<Vec<f32>> {
        let matrix = self.matrices.get(name).map(DeltaMatrix::dense);
        matrix.or_else(|| self.vectors.get(name).map(|vector| vector.data.clone()))
    }

    /// Every tensor's shape.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let matrices = self
            .matrices
            .iter()
            .map(|(name, m)| (name.clone(), vec![m.rows, m.cols]));
        let vectors = self
            .vectors
            .iter()
            .map(|(name, v)| (name.clone(), v.shape.clone()));
        matrices.chain(vectors).collect()
    }

    /// Refuses a delta that belongs to another base or whose tensors are not those of `shapes`.
    pub fn check(
        &self,
        base: Digest,
        shapes: &BTreeMap<String, Vec<usize>>,
    ) -> Result<(), Mismatch> {
        if self.base != base {
            let (expected, found) = (base, self.base);
            return Err(Mismatch::OtherBase { expected, found });
        }
        check_shapes(shapes, &self.shapes())
    }
}

impl DeltaMatrix {
    /// Rounds each row to 255 levels: scale = max |row| / 127.
    fn quantise([rows, cols]: [usize; 2], data: &[f32]) -> Self {
        let mut matrix = DeltaMatrix {
            rows,
            cols,
            scales: vec![0.0; rows],
            values: vec![0; data.len()],
        };
        let levels = matrix.values.par_chunks_exact_mut(cols);
        let levels = levels.zip(data.par_chunks_exact(cols));
        let rows = matrix.scales.par_iter_mut().zip(levels);
        rows.for_each(|(scale, (levels, row))| {
            let larger = |largest: f32, value: &f32| largest.max(value.abs());
            *scale = row.iter().fold(0f32, larger) / 127.0;
            // A row so small that its scale rounds to nothing is nothing.
            let divisor = if *scale > 0.0 { *scale } else { f32::INFINITY };
            for (level, value) in levels.iter_mut().zip(row) {
                *level = (value / divisor).round_ties_even().clamp(-127.0, 127.0) as i8;
            }
        });
        matrix
    }

    pub fn dense(&self) -> Vec<f32> {
        let rows = self.values.chunks_exact(self.cols).zip(&self.scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |value| scale * f32::from(*value)))
            .collect()
    }

    /// RMS of the levels of one row: exact integers, one division and one root, so equal on every platform.
    pub(super) fn row_rms(&self, row: &[i8]) -> f64 {
        let squares: i64 = row
            .iter()
            .map(|value| i64::from(i32::from(*value) * i32::from(*value)))
            .sum();
        (squares as f64 / self.cols as f64).sqrt()
    }

    /// The gain a: the RMS of each row of the delta; 0 for a row of zeros.
    pub fn gains(&self) -> Vec<f32> {
        let rows = self.values.chunks_exact(self.cols).zip(&self.scales);
        rows.map(|(row, scale)| (f64::from(*scale) * self.row_rms(row)) as f32)
            .collect()
    }
}

/// Refuses tensors that are not those `expected`, by the first offender in order of name.
pub(super) fn check_shapes(
    expected: &BTreeMap<String, Vec<usize>>,
    found: &BTreeMap<String, Vec<usize>>,
) -> Result<(), Mismatch> {
    for (name, shape) in expected {
        let tensor = name.clone();
        let found = found.get(name).ok_or(Mismatch::Missing { tensor })?;
        check_shape(name, Some(shape), found)?;
    }
    let extra = found.keys().find(|name| !expected.contains_key(*name));
    extra.map_or(Ok(()), |extra| check_shape(extra, None, &[]))
}

/// Refuses a tensor that is not one of the base's, or is misshapen.
pub(super) fn check_shape(
    name: &str,
    expected: Option<&Vec<usize>>,
    found: &[usize],
) -> Result<(), Mismatch> {
    let tensor = name.to_owned();
    match expected {
        None => Err(Mismatch::Extra { tensor }),
        Some(expected) if expected != found => Err(Mismatch::Shape {
            tensor,
            expected: expected.clone(),
            found: found.to_vec(),
        }),
        Some(_) => Ok(()),
    }
}
