//! The packed delta: a small file to ship a variant in. Matrices are in 4 bits, in groups along a row that share
//! one BF16 scale chosen by least squares; everything else is in BF16.
//!
//! ```text
//! <matrix>         U8   [rows, ceil(cols / 2)]       two levels a byte, the first in the low half, level + 8
//! <matrix>:scales  BF16 [rows, ceil(cols / group)]   element = level · scale, -8 <= level <= 7
//! <other tensor>   BF16 its own shape
//! metadata: format, group, base (the base's digest); where it was said, process and defaults (see [`Remarks`])
//! ```
//!
//! The scales are not F16, whose small numbers end where the deltas of a careful fine-tune begin.

use std::collections::BTreeMap;

use half::bf16;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::archive::SCALES;
use super::container::{self, Entry, Values};
use super::delta::check_shapes;
use super::{
    Delta, DeltaError, Digest, Mismatch, NamedTensor, NamedTensors, Relation, Unreadable, code,
};

pub(super) const FORMAT: &str = "choir/packed-delta/1";

/// What a packed or a coded delta says of its variant beside the tensors. This module carries it and does not read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// The process it was tuned for, as JSON of the store's record.
    pub process: Option<String>,
    /// How it is sampled, as JSON of the store's record.
    pub defaults: Option<String>,
}

impl Remarks {
    /// Those of a file; none where it is neither a packed nor a coded delta.
    pub fn read(bytes: &[u8]) -> Result<Remarks, Unreadable> {
        let mut metadata = container::metadata(bytes)?;
        let format = metadata.get("format").map(String::as_str);
        if !matches!(format, Some(FORMAT | code::FORMAT)) {
            return Ok(Remarks::default());
        }
        Ok(Remarks {
            process: metadata.remove("process"),
            defaults: metadata.remove("defaults"),
        })
    }
}

/// Packs fine-tuned − base in groups of `group` elements (32 and 64 are sensible; at least 1). Refuses what
/// [`Delta::between`] does.
pub fn pack(
    base: &NamedTensors,
    fine_tuned: &NamedTensors,
    group: usize,
) -> Result<Vec<u8>, DeltaError> {
    pack_with(base, fine_tuned, group, Remarks::default())
}

/// [`pack`], with remarks.
pub fn pack_with(
    base: &NamedTensors,
    fine_tuned: &NamedTensors,
    group: usize,
    remarks: Remarks,
) -> Result<Vec<u8>, DeltaError> {
    let group = group.max(1);
    let digest = Relation::of(base, fine_tuned)?.base;
    let tensors: Vec<_> = base.0.iter().zip(fine_tuned.0.values()).collect();
    let pack = |&((name, base), tuned): &((&String, &NamedTensor), &NamedTensor)| {
        let delta: Vec<f32> = tuned
            .data
            .iter()
            .zip(&base.data)
            .map(|(tuned, base)| tuned - base)
            .collect();
        if let Some(index) = delta.iter().position(|value| !value.is_finite()) {
            return Err(Mismatch::NotFinite {
                tensor: name.clone(),
                index,
            });
        }
        Ok(match base.matrix() {
            Some([_, cols]) => pack_rows(&delta, cols, group),
            None => (
                Vec::new(),
                delta.iter().map(|value| bf16::from_f32(*value)).collect(),
            ),
        })
    };
    let packed: Vec<_> = tensors.par_iter().map(pack).collect::<Result<_, _>>()?;
    let mut entries = Vec::with_capacity(2 * packed.len());
    for ((name, base), (levels, floats)) in base.0.iter().zip(&packed) {
        let (name, shape, values) = (name.clone(), base.shape.clone(), Values::Bf16(floats));
        let Some([rows, cols]) = base.matrix() else {
            entries.push(Entry {
                name,
                shape,
                values,
            });
            continue;
        };
        let shape = vec![rows, cols.div_ceil(group)];
        entries.push(Entry {
            name: format!("{name}{SCALES}"),
            shape,
            values,
        });
        let (shape, values) = (vec![rows, cols.div_ceil(2)], Values::U8(levels));
        entries.push(Entry {
            name,
            shape,
            values,
        });
    }
    let mut metadata = BTreeMap::from([
        ("format", FORMAT.to_owned()),
        ("group", group.to_string()),
        ("base", digest.to_string()),
    ]);
    metadata.extend(remarks.process.map(|process| ("process", process)));
    metadata.extend(remarks.defaults.map(|defaults| ("defaults", defaults)));
    Ok(container::encode(&metadata, entries))
}

