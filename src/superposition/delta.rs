//! A variant's delta θ_k − θ_0 in archive form: matrices in 8 bits with one scale a row, everything else in f32.
//! What is archived is exactly what is accumulated, so that it can be taken out of a superposition again.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::digest::TensorHash;
use super::{
    CodedDelta, Digest, Mismatch, NamedTensor, NamedTensors, Refused, archive, code, container,
    packed,
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

/// Below this cosine between its matrices and the base's a checkpoint is no fine-tune of that base: two separate
/// trainings give about 0, a fine-tune that moved as far as the base's own norm gives 0.7.
const RELATED: f64 = 0.1;

impl Delta {
    /// The delta of a fine-tuned checkpoint. Refuses one with a missing, extra or misshapen tensor, one that is
    /// not finite, and one that was not fine-tuned from this base.
    pub fn between(base: &NamedTensors, fine_tuned: &NamedTensors) -> Result<Delta, Mismatch> {
        check_shapes(&base.shapes(), &fine_tuned.shapes())?;
        check_related(base, fine_tuned)?;
        Delta::from_tensors(base, |name, base| {
            let missing = || Mismatch::Missing {
                tensor: name.to_owned(),
            };
            let tuned = fine_tuned.0.get(name).ok_or_else(missing)?;
            Ok(tuned
                .data
                .iter()
                .zip(&base.data)
                .map(|(tuned, base)| tuned - base)
                .collect())
        })
    }

    /// The delta in any of the forms a file may hold: a coded delta, a packed or an archived one, or a
    /// whole checkpoint.
    pub fn read(base: &NamedTensors, bytes: &[u8]) -> Result<Delta, Refused> {
        Self::read_as(base, bytes, |bytes| {
            Ok(NamedTensors::from_safetensors(bytes)?)
        })
    }

    /// The same, with a whole checkpoint read by `whole`.
    pub fn read_as(
        base: &NamedTensors,
        bytes: &[u8],
        whole: impl FnOnce(&[u8]) -> Result<NamedTensors, Refused>,
    ) -> Result<Delta, Refused> {
        let metadata = container::metadata(bytes)?;
        match metadata.get("format").map(String::as_str) {
            Some(packed::FORMAT) => Delta::from_packed(base, bytes),
            Some(archive::FORMAT) => Delta::from_archive_of(base, bytes),
            Some(code::FORMAT) => Delta::from_coded(base, &CodedDelta::from_bytes(bytes)?),
            _ => Ok(Delta::between(base, &whole(bytes)?)?),
        }
    }

    /// What a coded delta stands for; refuses one that was made for another base.
    pub fn from_coded(base: &NamedTensors, coded: &CodedDelta) -> Result<Delta, Refused> {
        coded.check(base.digest(), &base.shapes())?;
        Delta::from_tensors(base, |name, tensor| {
            Ok(coded
                .dense(name)
                .unwrap_or_else(|| vec![0.0; tensor.data.len()]))
        })
    }

    /// Quantises the delta that `dense` gives for each of the base's tensors, as many elements in row order.
    pub(super) fn from_tensors<E: From<Mismatch> + Send>(
        base: &NamedTensors,
        dense: impl Fn(&str, &NamedTensor) -> Result<Vec<f32>, E> + Sync,
    ) -> Result<Delta, E> {
        let part = |(name, tensor): (&String, &NamedTensor)| -> Result<_, E> {
            let data = dense(name, tensor)?;
            if let Some(index) = data.iter().position(|value| !value.is_finite()) {
                let tensor = name.clone();
                return Err(Mismatch::NotFinite { tensor, index }.into());
            }
            let shape = tensor.shape.clone();
            let part = match tensor.matrix() {
                Some(shape) => DeltaPart::Matrix(DeltaMatrix::quantise(shape, &data)),
                None => DeltaPart::Vector(NamedTensor { shape, data }),
            };
            Ok((name.clone(), part))
        };
        let parts: Vec<_> = base.0.par_iter().map(part).collect();
        let mut delta = Delta {
            base: base.digest(),
            matrices: BTreeMap::new(),
            vectors: BTreeMap::new(),
        };
        for part in parts {
            match part? {
                (name, DeltaPart::Matrix(matrix)) => drop(delta.matrices.insert(name, matrix)),
                (name, DeltaPart::Vector(vector)) => drop(delta.vectors.insert(name, vector)),
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

enum DeltaPart {
    Matrix(DeltaMatrix),
    Vector(NamedTensor),
}

impl DeltaMatrix {
    /// Rounds each row to 255 levels: scale = max |row| / 127.
    fn quantise([rows, cols]: [usize; 2], data: &[f32]) -> Self {
        let mut matrix = DeltaMatrix {
            rows,
            cols,
            scales: Vec::with_capacity(rows),
            values: Vec::with_capacity(data.len()),
        };
        for row in data.chunks_exact(cols) {
            let largest = row
                .iter()
                .fold(0f32, |largest, value| largest.max(value.abs()));
            let scale = largest / 127.0;
            matrix.scales.push(scale);
            // A row so small that its scale rounds to nothing is nothing.
            let divisor = if scale > 0.0 { scale } else { f32::INFINITY };
            let level =
                |value: &f32| (value / divisor).round_ties_even().clamp(-127.0, 127.0) as i8;
            matrix.values.extend(row.iter().map(level));
        }
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

pub(super) fn check_related(
    base: &NamedTensors,
    fine_tuned: &NamedTensors,
) -> Result<(), Mismatch> {
    let products = |(name, base): (&String, &NamedTensor)| {
        let mut sums = [0f64; 3];
        let tuned = fine_tuned.0.get(name).filter(|_| base.matrix().is_some());
        for (a, b) in base
            .data
            .iter()
            .zip(tuned.map_or(&[][..], |tuned| &tuned.data))
        {
            let (a, b) = (f64::from(*a), f64::from(*b));
            sums = [sums[0] + a * b, sums[1] + a * a, sums[2] + b * b];
        }
        sums
    };
    // Summed in order of name, so that the outcome does not depend on threads.
    let sums: Vec<_> = base.0.par_iter().map(products).collect();
    let [dot, a, b] = sums
        .iter()
        .fold([0.0; 3], |t, s| [t[0] + s[0], t[1] + s[1], t[2] + s[2]]);
    let cosine = dot / (a * b).sqrt();
    if cosine < RELATED {
        Err(Mismatch::Unrelated { cosine })
    } else {
        Ok(())
    }
}
