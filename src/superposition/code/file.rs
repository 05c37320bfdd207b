//! A coded delta as a safetensors file. What is written is a function of the content.
//!
//! ```text
//! <matrix>          U8   [rows, bytes a row]       the streams, see `ops::coded`
//! <matrix>:gains    BF16 [rows]
//! <matrix>:a        U8   [rank, ceil(cols / 2)]    factors of the rotated delta, see `Nibbles`
//! <matrix>:b        U8   [rank, ceil(rows / 2)]
//! <matrix>:scales   F32  [rank]
//! <matrix>:a        F32  [rank, cols]              or exact ones
//! <matrix>:b        F32  [rows, rank]
//! <other tensor>    BF16 its own shape
//! metadata: format, base, seed, table, layout, matrices (by name the shape, and the rate where there is a code), error,
//!           source, sha256; where they are known: process, defaults, measured
//! ```
//!
//! `sha256` is of the whole file as it is with zeros for these sixty-four digits: whatever bit is turned, the file is refused.
//!
//! Published tensor names have no colon. A matrix that is too small for a code is kept as any other tensor.

use std::collections::BTreeMap;
use std::ops::Range;

use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{About, CodedDelta, KeptTensor};
use crate::ops::coded::{Code, Kept, LAYOUT, LowRank, MOST_INPUTS, Nibbles, Rate, TABLE};
use crate::superposition::container::{self, Entry, Values};
use crate::superposition::{DeltaError, Digest, Remarks, Unreadable};

pub const FORMAT: &str = "choir/coded-delta/1";
/// No gain, scale, factor or value of a file is larger: whatever products and sums are made of them are finite.
const LARGEST: f32 = (1 << 30) as f32;
const GAINS: &str = ":gains";
const A: &str = ":a";
const B: &str = ":b";
const SCALES: &str = ":scales";
/// What stands before the digest in the header; within other values quotes are escaped.
const SEAL: &[u8] = br#""sha256":""#;
const UNSEALED: [u8; 64] = [b'0'; 64];

/// What the metadata says of a matrix.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    shape: [usize; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
}

