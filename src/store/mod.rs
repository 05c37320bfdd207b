//! The store: a directory that holds what each variant keeps, the superpositions, and one manifest. The only module that
//! writes files.
//!
//! ```text
//! manifest.json                                what the last committed generation consists of
//! variants/<name>/coded-<digest>.safetensors   all of a variant that is kept by itself
//! variants/<name>/private-<digest>.safetensors gains, and the deltas of vectors, of a superposed one
//! variants/<name>/delta-<digest>.safetensors   its archived delta, unless the store keeps none
//! banks/<bank>/<generation>.safetensors        a superposition in fixed point, as of the generation that changed it
//! manifest.format-1.json                       the last manifest of the former format, where the store began in it
//! base/<form>.safetensors                      the base as it is served in a form that rounds it, where that takes long
//! lock                                         held by the process that has the store open; bytes in it are given back to a full
//!                                              disk, so that variants can be removed there
//! ```
//!
//! A file that a manifest names is never written again: names carry a digest or a generation. A commit writes new files beside
//! the old ones, then renames the new manifest over the old: that rename is the commit point. Whatever a crash leaves, the
//! manifest names a whole generation, and what it does not name is cleared.

mod bank_id;
mod base_copy;
mod coded;
mod disk;
mod error;
mod files;
mod former;
mod manifest;
mod manifest_file;
mod measure;
mod name;
mod placement;
mod reserve;
mod sampling;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use bank_id::{BankId, BankKind};
pub use base_copy::{BaseCopy, Origin};
pub use coded::CodedFile;
pub use disk::{DiskWatch, Operation, spool};
pub use error::Error;
pub use manifest::{
    BankRecord, CodedRecord, FileRecord, Keep, Manifest, Options, Quality, Scales, Share, StoredAs,
    TransformRecord, VariantRecord,
};
pub use manifest_file::decode as read_manifest;
pub use name::{BASE, check_name, shown};
pub use placement::emptiest;
pub use sampling::{Blocks, SamplerDefaults, StoredProcess};
pub use transaction::Staged;

use crate::superposition::{Bank, Delta, Digest, NamedTensors, Private};
use disk::{Disk, Lock};
use transaction::Transaction;

/// What a store must know about the base it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseFacts {
    pub digest: Digest,
    /// SHA-256 of the tokenizer.
    pub tokenizer: Digest,
    /// Every tensor's shape, by internal name.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

impl BaseFacts {
    pub fn of(base: &NamedTensors, tokenizer: Digest) -> Self {
        BaseFacts {
            digest: base.digest(),
            tokenizer,
            shapes: base.shapes(),
        }
    }
}

/// A variant to add.
#[derive(Clone, Debug)]
pub struct NewVariant {
    pub name: String,
    pub content: Content,
    /// Where it came from, for people.
    pub source: String,
    pub process: StoredProcess,
    pub defaults: SamplerDefaults,
    /// How its texts begin and end and its conversations are written, where that is not as the base's. This module keeps it and does
    /// not read it.
    pub manner: Option<serde_json::Value>,
    /// |delta| / |base| over all matrices, where it is known.
    pub moved: Option<f32>,
    pub scales: Scales,
}

/// What is kept of a variant.
#[derive(Clone, Debug)]
pub enum Content {
    /// Goes into banks. The seed is the first eight bytes of the delta's digest where `None`.
    Superposed {
        delta: Box<Delta>,
        seed: Option<u64>,
    },
    /// Is kept as it is.
    Coded(CodedFile),
}

/// What a change is busy with, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitStage {
    Accumulating,
    Measuring,
    Writing,
    Committing,
}

/// A committed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub generation: u64,
    /// Banks whose content is new.
    pub changed_banks: Vec<BankId>,
    /// Banks that lost their last member.
    pub dropped_banks: Vec<BankId>,
}

/// An open store. One process has it open at a time.
pub struct Store {
    disk: Disk,
    base: BaseFacts,
    manifest: Manifest,
    /// The manifest's file where it is of the former format.
    former: Option<Vec<u8>>,
    lock: Lock,
}

impl Store {
    /// True where `dir` holds a store, whole or not.
    pub fn exists(dir: &Path) -> bool {
        dir.join(files::MANIFEST).exists()
    }

