//! A model's tensors by name, from a checkpoint.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::digest::TensorDigest;
use super::{Digest, Unreadable};
use crate::checkpoint::{Checkpoint, room};

/// One tensor, f32 in row order.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl NamedTensor {
    /// [out, in] where this is a matrix; everything else is kept whole by a variant.
    pub fn matrix(&self) -> Option<[usize; 2]> {
        match self.shape[..] {
            [rows, cols] => Some([rows, cols]),
            _ => None,
        }
    }
}

/// A model's tensors by internal name: without the checkpoint's `backbone.` prefix, its buffers dropped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedTensors(pub BTreeMap<String, NamedTensor>);

impl FromIterator<(String, (Vec<usize>, Vec<f32>))> for NamedTensors {
    fn from_iter<I: IntoIterator<Item = (String, (Vec<usize>, Vec<f32>))>>(parts: I) -> Self {
        let named = |(name, (shape, data))| (name, NamedTensor { shape, data });
        NamedTensors(parts.into_iter().map(named).collect())
    }
}

/// Buffers of the published classes: derived from the configuration, not weights.
const BUFFERS: [&str; 3] = [
    "rotary_emb.inv_freq",
    "sampling_eps_min",
    "sampling_eps_max",
];

impl NamedTensors {
    /// Reads a safetensors checkpoint in F32, F16 or BF16.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, Unreadable> {
        Self::read(&Checkpoint::from_bytes(bytes)?)
    }

    /// All tensors of a checkpoint, in f32 and in memory.
    pub fn read(checkpoint: &Checkpoint<'_>) -> Result<Self, Unreadable> {
        let mut tensors = BTreeMap::new();
        for (full, view) in checkpoint.iter() {
            let name = full.strip_prefix("backbone.").unwrap_or(full);
            if BUFFERS.contains(&name) {
                continue;
            }
            let tensor = name.to_owned();
            let (shape, data) = (view.shape.to_vec(), view.to_f32()?);
            if tensors
                .insert(tensor, NamedTensor { shape, data })
                .is_some()
            {
                return Err(Unreadable::Twice {
                    tensor: name.to_owned(),
                });
            }
        }
        Ok(NamedTensors(tensors))
    }

    /// Shapes and values by name, as networks take them.
    pub fn into_parts(self) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let parts = |(name, tensor): (String, NamedTensor)| (name, (tensor.shape, tensor.data));
        self.0.into_iter().map(parts).collect()
    }

    /// SHA-256 over every tensor in order of name: name, shape and the values as little-endian f32.
    pub fn digest(&self) -> Digest {
        let mut digest = TensorDigest::default();
        for (name, tensor) in &self.0 {
            digest.add(name, &tensor.shape, &tensor.data);
        }
        digest.finish()
    }

    /// Every tensor's shape.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shape = |(name, tensor): (&String, &NamedTensor)| (name.clone(), tensor.shape.clone());
        self.0.iter().map(shape).collect()
    }
}

/// Reads a file whole, where there is memory for it; says so where `path` is a directory, or a device or a pipe, which may never end. A file that says it
/// is empty is taken at its word: those of /proc do, and some of them block.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Unreadable> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK) // opening a pipe would wait for its writer
        .open(path)?;
    read_open(&file)
}

/// The same of a file that is open, from its beginning.
pub fn read_open(mut file: &File) -> Result<Vec<u8>, Unreadable> {
    let length = match file.metadata()? {
        found if found.is_dir() => return Err(Unreadable::Directory),
        found if !found.is_file() => return Err(Unreadable::NotAFile),
        found if found.len() == 0 => return Err(Unreadable::Empty),
        found => found.len(),
    };
    room(length)?;
    let mut bytes = Vec::new();
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    (bytes.try_reserve_exact(wanted)).map_err(std::io::Error::other)?;
    file.rewind()?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}