impl CodedDelta {
    /// The file; equal coded deltas give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut matrices = BTreeMap::new();
        let mut entries = Vec::new();
        let mut entry = |name: String, shape: Vec<usize>, values| {
            entries.push(Entry {
                name,
                shape,
                values,
            });
        };
        for (name, KeptTensor { shape, kept }) in &self.tensors {
            let (code, low_rank) = match kept {
                Kept::Whole(values) => {
                    entry(name.clone(), shape.clone(), Values::Bf16(values));
                    continue;
                }
                Kept::LowRank(part) => (None, Some(part)),
                Kept::Coded {
                    code,
                    gains,
                    low_rank,
                } => (Some((code, gains)), low_rank.as_ref()),
            };
            let &[rows, cols] = &shape[..] else { continue };
            let shape = [rows, cols];
            let rate = code.map(|(code, _)| code.rate().to_string());
            matrices.insert(name, Matrix { shape, rate });
            if let Some((code, gains)) = code {
                let bytes = code.rate().row_bytes(cols);
                entry(name.clone(), vec![rows, bytes], Values::U8(code.stream()));
                entry(format!("{name}{GAINS}"), vec![rows], Values::Bf16(gains));
            }
            let (name_a, name_b) = (format!("{name}{A}"), format!("{name}{B}"));
            match low_rank {
                None => {}
                Some(LowRank::Nibbles(Nibbles { scales, a, b })) => {
                    let rank = scales.len();
                    entry(name_a, vec![rank, cols.div_ceil(2)], Values::U8(a));
                    entry(name_b, vec![rank, rows.div_ceil(2)], Values::U8(b));
                    entry(format!("{name}{SCALES}"), vec![rank], Values::F32(scales));
                }
                Some(LowRank::Exact { rank, a, b }) => {
                    entry(name_a, vec![*rank, cols], Values::F32(a));
                    entry(name_b, vec![rows, *rank], Values::F32(b));
                }
            }
        }
        let About {
            remarks,
            error,
            source,
            measured,
        } = &self.about;
        let mut metadata = BTreeMap::from([
            ("format", FORMAT.to_owned()),
            ("base", self.base.to_string()),
            ("seed", self.seed.to_string()),
            ("table", TABLE.to_string()),
            ("layout", LAYOUT.to_string()),
            ("matrices", serde_json::json!(matrices).to_string()),
            ("error", error.to_string()),
            ("source", source.to_string()),
            ("sha256", String::from_utf8_lossy(&UNSEALED).into_owned()),
        ]);
        metadata.extend(remarks.process.clone().map(|process| ("process", process)));
        metadata.extend(
            remarks
                .defaults
                .clone()
                .map(|defaults| ("defaults", defaults)),
        );
        metadata
            .extend((measured.as_ref()).map(|it| ("measured", serde_json::json!(it).to_string())));
        let mut file = container::encode(&metadata, entries);
        seal(&mut file);
        file
    }

    /// Reads a file, whatever base it belongs to ([`CodedDelta::check`] says). Everything that is read is checked: what
    /// comes back can be decoded and gives finite numbers.
    pub fn from_bytes(bytes: &[u8]) -> Result<CodedDelta, DeltaError> {
        let file = container::open(bytes)?;
        let mut metadata = container::metadata(bytes)?;
        container::check_format(&metadata, FORMAT)?;
        let number = |key: &str| container::parse::<u64>(key, container::field(&metadata, key)?);
        for (what, known) in [("table", TABLE), ("layout", LAYOUT)] {
            let found = number(what)?;
            if found != u64::from(known) {
                return Err(DeltaError::Version { what, found });
            }
        }
        if seal_of(bytes).is_none_or(|(at, digest)| &bytes[at] != digest.to_string().as_bytes()) {
            return Err(DeltaError::Damaged);
        }
        let seed = number("seed")?;
        let matrices: BTreeMap<String, Matrix> =
            container::parse("matrices", container::field(&metadata, "matrices")?)?;
        let error: f64 = container::parse("error", container::field(&metadata, "error")?)?;
        let measured = metadata
            .get("measured")
            .map(|text| container::parse("measured", text));
        let (base, source) = (
            container::digest(&metadata, "base")?,
            container::digest(&metadata, "source")?,
        );
        let mut reader = Reader {
            file: &file,
            unread: file.names().into_iter().collect(),
        };
        let mut tensors = BTreeMap::new();
        for (name, matrix) in matrices {
            let kept = reader.matrix(&name, &matrix)?;
            let shape = matrix.shape.to_vec();
            tensors.insert(name, KeptTensor { shape, kept });
        }
        for name in std::mem::take(&mut reader.unread) {
            let view = view(&file, name)?;
            let shape = view.shape().to_vec();
            if view.data().is_empty() {
                return Err(Unreadable::NoElements {
                    tensor: name.to_owned(),
                }
                .into());
            }
            let values = bf16s(&file, name, &shape)?;
            let kept = Kept::Whole(values);
            tensors.insert(name.to_owned(), KeptTensor { shape, kept });
        }
        Ok(CodedDelta {
            base,
            seed,
            tensors,
            about: About {
                error,
                source,
                measured: measured.transpose()?,
                remarks: Remarks {
                    process: metadata.remove("process"),
                    defaults: metadata.remove("defaults"),
                },
            },
        })
    }
}

/// Where a file's digest stands, and what it is to be.
fn seal_of(file: &[u8]) -> Option<(Range<usize>, Digest)> {
    let length = u64::from_le_bytes(*file.first_chunk()?);
    let header = file.get(8..)?.get(..usize::try_from(length).ok()?)?;
    let found = header.windows(SEAL.len()).position(|found| found == SEAL);
    let start = 8 + found? + SEAL.len();
    let end = start + UNSEALED.len();
    let parts = [file.get(..start)?, &UNSEALED, file.get(end..)?];
    Some((start..end, Digest::of_parts(parts)))
}

/// Writes a file's digest into it.
pub(super) fn seal(file: &mut [u8]) {
    if let Some((at, digest)) = seal_of(file) {
        file[at].copy_from_slice(digest.to_string().as_bytes());
    }
}

struct Reader<'a> {
    file: &'a SafeTensors<'a>,
    /// Tensors that nothing has asked for yet.
    unread: std::collections::BTreeSet<&'a str>,
}

