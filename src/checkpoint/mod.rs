//! Checkpoints as they are published: one safetensors file, or an index and its shards, mapped and read tensor by tensor.
//!
//! Opening one reads headers only, so names, shapes and sizes are known before anything large is touched. A file must not
//! be cut while it is open, as with every mapped file: the process would end.

mod foreign;
mod index;
mod memory;
mod tensor;
#[cfg(test)]
mod tests;
mod unreadable;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::SafeTensorError;

pub use foreign::foreign;
pub use memory::{NoRoom, available, room};
pub use tensor::View;
pub use unreadable::Unreadable;

/// The one file of a checkpoint that fits one, and the index of one that is in shards.
pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
/// What wrappers put before every name: compilation, data parallelism, training frameworks, the published diffusion classes.
const WRAPPERS: [&str; 4] = ["_orig_mod.", "module.", "model.", "backbone."];
/// Bytes of an index at most: a hundred thousand tensors' worth.
const LONGEST_INDEX: u64 = 32 << 20;

/// The bytes of one shard.
#[derive(Debug)]
enum Bytes<'a> {
    Mapped(Mmap),
    Held(Cow<'a, [u8]>),
}

impl Bytes<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct TensorLocation {
    shard: usize,
    begin: usize,
    end: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
}

/// A published checkpoint: tensors by name, read when they are asked for.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    shards: Vec<Bytes<'a>>,
    places: BTreeMap<String, TensorLocation>,
}

impl Checkpoint<'static> {
    /// Opens a folder in the published layout (the single file, or the index and its shards), an index, or a safetensors
    /// file. Whatever else lies in the folder is ignored.
    ///
    /// # Errors
    /// Names the file at fault: missing, cut, of another kind, outside the folder; or the tensor: in two shards, or in none.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        if std::fs::metadata(path)?.is_dir() {
            let (single, index) = (path.join(SINGLE), path.join(INDEX));
            return match (single.exists(), index.exists()) {
                (true, _) => Self::open(&single),
                (_, true) => Self::open(&index),
                _ => Err(Unreadable::NoWeights {
                    instead: foreign::weights_in(path),
                }),
            };
        }
        if path.to_string_lossy().ends_with(".index.json") {
            return Self::sharded(path);
        }
        let mut checkpoint = Checkpoint::empty();
        checkpoint.add(map(path)?, |_, _| Ok(()))?;
        Ok(checkpoint)
    }

    /// The shards that an index names, and no others.
    fn sharded(path: &Path) -> Result<Self, Unreadable> {
        let text = read_small(path, LONGEST_INDEX)?;
        let index = index::Index::parse(&text)?;
        let mut checkpoint = Checkpoint::empty();
        for shard in index.shards() {
            let said = |name: &str, twice: bool| match index.shard_of(name) {
                _ if twice => Err(Unreadable::Twice {
                    tensor: name.into(),
                }),
                Some(file) if file == shard => Ok(()),
                Some(_) => Err(Unreadable::Twice {
                    tensor: name.into(),
                }),
                None => Err(Unreadable::NotIndexed {
                    tensor: name.into(),
                }),
            };
            let add =
                map(&path.with_file_name(shard)).and_then(|bytes| checkpoint.add(bytes, said));
            add.map_err(|error| match error {
                Unreadable::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Unreadable::MissingShard {
                        shard: shard.into(),
                    }
                }
                whole @ (Unreadable::Twice { .. } | Unreadable::NotIndexed { .. }) => whole,
                error => Unreadable::Shard {
                    shard: shard.into(),
                    source: Box::new(error),
                },
            })?;
        }
        match index
            .names()
            .find(|name| !checkpoint.places.contains_key(*name))
        {
            None => Ok(checkpoint),
            Some(name) => Err(Unreadable::NotInShard {
                tensor: name.into(),
                shard: index.shard_of(name).unwrap_or_default().into(),
            }),
        }
    }
}

