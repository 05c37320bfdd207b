//! The base as it lies in memory, kept beside what a store holds of variants: a start that finds it need not round the
//! published weights again. It is trusted while the published files have the sizes, times and headers that it was made of, and
//! does no harm where it is missing: `base/<form>.safetensors`, which a start writes again.

use super::disk::Disk;
use super::{Error, Operation};
use crate::checkpoint::Checkpoint;
use crate::superposition::Digest;
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The part of a copy that says what it is of.
const ABOUT: &str = "about";
/// Bytes of a header at most.
const LONGEST_HEADER: u64 = 100 << 20;

/// What the served weights of a base follow from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// How the forms lie in memory.
    pub layout: u32,
    pub form: String,
    files: Vec<OriginFile>,
}

/// A published file, as the file system tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OriginFile {
    name: String,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u128,
    /// Of the whole file, of weights only of their header.
    digest: Digest,
}

impl Origin {
    /// Of a checkpoint's folder: its configuration, its index, its weights.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn of(folder: &Path, form: String, layout: u32) -> io::Result<Origin> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let weights = name.ends_with(".safetensors");
            let metadata = fs::metadata(entry.path())?;
            if !metadata.is_file() || !(weights || name.ends_with(".json")) {
                continue;
            }
            let mut file = File::open(entry.path())?;
            let looked_at = if weights {
                header_bytes(&mut file)?
            } else {
                LONGEST_HEADER
            };
            let modified = metadata.modified()?.duration_since(UNIX_EPOCH);
            files.push(OriginFile {
                name,
                bytes: metadata.len(),
                modified: modified.map_or(0, |since| since.as_nanos()),
                digest: Digest::of_all(file.take(looked_at))?.1,
            });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Origin {
            layout,
            form,
            files,
        })
    }

    fn path(&self) -> PathBuf {
        Path::new("base").join(format!("{}.safetensors", self.form))
    }
}

/// How long the header is that begins here; its length is read.
fn header_bytes(file: &mut File) -> io::Result<u64> {
    let mut length = [0; 8];
    match file.read_exact(&mut length) {
        Ok(()) => Ok(u64::from_le_bytes(length).min(LONGEST_HEADER)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        Err(error) => Err(error),
    }
}

/// What a copy says of itself.
#[derive(Serialize, Deserialize)]
struct About {
    origin: Origin,
    base: Digest,
}

/// The copy of a base.
pub struct BaseCopy {
    parts: Checkpoint<'static>,
    /// The digest of the base's weights.
    pub base: Digest,
}

impl BaseCopy {
    /// The copy in `dir` of what `origin` says; `None` where there is none, or one of something else.
    pub fn open(dir: &Path, origin: &Origin) -> Option<BaseCopy> {
        let parts = Checkpoint::open(&dir.join(origin.path())).ok()?;
        let about: About = serde_json::from_slice(&parts.get(ABOUT)?.bytes().ok()?).ok()?;
        (about.origin == *origin).then_some(BaseCopy {
            parts,
            base: about.base,
        })
    }

    /// The bytes of one part; `None` where there is none, or it cannot be read.
    pub fn part(&self, name: &str) -> Option<Vec<u8>> {
        self.parts.get(name)?.bytes().ok()
    }

    /// Keeps `parts` of the base whose weights have the digest `base`, in the place of whatever copies there are: a store has one, of
    /// the form that was served last.
    ///
    /// # Errors
    /// Operations on the disk; nothing of it is left then.
    pub fn write(
        dir: &Path,
        origin: &Origin,
        base: Digest,
        parts: Vec<(String, Cow<'_, [u8]>)>,
    ) -> Result<(), Error> {
        let path = origin.path();
        let about = About {
            origin: origin.clone(),
            base,
        };
        let about = serde_json::to_vec(&about).map_err(io::Error::other);
        let mut disk = Disk::new(dir, None);
        let about = disk.step(Operation::Write, &path, |_| about)?;
        let parts = parts.into_iter().filter(|(_, bytes)| !bytes.is_empty());
        let about = [(ABOUT.to_owned(), Cow::Owned(about))];
        let parts = about.into_iter().chain(parts);
        let parts = parts.map(|(name, bytes)| {
            let shape = [bytes.len()];
            (name, Bytes { bytes, shape })
        });
        disk.create_directory(Path::new("base"))?;
        disk.write_by(&path, |partial| {
            safetensors::serialize_to_file(parts, None, partial).map_err(io::Error::other)
        })?;
        disk.sync_directory(Path::new("base"))?;
        for other in disk.list(Path::new("base")) {
            if other != path {
                disk.remove_if_there(&other);
            }
        }
        Ok(())
    }
}

/// Bytes as a tensor of them.
struct Bytes<'a> {
    bytes: Cow<'a, [u8]>,
    shape: [usize; 1],
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::U8
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