impl Delta {
    /// Reads a packed delta; refuses one that was made for another base.
    pub(super) fn from_packed(
        digest: Digest,
        shapes: &BTreeMap<String, Vec<usize>>,
        bytes: &[u8],
    ) -> Result<Delta, DeltaError> {
        let file = container::open(bytes)?;
        let metadata = container::metadata(bytes)?;
        container::check_format(&metadata, FORMAT)?;
        let (expected, found) = (digest, container::digest(&metadata, "base")?);
        if expected != found {
            return Err(Mismatch::OtherBase { expected, found }.into());
        }
        let group: usize = container::parse("group", container::field(&metadata, "group")?)?;
        if group == 0 {
            return Err(Unreadable::Malformed {
                detail: "its groups are empty".to_owned(),
            }
            .into());
        }
        let found = file
            .iter()
            .map(|(name, view)| (name.to_owned(), view.shape().to_vec()))
            .collect();
        check_shapes(&packed_shapes(shapes, group), &found)?;
        Delta::from_tensors(digest, shapes, |name, _| {
            Ok(unpack(&file, name, &shapes[name], group)?)
        })
    }
}

/// The shapes of the tensors in the file.
fn packed_shapes(
    base: &BTreeMap<String, Vec<usize>>,
    group: usize,
) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    for (name, shape) in base {
        if let &[rows, cols] = &shape[..] {
            shapes.insert(format!("{name}{SCALES}"), vec![rows, cols.div_ceil(group)]);
            shapes.insert(name.clone(), vec![rows, cols.div_ceil(2)]);
        } else {
            shapes.insert(name.clone(), shape.clone());
        }
    }
    shapes
}

/// One tensor's delta in f32. The shapes have been checked.
fn unpack(
    file: &SafeTensors,
    name: &str,
    shape: &[usize],
    group: usize,
) -> Result<Vec<f32>, Unreadable> {
    let view = |name: &str| {
        let missing = |_| Unreadable::Malformed {
            detail: format!("it lacks {name}"),
        };
        file.tensor(name).map_err(missing)
    };
    let &[rows, cols] = shape else {
        return container::floats(name, &view(name)?);
    };
    let scales_name = format!("{name}{SCALES}");
    let scales_view = view(&scales_name)?;
    if scales_view.dtype() != Dtype::BF16 {
        return Err(Unreadable::Dtype {
            tensor: scales_name,
            dtype: scales_view.dtype().to_string(),
        });
    }
    let scales = container::floats(&scales_name, &scales_view)?;
    let packed_view = view(name)?;
    let packed = container::u8s(name, &packed_view)?;
    let mut delta = Vec::with_capacity(rows * cols);
    for (bytes, scales) in packed
        .chunks_exact(cols.div_ceil(2))
        .zip(scales.chunks_exact(cols.div_ceil(group)))
    {
        let element = |col: usize| {
            let level = i32::from(bytes[col / 2] >> (col % 2 * 4) & 15) - 8;
            level as f32 * scales[col / group]
        };
        delta.extend((0..cols).map(element));
    }
    Ok(delta)
}

/// Levels, two a byte, and scales of a matrix.
fn pack_rows(delta: &[f32], cols: usize, group: usize) -> (Vec<u8>, Vec<bf16>) {
    let (mut levels, mut scales) = (Vec::new(), Vec::new());
    for row in delta.chunks_exact(cols) {
        let start = levels.len();
        levels.resize(start + cols.div_ceil(2), 0);
        for (index, values) in row.chunks(group).enumerate() {
            let scale = best_scale(values);
            scales.push(scale);
            for (offset, value) in values.iter().enumerate() {
                let col = index * group + offset;
                levels[start + col / 2] |=
                    ((level(*value, scale.to_f32()) as i8 + 8) as u8) << (col % 2 * 4);
            }
        }
    }
    (levels, scales)
}

/// The nearest of the sixteen levels.
fn level(value: f32, scale: f32) -> f32 {
    if scale == 0.0 {
        0.0
    } else {
        (value / scale).round_ties_even().clamp(-8.0, 7.0)
    }
}

/// A scale near the one of least squared error: for each of a few first guesses, around the one that puts the
/// largest magnitude at the last level, the levels it gives and the best scale for them.
fn best_scale(values: &[f32]) -> bf16 {
    let largest = values
        .iter()
        .fold(0f32, |a, b| if b.abs() > a.abs() { *b } else { a });
    let mut best = (0.0, bf16::ZERO);
    for guess in 0..=12 {
        for side in [-1.0, 1.0] {
            let first = largest / (side * (5.5 + 0.25 * guess as f32));
            let (mut product, mut squares) = (0f64, 0f64);
            for value in values {
                let level = f64::from(level(*value, first));
                product += level * f64::from(*value);
                squares += level * level;
            }
            // The squared error falls by product² / squares when the scale is product / squares.
            if squares > 0.0 && product * product / squares > best.0 {
                best = (
                    product * product / squares,
                    bf16::from_f64(product / squares),
                );
            }
        }
    }
    best.1
}