impl<'a> Checkpoint<'a> {
    /// A safetensors file that is in memory.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open)'s of one file.
    pub fn from_bytes(bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self, Unreadable> {
        let mut checkpoint = Checkpoint::empty();
        checkpoint.add(Bytes::Held(bytes.into()), |_, _| Ok(()))?;
        Ok(checkpoint)
    }

    fn empty() -> Self {
        Checkpoint {
            shards: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    /// Takes the tensors of one more file; `allowed` is asked about each, and told whether the name is taken.
    fn add(
        &mut self,
        bytes: Bytes<'a>,
        allowed: impl Fn(&str, bool) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        let (header, metadata) = header(bytes.as_slice())?;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            allowed(&name, self.places.contains_key(&name))?;
            if info.shape.contains(&0) {
                return Err(Unreadable::NoElements { tensor: name });
            }
            let (begin, end) = info.data_offsets;
            let place = TensorLocation {
                shard,
                begin: header + begin,
                end: header + end,
                dtype: info.dtype,
                shape: info.shape.clone(),
            };
            self.places.insert(name, place);
        }
        self.shards.push(bytes);
        Ok(())
    }

    /// The same tensors by the names that a family publishes: what wrappers put before all of them is taken off, until one is
    /// among those `known`.
    pub fn unwrapped(mut self, known: impl Fn(&str) -> bool) -> Self {
        while !self.places.keys().any(|name| known(name)) {
            let common = |prefix: &&&str| self.places.keys().all(|name| name.starts_with(**prefix));
            let Some(prefix) = WRAPPERS.iter().find(common) else {
                break;
            };
            let places = std::mem::take(&mut self.places).into_iter();
            self.places = places
                .map(|(name, place)| (name[prefix.len()..].to_owned(), place))
                .collect();
        }
        self
    }

    /// All tensors by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, View<'_>)> {
        self.places
            .iter()
            .map(|(name, place)| (name.as_str(), self.view(name, place)))
    }

    pub fn get(&self, name: &str) -> Option<View<'_>> {
        let (name, place) = self.places.get_key_value(name)?;
        Some(self.view(name, place))
    }

    fn view<'v>(&'v self, name: &'v str, place: &'v TensorLocation) -> View<'v> {
        let shard = self.shards[place.shard].as_slice();
        View {
            name,
            dtype: place.dtype,
            shape: &place.shape,
            // Within the file, as its header was checked when it was opened.
            bytes: &shard[place.begin..place.end],
        }
    }

    /// Every tensor's shape, by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shape = |(name, place): (&String, &TensorLocation)| (name.clone(), place.shape.clone());
        self.places.iter().map(shape).collect()
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        let elements =
            |place: &TensorLocation| place.shape.iter().map(|&size| size as u64).product::<u64>();
        self.places.values().map(elements).sum()
    }

    /// Bytes of all tensors as they lie in the files.
    pub fn bytes(&self) -> u64 {
        self.places
            .values()
            .map(|place| (place.end - place.begin) as u64)
            .sum()
    }
}

/// The length of a file's header and what it says, checked against the file's length.
fn header(bytes: &[u8]) -> Result<(usize, safetensors::tensor::Metadata), Unreadable> {
    foreign(bytes)?;
    let (length, metadata) = SafeTensors::read_metadata(bytes).map_err(Unreadable::from)?;
    let begin = length + 8;
    let end = metadata
        .tensors()
        .values()
        .map(|info| info.data_offsets.1)
        .max();
    match begin.checked_add(end.unwrap_or(0)) {
        Some(end) if end == bytes.len() => Ok((begin, metadata)),
        _ => Err(Unreadable::WrongLength),
    }
}

impl From<SafeTensorError> for Unreadable {
    fn from(error: SafeTensorError) -> Self {
        match error {
            SafeTensorError::HeaderTooSmall
            | SafeTensorError::InvalidHeaderLength
            | SafeTensorError::MetadataIncompleteBuffer => Unreadable::WrongLength,
            other => Unreadable::Malformed {
                detail: other.to_string(),
            },
        }
    }
}

/// Maps a regular file.
#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Bytes<'static>, Unreadable> {
    let file = regular(path)?;
    if file.metadata()?.len() == 0 {
        return Err(Unreadable::Empty);
    }
    // SAFETY: the map is only read. What it shows changes if somebody writes to the file, which gives wrong weights, not
    // wrong memory; that it may not be cut is said where it is opened.
    Ok(Bytes::Mapped(unsafe { Mmap::map(&file)? }))
}

/// Opens a file; says so where `path` is a directory, or a device or a pipe, which may never end.
fn regular(path: &Path) -> Result<File, Unreadable> {
    match std::fs::metadata(path)? {
        found if found.is_dir() => Err(Unreadable::Directory),
        found if !found.is_file() => Err(Unreadable::NotAFile),
        _ => Ok(File::open(path)?),
    }
}

/// Reads a regular file of at most `longest` bytes whole.
///
/// # Errors
/// Also where it is longer.
pub fn read_small(path: &Path, longest: u64) -> Result<Vec<u8>, Unreadable> {
    let file = regular(path)?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, longest + 1), &mut bytes)?;
    match bytes.len() as u64 > longest {
        true => Err(Unreadable::TooLong { longest }),
        false => Ok(bytes),
    }
}