    /// Makes an empty store in `dir`, which is created where it is not there.
    pub fn create(dir: &Path, base: BaseFacts, options: Options) -> Result<Store, Error> {
        Store::create_watched(dir, base, options, None)
    }

    /// Opens the last committed generation, checks every file's digest and clears what a crash left.
    pub fn open(dir: &Path, base: BaseFacts) -> Result<Store, Error> {
        Store::open_watched(dir, base, None)
    }

    /// [`Store::create`], with every write operation announced to `watch`.
    pub fn create_watched(
        dir: &Path,
        base: BaseFacts,
        options: Options,
        watch: Option<DiskWatch>,
    ) -> Result<Store, Error> {
        options.check()?;
        let mut disk = Disk::new(dir, watch);
        disk.create_directory(Path::new(""))?;
        let lock = disk.lock()?;
        if Store::exists(dir) {
            return Err(Error::Exists {
                dir: dir.to_owned(),
            });
        }
        let manifest = Manifest::empty(&base, options);
        disk.write(
            Path::new(files::MANIFEST),
            &manifest_file::encode(&manifest)?,
        )?;
        disk.sync_directory(Path::new(""))?;
        let mut store = Store {
            disk,
            base,
            manifest,
            former: None,
            lock,
        };
        store.fill_reserve();
        Ok(store)
    }

    /// [`Store::open`], with every write operation announced to `watch`.
    pub fn open_watched(
        dir: &Path,
        base: BaseFacts,
        watch: Option<DiskWatch>,
    ) -> Result<Store, Error> {
        if !Store::exists(dir) {
            return Err(Error::NotAStore {
                dir: dir.to_owned(),
            });
        }
        let mut disk = Disk::new(dir, watch);
        let lock = disk.lock()?;
        let file = disk.read(Path::new(files::MANIFEST))?;
        let (manifest, format) = manifest_file::decode(&file)?;
        manifest.check(&base)?;
        files::verify(&disk, &manifest)?;
        files::clear(&mut disk, &manifest);
        let former = (format == former::FORMER).then_some(file);
        if former.is_some() {
            disk.remove_if_there(files::FORMER_MANIFEST);
        }
        let mut store = Store {
            disk,
            base,
            manifest,
            former,
            lock,
        };
        store.fill_reserve();
        Ok(store)
    }

