//! The archived delta as a file: each matrix in I8 beside its row scales in F32, everything else in F32.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::container::{self, Entry, Values};
use super::{Delta, DeltaMatrix, NamedTensor, Unreadable};

pub(super) const FORMAT: &str = "choir/delta/1";
/// Ends the name of a matrix's row scales; the published tensor names have no colon.
pub(super) const SCALES: &str = ":scales";

impl Delta {
    /// The archive file; equal deltas give equal bytes.
    pub fn to_archive(&self) -> Vec<u8> {
        let metadata = BTreeMap::from([
            ("format", FORMAT.to_owned()),
            ("base", self.base.to_string()),
        ]);
        let mut entries = Vec::with_capacity(2 * self.matrices.len() + self.vectors.len());
        for (name, matrix) in &self.matrices {
            entries.push(Entry {
                name: name.clone(),
                shape: vec![matrix.rows, matrix.cols],
                values: Values::I8(&matrix.values),
            });
            entries.push(Entry {
                name: format!("{name}{SCALES}"),
                shape: vec![matrix.rows],
                values: Values::F32(&matrix.scales),
            });
        }
        for (name, vector) in &self.vectors {
            entries.push(Entry {
                name: name.clone(),
                shape: vector.shape.clone(),
                values: Values::F32(&vector.data),
            });
        }
        container::encode(&metadata, entries)
    }

    /// Reads an archive file, whatever base it belongs to.
    pub fn from_archive(bytes: &[u8]) -> Result<Delta, Unreadable> {
        let file = container::open(bytes)?;
        let metadata = container::metadata(bytes)?;
        container::check_format(&metadata, FORMAT)?;
        let base = container::digest(&metadata, "base")?;
        let (mut matrices, mut vectors, mut scales) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, view) in file.iter() {
            let malformed = |detail: &str| Unreadable::Malformed {
                detail: format!("{detail} of {name}"),
            };
            if view.dtype() == Dtype::I8 {
                let [rows, cols] = *view.shape() else {
                    return Err(malformed("the shape"));
                };
                if rows == 0 || cols == 0 {
                    return Err(Unreadable::NoElements {
                        tensor: name.to_owned(),
                    });
                }
                let (scales, values) = (Vec::new(), container::i8s(name, &view)?);
                matrices.insert(
                    name.to_owned(),
                    DeltaMatrix {
                        rows,
                        cols,
                        scales,
                        values,
                    },
                );
                continue;
            }
            let data = container::floats(name, &view)?;
            if !data.iter().all(|value| value.is_finite()) {
                return Err(malformed("a value that is not finite is one"));
            }
            match name.strip_suffix(SCALES) {
                Some(matrix) => drop(scales.insert(matrix.to_owned(), data)),
                None => drop(vectors.insert(
                    name.to_owned(),
                    NamedTensor {
                        shape: view.shape().to_vec(),
                        data,
                    },
                )),
            }
        }
        for (name, matrix) in &mut matrices {
            let found = scales
                .remove(name)
                .filter(|scales| scales.len() == matrix.rows);
            let missing = || Unreadable::Malformed {
                detail: format!("it lacks the scales of {name}"),
            };
            matrix.scales = found.ok_or_else(missing)?;
        }
        Ok(Delta {
            base,
            matrices,
            vectors,
        })
    }
}