impl Reader<'_> {
    fn matrix(&mut self, name: &str, about: &Matrix) -> Result<Kept, DeltaError> {
        let [rows, cols] = about.shape;
        let of = |detail: &str| malformed(name, detail);
        // A header's numbers are anybody's: they must not overflow what follows.
        if rows == 0 || cols == 0 || cols > MOST_INPUTS || rows > 1 << 32 {
            return Err(of("a shape that no matrix has").into());
        }
        let code = match &about.rate {
            None => None,
            Some(text) => Some(self.code(name, [rows, cols], text)?),
        };
        let low_rank = match self.take(&format!("{name}{A}")) {
            false => None,
            true => Some(self.low_rank(name, [rows, cols])?),
        };
        match (code, low_rank) {
            (Some((code, gains)), low_rank) => Ok(Kept::Coded {
                code,
                gains,
                low_rank,
            }),
            (None, Some(part)) => Ok(Kept::LowRank(part)),
            (None, None) => Err(of("neither a code nor factors").into()),
        }
    }

    fn code(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        rate: &str,
    ) -> Result<(Code, Vec<bf16>), DeltaError> {
        let rate: Rate = rate.parse()?;
        let gains_name = format!("{name}{GAINS}");
        self.take(name);
        self.take(&gains_name);
        let stream = u8s(self.file, name, &[rows, rate.row_bytes(cols)])?;
        let code = Code::new(rate, [rows, cols], stream)
            .map_err(|error| malformed(name, &error.to_string()))?;
        Ok((code, bf16s(self.file, &gains_name, &[rows])?))
    }

    fn low_rank(&mut self, name: &str, [rows, cols]: [usize; 2]) -> Result<LowRank, Unreadable> {
        let [name_a, name_b, name_scales] = [A, B, SCALES].map(|end| format!("{name}{end}"));
        self.take(&name_b);
        let first = view(self.file, &name_a)?;
        let rank = first.shape().first().copied().unwrap_or(0);
        // Those of several modules side by side may be more than either side.
        if rank == 0 || rank > rows + cols {
            return Err(malformed(name, &format!("factors of rank {rank}")));
        }
        if first.dtype() != Dtype::U8 {
            return Ok(LowRank::Exact {
                rank,
                a: f32s(self.file, &name_a, &[rank, cols])?,
                b: f32s(self.file, &name_b, &[rows, rank])?,
            });
        }
        self.take(&name_scales);
        Ok(LowRank::Nibbles(Nibbles {
            a: u8s(self.file, &name_a, &[rank, cols.div_ceil(2)])?,
            b: u8s(self.file, &name_b, &[rank, rows.div_ceil(2)])?,
            scales: f32s(self.file, &name_scales, &[rank])?,
        }))
    }

    /// Whether the file has a tensor of that name, which is then read.
    fn take(&mut self, name: &str) -> bool {
        self.unread.remove(name)
    }
}

fn malformed(name: &str, detail: &str) -> Unreadable {
    Unreadable::Malformed {
        detail: format!("{name}: {detail}"),
    }
}

fn view<'a>(
    file: &'a SafeTensors,
    name: &str,
) -> Result<safetensors::tensor::TensorView<'a>, Unreadable> {
    file.tensor(name).map_err(|_| Unreadable::Malformed {
        detail: format!("it lacks {name}"),
    })
}

/// A view of the shape that is expected.
fn shaped<'a>(
    file: &'a SafeTensors,
    name: &str,
    shape: &[usize],
) -> Result<safetensors::tensor::TensorView<'a>, Unreadable> {
    let view = view(file, name)?;
    match view.shape() == shape {
        true => Ok(view),
        false => Err(malformed(
            name,
            &format!("its shape is {:?}, not {shape:?}", view.shape()),
        )),
    }
}

fn u8s(file: &SafeTensors, name: &str, shape: &[usize]) -> Result<Vec<u8>, Unreadable> {
    Ok(container::u8s(name, &shaped(file, name, shape)?)?.to_vec())
}

fn f32s(file: &SafeTensors, name: &str, shape: &[usize]) -> Result<Vec<f32>, Unreadable> {
    let values = container::floats(name, &shaped(file, name, shape)?)?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(malformed(name, "a value is not finite"));
    }
    match values.iter().all(|value| value.abs() <= LARGEST) {
        true => Ok(values),
        false => Err(malformed(name, "a value is larger than any delta's")),
    }
}

fn bf16s(file: &SafeTensors, name: &str, shape: &[usize]) -> Result<Vec<bf16>, Unreadable> {
    let view = shaped(file, name, shape)?;
    if view.dtype() != Dtype::BF16 {
        let (tensor, dtype) = (name.to_owned(), view.dtype().to_string());
        return Err(Unreadable::Dtype { tensor, dtype });
    }
    Ok(f32s(file, name, shape)?
        .into_iter()
        .map(bf16::from_f32)
        .collect())
}
