//! Where an operator's checkpoint comes from, and what it turns out to be.

use super::Error;
use super::base::{ServedBase, checkpoint};
use super::beside::Beside;
use crate::checkpoint::{
    Checkpoint, INDEX, PATIENCE, SINGLE, in_time, read_file, read_open, shown,
};
use crate::model::architecture::adapter;
use crate::model::architecture::published::Published;
use crate::superposition::{self, CodedDelta, Delta, Relation, TensorSource, Unreadable};
use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The origin of what has no path.
const UPLOADED: &str = "uploaded";

/// A fine-tune: its weights in the published layout (a folder, in shards or not, an index, or a file), a delta in a file of this
/// program's own, or an adapter (a folder, or its file) as `peft` writes it.
#[derive(Clone, Debug)]
pub enum CheckpointSource {
    Path(PathBuf),
    Bytes(Vec<u8>),
    /// An upload, in a file without a name: [`Catalog::spool`](super::Catalog::spool).
    Spooled(Arc<File>),
}

/// Refuses an upload of so many bytes by what it begins with, before the rest has come.
///
/// # Errors
/// `Checkpoint`, where that is no checkpoint's beginning.
pub fn begins(first: &[u8], length: u64) -> Result<(), Error> {
    let begins = crate::checkpoint::begins(first, length);
    begins.map_err(|error| checkpoint(UPLOADED)(error.into()))
}

/// What a source holds, as far as headers tell.
pub(super) enum Given<'a> {
    /// All weights of a fine-tune, where they lie.
    Whole(Box<Published<'a>>),
    /// A delta in a file of this program's own.
    Own(Cow<'a, [u8]>),
    /// Two thin factors a module, exactly.
    Adapter(Box<CodedDelta>),
}

impl CheckpointSource {
    /// Where it comes from, for people.
    pub(super) fn origin(&self) -> String {
        match self {
            CheckpointSource::Path(path) => shown(&path.display().to_string()),
            CheckpointSource::Bytes(_) | CheckpointSource::Spooled(_) => UPLOADED.to_owned(),
        }
    }

    /// What stands beside it; `sent` where it is no path.
    pub(super) fn beside(&self, sent: Beside) -> Result<Beside, Error> {
        match self {
            CheckpointSource::Path(path) => Beside::read(path),
            CheckpointSource::Bytes(_) | CheckpointSource::Spooled(_) => Ok(sent),
        }
    }

    /// Reads headers, and of what is not read tensor by tensor everything. What stands `beside` it says what an adapter adds up to.
    ///
    /// # Errors
    /// What is no such thing, and tensors that are not the base's, by name.
    pub(super) fn open(&self, base: &ServedBase, beside: &Beside) -> Result<Given<'_>, Error> {
        let origin = self.origin();
        let unreadable = |error: Unreadable| checkpoint(&origin)(error.into());
        let found = match self {
            CheckpointSource::Path(path) => {
                let file = file_of(path);
                in_time(PATIENCE, move || Checkpoint::open(&file))
            }
            CheckpointSource::Bytes(bytes) => Checkpoint::from_bytes(&bytes[..]),
            CheckpointSource::Spooled(file) => Checkpoint::of_file(file),
        };
        let found = found.map_err(unreadable)?;
        let format = found.metadata("format");
        if format.is_some_and(|format| format.starts_with("choir/")) {
            let read = match self {
                CheckpointSource::Path(path) => {
                    let file = file_of(path);
                    in_time(PATIENCE, move || read_file(&file)).map(Cow::Owned)
                }
                CheckpointSource::Bytes(bytes) => Ok(bytes.into()),
                CheckpointSource::Spooled(file) => read_open(file).map(Cow::Owned),
            };
            return Ok(Given::Own(read.map_err(unreadable)?));
        }
        if adapter::is_one(&found) {
            let read = adapter_of(base, beside, &found, &origin)?;
            return Ok(Given::Adapter(Box::new(read)));
        }
        let published = Published::new(base.weights.architecture(), found);
        let published = published.map_err(|error| checkpoint(&origin)(error.into()))?;
        Ok(Given::Whole(Box::new(published)))
    }
}

/// The adapter's file, of a folder that has one and no whole checkpoint.
fn file_of(path: &Path) -> PathBuf {
    let adapter = path.join(adapter::WEIGHTS);
    let whole = [SINGLE, INDEX].map(|name| path.join(name).exists());
    match whole == [false; 2] && adapter.exists() {
        true => adapter,
        false => path.to_owned(),
    }
}

fn adapter_of(
    base: &ServedBase,
    beside: &Beside,
    found: &Checkpoint,
    origin: &str,
) -> Result<CodedDelta, Error> {
    let refused = |error: adapter::AdapterError| checkpoint(origin)(error.into());
    let config = beside.get(adapter::CONFIG);
    let config = config
        .ok_or(adapter::AdapterError::NoConfig)
        .map_err(refused)?;
    let weights = base.published()?;
    let known = (base.facts.digest, &weights as &dyn TensorSource);
    let read = adapter::read(base.weights.architecture(), known, config, found);
    let read = read.map_err(refused)?;
    // Only what is saved whole is told by the base's numbers.
    if read.has_whole() {
        let digest = superposition::digest(&weights).map_err(checkpoint(origin))?;
        base.unchanged(digest)?;
    }
    Ok(read)
}

/// The base's weights, and how a fine-tune's stand to them.
pub(super) type Related = (Published<'static>, Relation);

impl Given<'_> {
    /// How it stands to the base, where that can be seen: both are read for it, once for all that is made of them. `force`: also where
    /// that is as a training run of its own does.
    ///
    /// # Errors
    /// What is no fine-tune of the base.
    pub(super) fn related(
        &self,
        base: &ServedBase,
        origin: &str,
        force: bool,
    ) -> Result<Option<Related>, Error> {
        match self {
            Given::Whole(tuned) => base.relation(tuned, origin, force).map(Some),
            Given::Own(_) | Given::Adapter(_) => Ok(None),
        }
    }

    /// What was changed, in the form that is superposed; `related` is what [`related`](Self::related) gave.
    ///
    /// # Errors
    /// What is no delta of the base.
    pub(super) fn delta(
        &self,
        base: &ServedBase,
        origin: &str,
        related: Option<&Related>,
    ) -> Result<Delta, Error> {
        let own = |bytes: &[u8]| Delta::from_own(base.facts.digest, &base.facts.shapes, bytes);
        let delta = match (self, related) {
            (Given::Whole(tuned), Some((weights, relation))) => {
                Delta::differences(relation.base, weights, &**tuned)
            }
            (Given::Whole(tuned), None) => {
                let (weights, relation) = base.relation(tuned, origin, true)?;
                Delta::differences(relation.base, &weights, &**tuned)
            }
            (Given::Adapter(adapter), _) => own(&adapter.to_bytes()),
            (Given::Own(bytes), _) => own(bytes),
        };
        delta.map_err(checkpoint(origin))
    }
}
