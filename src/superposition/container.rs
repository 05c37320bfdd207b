//! Reading and writing safetensors bytes. What is written is a function of the content: the metadata and the
//! tensors stand in a fixed order, so equal content gives equal files.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::{Digest, Unreadable};
use crate::checkpoint;

/// The values of one tensor to write.
pub(super) enum Values<'a> {
    F32(&'a [f32]),
    I32(&'a [i32]),
    I16(&'a [i16]),
    Bf16(&'a [bf16]),
    I8(&'a [i8]),
    U8(&'a [u8]),
}

impl Values<'_> {
    /// The format's name of the type and its bytes an element.
    fn kind(&self) -> (&'static str, usize) {
        match self {
            Values::F32(_) => ("F32", 4),
            Values::I32(_) => ("I32", 4),
            Values::I16(_) => ("I16", 2),
            Values::Bf16(_) => ("BF16", 2),
            Values::I8(_) => ("I8", 1),
            Values::U8(_) => ("U8", 1),
        }
    }

    fn len(&self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::I32(values) => values.len(),
            Values::I16(values) => values.len(),
            Values::Bf16(values) => values.len(),
            Values::I8(values) => values.len(),
            Values::U8(values) => values.len(),
        }
    }

    fn bytes(&self) -> usize {
        self.len() * self.kind().1
    }

    /// Writes the values, little-endian, over `out`.
    fn write(&self, out: &mut [u8]) {
        match self {
            Values::F32(values) => each(out, values, f32::to_le_bytes),
            Values::I32(values) => each(out, values, i32::to_le_bytes),
            Values::I16(values) => each(out, values, i16::to_le_bytes),
            Values::Bf16(values) => each(out, values, bf16::to_le_bytes),
            Values::I8(values) => each(out, values, i8::to_le_bytes),
            Values::U8(values) => out.copy_from_slice(values),
        }
    }
}

fn each<T: Copy, const N: usize>(out: &mut [u8], values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    for (to, value) in out.chunks_exact_mut(N).zip(values) {
        to.copy_from_slice(&bytes(*value));
    }
}

/// One tensor to write.
pub(super) struct Entry<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Values<'a>,
}

/// A safetensors file: the wider types first (which keeps every tensor aligned), by name within a type.
pub(super) fn encode(metadata: &BTreeMap<&str, String>, mut entries: Vec<Entry>) -> Vec<u8> {
    entries.sort_by(|a, b| {
        let width = |entry: &Entry| std::cmp::Reverse(entry.values.kind().1);
        width(a).cmp(&width(b)).then_with(|| a.name.cmp(&b.name))
    });
    let mut header = String::from("{\"__metadata__\":");
    header += &json!(metadata).to_string();
    let mut end = 0;
    for Entry {
        name,
        shape,
        values,
    } in &entries
    {
        let start = end;
        end += values.bytes();
        let info = json!({"dtype": values.kind().0, "shape": shape, "data_offsets": [start, end]});
        header += &format!(",{}:{info}", Value::from(name.as_str()));
    }
    header.push('}');
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut file = Vec::with_capacity(8 + header.len() + end);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header.as_bytes());
    let mut at = file.len();
    file.resize(at + end, 0);
    for Entry { values, .. } in &entries {
        let next = at + values.bytes();
        values.write(&mut file[at..next]);
        at = next;
    }
    file
}

/// Reads the header of a safetensors file; says so where it is something else that people have at hand.
pub(super) fn open(bytes: &[u8]) -> Result<SafeTensors<'_>, Unreadable> {
    checkpoint::check(bytes)?;
    SafeTensors::deserialize(bytes).map_err(|error| Unreadable::Malformed {
        detail: error.to_string(),
    })
}

/// The metadata of a safetensors file; empty where it has none.
pub(super) fn metadata(bytes: &[u8]) -> Result<BTreeMap<String, String>, Unreadable> {
    open(bytes)?; // for its errors: the library gives the metadata by another way
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|_| Unreadable::WrongLength)?;
    Ok(header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect())
}

/// Whether a file is of this crate's own kinds, by the format in its metadata: no checkpoint.
pub fn is_own(bytes: &[u8]) -> bool {
    let metadata = metadata(bytes).unwrap_or_default();
    let format = metadata.get("format");
    format.is_some_and(|format| format.starts_with("choir/"))
}

fn wrong_type(name: &str, view: &TensorView) -> Unreadable {
    Unreadable::Dtype {
        tensor: name.to_owned(),
        dtype: view.dtype().to_string(),
    }
}

fn decode<T, const N: usize>(data: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks()
        .0
        .iter()
        .map(|bytes| from(*bytes))
        .collect()
}

/// The values of an F32, F16 or BF16 tensor.
pub(super) fn floats(name: &str, view: &TensorView) -> Result<Vec<f32>, Unreadable> {
    match view.dtype() {
        Dtype::F32 => Ok(decode(view.data(), f32::from_le_bytes)),
        Dtype::F16 => Ok(decode(view.data(), |bytes| {
            f16::from_le_bytes(bytes).to_f32()
        })),
        Dtype::BF16 => Ok(decode(view.data(), |bytes| {
            bf16::from_le_bytes(bytes).to_f32()
        })),
        _ => Err(wrong_type(name, view)),
    }
}

pub(super) fn i32s(name: &str, view: &TensorView) -> Result<Vec<i32>, Unreadable> {
    match view.dtype() {
        Dtype::I32 => Ok(decode(view.data(), i32::from_le_bytes)),
        _ => Err(wrong_type(name, view)),
    }
}

pub(super) fn i16s(name: &str, view: &TensorView) -> Result<Vec<i16>, Unreadable> {
    match view.dtype() {
        Dtype::I16 => Ok(decode(view.data(), i16::from_le_bytes)),
        _ => Err(wrong_type(name, view)),
    }
}

pub(super) fn i8s(name: &str, view: &TensorView) -> Result<Vec<i8>, Unreadable> {
    match view.dtype() {
        Dtype::I8 => Ok(decode(view.data(), i8::from_le_bytes)),
        _ => Err(wrong_type(name, view)),
    }
}

pub(super) fn u8s<'a>(name: &str, view: &TensorView<'a>) -> Result<&'a [u8], Unreadable> {
    match view.dtype() {
        Dtype::U8 => Ok(view.data()),
        _ => Err(wrong_type(name, view)),
    }
}

/// A field of the metadata.
pub(super) fn field<'a>(
    metadata: &'a BTreeMap<String, String>,
    key: &str,
) -> Result<&'a str, Unreadable> {
    let missing = || Unreadable::Malformed {
        detail: format!("its metadata lacks {key}"),
    };
    metadata.get(key).map(String::as_str).ok_or_else(missing)
}

/// Refuses a file of another format.
pub(super) fn check_format(
    metadata: &BTreeMap<String, String>,
    expected: &str,
) -> Result<(), Unreadable> {
    let found = metadata.get("format").cloned().unwrap_or_default();
    if found == expected {
        Ok(())
    } else {
        Err(Unreadable::Format { found })
    }
}

/// A metadata field that holds JSON.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    key: &str,
    text: &str,
) -> Result<T, Unreadable> {
    serde_json::from_str(text).map_err(|error| Unreadable::Malformed {
        detail: format!("{key} in its metadata: {error}"),
    })
}

/// A metadata field that holds a digest.
pub(super) fn digest(metadata: &BTreeMap<String, String>, key: &str) -> Result<Digest, Unreadable> {
    let malformed = || Unreadable::Malformed {
        detail: format!("{key} in its metadata is no digest"),
    };
    Digest::parse(field(metadata, key)?).ok_or_else(malformed)
}