    /// What the current generation consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn directory(&self) -> &Path {
        self.disk.root()
    }

    /// Whether the directory is still in the former format, which the first change brings to the present one.
    pub fn is_former(&self) -> bool {
        self.former.is_some()
    }

    /// Adds one variant; a superposed one goes into the banks with the fewest members.
    pub fn add(
        &mut self,
        variant: NewVariant,
        expected_generation: Option<u64>,
        progress: &mut dyn FnMut(CommitStage),
    ) -> Result<Commit, Error> {
        self.add_all(vec![variant], expected_generation, progress)
    }

    /// Adds several variants in one commit, superposed ones spread over as few banks as hold them: all of them, or none.
    pub fn add_all(
        &mut self,
        variants: Vec<NewVariant>,
        expected_generation: Option<u64>,
        progress: &mut dyn FnMut(CommitStage),
    ) -> Result<Commit, Error> {
        self.add_if(variants, expected_generation, progress, |_| Ok(()))
    }

    /// [`Store::add_all`], unless `accept` has an error, which is this one's then: it is shown the store as it will be, just
    /// before that is committed.
    pub fn add_if<E: From<Error>>(
        &mut self,
        variants: Vec<NewVariant>,
        expected_generation: Option<u64>,
        progress: &mut dyn FnMut(CommitStage),
        accept: impl FnOnce(&mut Staged) -> Result<(), E>,
    ) -> Result<Commit, E> {
        progress(CommitStage::Accumulating);
        let mut transaction = Transaction::begin(self, expected_generation)?;
        let count = variants.len();
        for (index, variant) in variants.into_iter().enumerate() {
            transaction.add(variant, count - index)?;
        }
        transaction.commit(progress, accept)
    }

    /// Puts `variant` in the place of the one of its name, whose delta must be `expected`: in one commit, so that the name is
    /// never missing. As [`Store::add_if`] and [`Store::remove_if`] otherwise; a superposed one is taken out by its archive.
    pub fn replace_if<E: From<Error>>(
        &mut self,
        variant: NewVariant,
        expected: Digest,
        expected_generation: Option<u64>,
        progress: &mut dyn FnMut(CommitStage),
        accept: impl FnOnce(&mut Staged) -> Result<(), E>,
    ) -> Result<Commit, E> {
        progress(CommitStage::Accumulating);
        let mut transaction = Transaction::begin(self, expected_generation)?;
        transaction.remove(&variant.name, None, Some(expected))?;
        transaction.add(variant, 1)?;
        transaction.commit(progress, accept)
    }

    /// Chooses how variants are kept from now on whose addition does not say.
    pub fn choose(&mut self, keep: Keep, bits: f32) -> Result<(), Error> {
        let mut transaction = Transaction::begin(self, None)?;
        transaction.choose(keep, bits)?;
        transaction.commit(&mut |_| {}, |_| Ok::<_, Error>(()))?;
        Ok(())
    }

    /// Removes a variant. A superposed one needs its delta where the store has no archive of it, and the delta must be the one
    /// that was added.
    pub fn remove(
        &mut self,
        name: &str,
        delta: Option<Delta>,
        expected_generation: Option<u64>,
        progress: &mut dyn FnMut(CommitStage),
    ) -> Result<Commit, Error> {
        self.remove_if(name, delta, expected_generation, progress, |_| Ok(()))
    }

    /// [`Store::remove`], unless `accept` has an error, as in [`Store::add_if`].
    pub fn remove_if<E: From<Error>>(
        &mut self,
        name: &str,
        delta: Option<Delta>,
        expected_generation: Option<u64>,
        progress: &mut dyn FnMut(CommitStage),
        accept: impl FnOnce(&mut Staged) -> Result<(), E>,
    ) -> Result<Commit, E> {
        progress(CommitStage::Accumulating);
        let mut transaction = Transaction::begin(self, expected_generation)?;
        transaction.remove(name, delta, None)?;
        transaction.commit(progress, accept)
    }

    /// Reads a bank of the current generation.
    pub fn load_bank(&self, id: &BankId) -> Result<Bank, Error> {
        let record = self
            .manifest
            .banks
            .get(id)
            .ok_or(Error::UnknownBank { bank: *id })?;
        let path = files::of_bank(id, &record.file);
        let bank = files::load(&self.disk, &path, &record.file, Bank::from_bytes)?;
        let expected = self.empty_bank(id.kind);
        let shapes = |bank: &Bank| -> Vec<_> {
            bank.tensors
                .iter()
                .map(|(n, t)| (n.clone(), t.rows, t.cols))
                .collect()
        };
        if bank.capacity != expected.capacity
            || bank.scheme != expected.scheme
            || shapes(&bank) != shapes(&expected)
        {
            return Err(self
                .disk
                .corrupt(&path, "it is not laid out as a bank of this base"));
        }
        Ok(bank)
    }

    /// Reads a superposed variant's private tensors; `None` of one that is in no bank.
    pub fn load_private(&self, name: &str) -> Result<Option<Private>, Error> {
        let StoredAs::Superposed { private, .. } = &self.variant(name)?.kept else {
            return Ok(None);
        };
        let path = files::of_variant(name, private);
        files::load(&self.disk, &path, private, Private::from_bytes).map(Some)
    }

    /// Reads a superposed variant's archived delta; `None` where the store keeps no archive of it.
    pub fn load_delta(&self, name: &str) -> Result<Option<Delta>, Error> {
        let StoredAs::Superposed {
            archive: Some(archive),
            ..
        } = &self.variant(name)?.kept
        else {
            return Ok(None);
        };
        let path = files::of_variant(name, archive);
        files::load(&self.disk, &path, archive, Delta::from_archive).map(Some)
    }

    /// The paths of the current generation's files, relative to the directory.
    pub fn files(&self) -> Vec<PathBuf> {
        files::of(&self.manifest).into_keys().collect()
    }

    fn variant(&self, name: &str) -> Result<&VariantRecord, Error> {
        let unknown = || Error::UnknownVariant {
            name: name::shown(name),
        };
        self.manifest.variants.get(name).ok_or_else(unknown)
    }
}
