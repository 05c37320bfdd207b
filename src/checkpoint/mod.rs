//! Checkpoints as they are published: one safetensors file, or an index and its shards, read tensor by tensor.
//!
//! Opening one reads headers only, so names, shapes and sizes are known before anything large is touched.

mod file;
mod foreign;
mod header;
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

pub(crate) use file::{PATIENCE, in_time};
pub use file::{read_file, read_open, read_small, shown};
pub use foreign::foreign;
pub use memory::{NoRoom, available, room};
pub use tensor::TensorView;
pub use unreadable::Unreadable;

use file::Bytes;
use header::Header;

/// The one file of a checkpoint that fits one, and the index of one that is in shards.
pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
/// What wrappers put before every name: compilation, data parallelism, training frameworks, the published diffusion classes.
const WRAPPERS: [&str; 4] = ["_orig_mod.", "module.", "model.", "backbone."];
/// Bytes of an index at most: a hundred thousand tensors' worth.
const LONGEST_INDEX: u64 = 32 << 20;

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
    /// What the headers say besides.
    metadata: BTreeMap<String, String>,
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
        let whole = path.file_name().map(|name| name.to_string_lossy());
        if whole.is_some_and(|name| index::is_shard(&name)) {
            let index = path.with_file_name(INDEX).exists();
            return Err(Unreadable::OneShard { index });
        }
        let mut checkpoint = Checkpoint::empty();
        checkpoint.add(Bytes::open(path)?, |_, _| Ok(()))?;
        Ok(checkpoint)
    }

    /// A safetensors file that is open.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open)'s of one file.
    pub fn of_file(file: &File) -> Result<Self, Unreadable> {
        let mut checkpoint = Checkpoint::empty();
        checkpoint.add(Bytes::of(file.try_clone()?)?, |_, _| Ok(()))?;
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
            let add = Bytes::open(&path.with_file_name(shard))
                .and_then(|bytes| checkpoint.add(bytes, said));
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
            metadata: BTreeMap::new(),
        }
    }

    /// Takes the tensors of one more file; `allowed` is asked about each, and told whether the name is taken.
    fn add(
        &mut self,
        bytes: Bytes<'a>,
        allowed: impl Fn(&str, bool) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        let (begin, header) = read_header(&bytes)?;
        let shard = self.shards.len();
        for (name, info) in header.tensors {
            allowed(&name, self.places.contains_key(&name))?;
            if info.shape.contains(&0) {
                return Err(Unreadable::NoElements { tensor: name });
            }
            let place = TensorLocation {
                shard,
                begin: begin + info.at.0,
                end: begin + info.at.1,
                dtype: info.dtype,
                shape: info.shape,
            };
            self.places.insert(name, place);
        }
        self.metadata.extend(header.metadata);
        self.shards.push(bytes);
        Ok(())
    }

    /// What a file says of itself under `key`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The same tensors by the names that a family publishes: what wrappers put before all of them is taken off, until one is
    /// among those `known`.
    pub fn unwrapped(mut self, known: impl Fn(&str) -> bool) -> Self {
        while !self.places.is_empty() && !self.places.keys().any(|name| known(name)) {
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
    pub fn iter(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.places
            .iter()
            .map(|(name, place)| (name.as_str(), self.view(name, place)))
    }

    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, place) = self.places.get_key_value(name)?;
        Some(self.view(name, place))
    }

    fn view<'v>(&'v self, name: &'v str, place: &'v TensorLocation) -> TensorView<'v> {
        TensorView {
            name,
            dtype: place.dtype,
            shape: &place.shape,
            shard: &self.shards[place.shard],
            begin: place.begin,
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

/// What a file's header says, checked against the file's length, and where the tensors begin.
fn read_header(bytes: &Bytes) -> Result<(usize, Header), Unreadable> {
    let length = bytes.len();
    let mut first = vec![0; header::FIRST.min(length as usize)];
    bytes.read(0, &mut first)?;
    let mut whole = vec![0; header::header_length(&first, length)?];
    bytes.read(0, &mut whole)?;
    Ok((whole.len(), Header::parse(&whole, length)?))
}

/// So many bytes tell what a file is.
pub const BEGINNING: usize = header::FIRST;

/// Refuses a file of so many bytes by its beginning, where that shows that it is no checkpoint.
///
/// # Errors
/// As [`Checkpoint::from_bytes`]'s, but for what the header itself says.
pub fn begins(first: &[u8], length: u64) -> Result<(), Unreadable> {
    match first.len() as u64 >= length.min(BEGINNING as u64) {
        true => header::header_length(first, length).map(drop),
        false => Ok(()), // too little to tell
    }
}

/// Refuses what does not begin with a safetensors header that fits it.
///
/// # Errors
/// As [`Checkpoint::from_bytes`]'s.
pub fn check(file: &[u8]) -> Result<(), Unreadable> {
    read_header(&Bytes::Held(file.into())).map(drop)
}
