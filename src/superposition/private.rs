//! What a variant keeps whole: its gains, and the deltas of the tensors that are no matrices.

use std::collections::BTreeMap;

use super::container::{self, Entry, Values};
use super::{Delta, Unreadable};

const FORMAT: &str = "choir/private/1";

/// The private tensors of one variant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Private {
    /// a_k of every matrix: one gain a row.
    pub gains: BTreeMap<String, Vec<f32>>,
    /// The delta of every other tensor, flat.
    pub vectors: BTreeMap<String, Vec<f32>>,
}

impl Private {
    /// The private tensors that belong to `delta`.
    pub fn of(delta: &Delta) -> Self {
        let gains = delta
            .matrices
            .iter()
            .map(|(name, matrix)| (name.clone(), matrix.gains()));
        let vectors = delta
            .vectors
            .iter()
            .map(|(name, vector)| (name.clone(), vector.data.clone()));
        Private {
            gains: gains.collect(),
            vectors: vectors.collect(),
        }
    }

    /// Bytes in memory as it is served: two for a number (bf16).
    pub fn bytes(&self) -> usize {
        self.gains
            .values()
            .chain(self.vectors.values())
            .map(|values| 2 * values.len())
            .sum()
    }

    /// The file: `gains.<tensor>` and `vectors.<tensor>`, all F32 [n].
    pub fn to_bytes(&self) -> Vec<u8> {
        let metadata = BTreeMap::from([("format", FORMAT.to_owned())]);
        let gains = self
            .gains
            .iter()
            .map(|(name, values)| (format!("gains.{name}"), values));
        let vectors = self
            .vectors
            .iter()
            .map(|(name, values)| (format!("vectors.{name}"), values));
        let entries = gains.chain(vectors).map(|(name, values)| Entry {
            name,
            shape: vec![values.len()],
            values: Values::F32(values),
        });
        container::encode(&metadata, entries.collect())
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Private, Unreadable> {
        let file = container::open(bytes)?;
        container::check_format(&container::metadata(bytes)?, FORMAT)?;
        let mut private = Private::default();
        for (full, view) in file.iter() {
            let values = container::floats(full, &view)?;
            let (part, name) = match (full.strip_prefix("gains."), full.strip_prefix("vectors.")) {
                (Some(name), _) => (&mut private.gains, name),
                (_, Some(name)) => (&mut private.vectors, name),
                _ => {
                    return Err(Unreadable::Malformed {
                        detail: format!("the tensor {full} is not expected"),
                    });
                }
            };
            part.insert(name.to_owned(), values);
        }
        Ok(private)
    }
}
