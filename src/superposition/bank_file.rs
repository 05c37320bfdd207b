//! A bank as a file: safetensors under the base's tensor names, the layout of the fixed point in the metadata.
//! Equal banks give equal bytes.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::container::{self, Entry, Values};
use super::{Bank, Cells, FixedTensor, Scheme, Unreadable};

const FORMAT: &str = "choir/bank/1";

impl Bank {
    pub fn to_bytes(&self) -> Vec<u8> {
        let bits: BTreeMap<_, _> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name, tensor.fraction_bits))
            .collect();
        let metadata = BTreeMap::from([
            ("format", FORMAT.to_owned()),
            ("capacity", self.capacity.to_string()),
            ("scheme", serde_json::json!(self.scheme).to_string()),
            ("fraction_bits", serde_json::json!(bits).to_string()),
        ]);
        let entries = self.tensors.iter().map(|(name, tensor)| Entry {
            name: name.clone(),
            shape: vec![tensor.rows, tensor.cols],
            values: match &tensor.cells {
                Cells::I16(cells) => Values::I16(cells),
                Cells::I32(cells) => Values::I32(cells),
            },
        });
        container::encode(&metadata, entries.collect())
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Bank, Unreadable> {
        let file = container::open(bytes)?;
        let metadata = container::metadata(bytes)?;
        let field = |key| container::field(&metadata, key);
        container::check_format(&metadata, FORMAT)?;
        let capacity: usize = container::parse("capacity", field("capacity")?)?;
        let scheme: Scheme = container::parse("scheme", field("scheme")?)?;
        let bits: BTreeMap<String, u32> =
            container::parse("fraction_bits", field("fraction_bits")?)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let malformed = |detail: &str| Unreadable::Malformed {
                detail: format!("{detail} of {name}"),
            };
            let [rows, cols] = *view.shape() else {
                return Err(malformed("the shape"));
            };
            let fraction_bits = *bits
                .get(name)
                .filter(|bits| **bits < 32)
                .ok_or_else(|| malformed("the quantum"))?;
            let cells = match view.dtype() {
                Dtype::I16 => Cells::I16(container::i16s(name, &view)?),
                _ => Cells::I32(container::i32s(name, &view)?),
            };
            tensors.insert(
                name.to_owned(),
                FixedTensor {
                    rows,
                    cols,
                    fraction_bits,
                    cells,
                },
            );
        }
        Ok(Bank {
            capacity,
            scheme,
            tensors,
        })
    }
}
