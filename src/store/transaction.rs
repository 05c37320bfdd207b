//! A change of a store: everything is prepared in memory, then written, then committed by one rename.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{
    BankId, BankKind, BankRecord, Commit, CommitStage, Content, Error, FileRecord, Keep, Manifest,
    NewVariant, Share, Store, StoredAs, TransformRecord, VariantRecord, files, manifest_file,
    measure, name,
};
use crate::superposition::{Bank, Delta, Digest, Private};

/// A store as a change will leave it, before that is committed.
pub struct Staged<'a>(&'a mut Store);

impl Deref for Staged<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        self.0
    }
}

impl Staged<'_> {
    /// Records what a variant was found to keep.
    pub fn measured(&mut self, variant: &str, share: Share) {
        if let Some(record) = self.0.manifest.variants.get_mut(variant) {
            record.share = Some(share);
        }
    }
}

/// The next generation, as far as it has been prepared.
pub(super) struct Transaction<'a> {
    store: &'a mut Store,
    next: Manifest,
    /// Banks with new content.
    banks: BTreeMap<BankId, Bank>,
    /// Deltas of the superposed variants that are added.
    deltas: BTreeMap<String, Delta>,
    /// Files to write, by relative path.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl<'a> Transaction<'a> {
    pub fn begin(store: &'a mut Store, expected_generation: Option<u64>) -> Result<Self, Error> {
        let current = store.manifest.generation;
        if let Some(expected) = expected_generation.filter(|expected| *expected != current) {
            return Err(Error::GenerationMoved { expected, current });
        }
        let mut next = store.manifest.clone();
        next.generation += 1;
        Ok(Transaction {
            store,
            next,
            banks: BTreeMap::new(),
            deltas: BTreeMap::new(),
            files: Vec::new(),
        })
    }

    pub fn choose(&mut self, keep: Keep, bits: f32) -> Result<(), Error> {
        (self.next.options.keep, self.next.options.bits) = (keep, bits);
        self.next.options.check()
    }

    /// Adds the first of `coming` variants.
    pub fn add(&mut self, variant: NewVariant, coming: usize) -> Result<(), Error> {
        let NewVariant {
            name,
            content,
            source,
            process,
            defaults,
            manner,
            moved,
            scales,
        } = variant;
        name::check_name(&name)?;
        scales.check()?;
        // Some file systems do not tell upper from lower case.
        let taken = self.next.variants.keys();
        if let Some(taken) = taken
            .into_iter()
            .find(|taken| taken.eq_ignore_ascii_case(&name))
        {
            return Err(Error::NameTaken {
                name: taken.clone(),
            });
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let added = since.map_or(0, |since| since.as_secs());
        let record = |kept, keep, seed, delta| VariantRecord {
            kept,
            transform: TransformRecord::of(keep),
            seed,
            scales,
            process,
            defaults,
            delta,
            source,
            added,
            quality: None,
            share: None,
            manner,
            moved,
        };
        let record = match content {
            Content::Superposed { delta, seed } => {
                let (seed, digest) = self.superpose(&name, &delta, seed, coming)?;
                let private = self.own("private", &name, Private::of(&delta).to_bytes());
                let archived = self.next.options.archive.then(|| delta.to_archive());
                let archive = archived.map(|bytes| self.own("delta", &name, bytes));
                self.deltas.insert(name.clone(), *delta);
                let banks = self.members_of(&name);
                let kept = StoredAs::Superposed {
                    banks,
                    private,
                    archive,
                };
                record(kept, Keep::Superposed, seed, digest)
            }
            Content::Coded(file) => {
                file.check(&self.store.base)?;
                let (keep, quality, share) = (file.keep(), file.quality(), file.share());
                let (seed, digest) = (file.delta().seed, file.delta().about.source);
                let (coded, bytes) = file.record(&self.store.base);
                self.files
                    .push((files::of_variant(&name, &coded.file), bytes));
                VariantRecord {
                    quality: Some(quality),
                    share,
                    ..record(keep.alone(coded), keep, seed, digest)
                }
            }
        };
        self.next.variants.insert(name, record);
        Ok(())
    }

    /// Accumulates a delta into a bank of each kind; its seed and its digest.
    fn superpose(
        &mut self,
        name: &str,
        delta: &Delta,
        seed: Option<u64>,
        coming: usize,
    ) -> Result<(u64, Digest), Error> {
        delta.check(self.store.base.digest, &self.store.base.shapes)?;
        let digest = delta.digest();
        let seed = seed.unwrap_or_else(|| digest.seed());
        for kind in BankKind::ALL {
            let id = self.next.place(kind, seed, coming);
            let bank = self.bank(id)?;
            if bank.tensors.is_empty() {
                self.banks.remove(&id);
                continue;
            }
            bank.accumulate(delta, seed)?;
            self.record(id).members.push(name.to_owned());
        }
        Ok((seed, digest))
    }

    /// The banks that name a variant as their member.
    fn members_of(&self, name: &str) -> Vec<BankId> {
        let banks = self.next.banks.iter();
        let of = banks.filter(|(_, bank)| bank.members.iter().any(|member| member == name));
        of.map(|(id, _)| *id).collect()
    }

    /// Removes a variant, as a rule the one with the delta `expected`.
    pub fn remove(
        &mut self,
        name: &str,
        given: Option<Delta>,
        expected: Option<Digest>,
    ) -> Result<(), Error> {
        let record = self.store.variant(name)?.clone();
        if let Some(expected) = expected.filter(|expected| *expected != record.delta) {
            return Err(Error::DeltaMoved {
                name: name.to_owned(),
                expected,
                found: record.delta,
            });
        }
        if let Some(found) = given
            .as_ref()
            .map(Delta::digest)
            .filter(|found| *found != record.delta && record.coded().is_none())
        {
            let (name, expected) = (name.to_owned(), record.delta);
            return Err(Error::OtherDelta {
                name,
                expected,
                found,
            });
        }
        if !record.banks().is_empty() {
            let delta = match given {
                Some(delta) => delta,
                None => {
                    let needed = || Error::DeltaNeeded {
                        name: name.to_owned(),
                    };
                    self.store.load_delta(name)?.ok_or_else(needed)?
                }
            };
            for id in record.banks() {
                self.bank(*id)?.subtract(&delta, record.seed)?;
                self.record(*id).members.retain(|member| member != name);
            }
        }
        self.next.variants.remove(name);
        Ok(())
    }

    /// The bank to change: from the disk, or a new one.
    fn bank(&mut self, id: BankId) -> Result<&mut Bank, Error> {
        let bank = match self.banks.remove(&id) {
            Some(bank) => bank,
            None if self.store.manifest.banks.contains_key(&id) => self.store.load_bank(&id)?,
            None => self.store.empty_bank(id.kind),
        };
        Ok(self.banks.entry(id).or_insert(bank))
    }

    /// The record of a bank whose content changes; its file is filled in at the end.
    fn record(&mut self, id: BankId) -> &mut BankRecord {
        let record = self.next.banks.entry(id).or_insert_with(|| BankRecord {
            generation: 0,
            members: Vec::new(),
            file: FileRecord::of(String::new(), &[]),
        });
        record.generation = self.next.generation;
        record
    }

    /// A file of the variant `name` to write, called `what` and its digest.
    fn own(&mut self, what: &str, name: &str, bytes: Vec<u8>) -> FileRecord {
        let record = FileRecord::by_digest(what, &bytes);
        self.files.push((files::of_variant(name, &record), bytes));
        record
    }

    /// Writes everything but the manifest, asks whether the generation will do, and commits it. An error of `accept`, which sees
    /// the store as it will be, changes nothing.
    pub fn commit<E: From<Error>>(
        mut self,
        progress: &mut dyn FnMut(CommitStage),
        accept: impl FnOnce(&mut Staged) -> Result<(), E>,
    ) -> Result<Commit, E> {
        let members = |id| self.next.banks.get(id).map_or(0, |bank| bank.members.len());
        let dropped_banks: Vec<_> = self
            .banks
            .keys()
            .filter(|id| members(id) == 0)
            .copied()
            .collect();
        for id in &dropped_banks {
            self.banks.remove(id);
            self.next.banks.remove(id);
        }
        progress(CommitStage::Measuring);
        measure::members(self.store, &mut self.next, &self.banks, &self.deltas)?;
        self.deltas.clear();

        progress(CommitStage::Writing);
        let changed_banks: Vec<_> = self.banks.keys().copied().collect();
        let generation = self.next.generation;
        for (id, bank) in std::mem::take(&mut self.banks) {
            let bytes = bank.to_bytes();
            let file = FileRecord::of(format!("{generation}.safetensors"), &bytes);
            self.files.push((files::of_bank(&id, &file), bytes));
            let record = self.record(id);
            record.members.sort();
            record.file = file;
        }
        // The manifest of the former format stays, for whoever goes back.
        if let Some(former) = self.store.former.clone() {
            self.files.push((files::FORMER_MANIFEST.into(), former));
        }
        let removes_only = self.files.is_empty();
        let accepted = self.write().map_err(E::from).and_then(|()| {
            progress(CommitStage::Committing);
            std::mem::swap(&mut self.store.manifest, &mut self.next);
            let accepted = accept(&mut Staged(self.store)).and_then(|()| {
                let manifest = manifest_file::encode(&self.store.manifest)?;
                Ok(self.store.write_manifest(&manifest, removes_only)?)
            });
            if accepted.is_err() {
                std::mem::swap(&mut self.store.manifest, &mut self.next);
            }
            accepted
        });
        if let Err(error) = accepted {
            let store = self.store;
            files::clear(&mut store.disk, &store.manifest);
            if store.former.is_some() {
                store.disk.remove_if_there(files::FORMER_MANIFEST);
            }
            return Err(error);
        }

        // The rename has been done, so this generation is what the next start finds. Should the directory not be
        // synced, a power cut may still bring the old one back: then its files must be there.
        self.store.former = None;
        match self.store.disk.sync_directory(Path::new("")) {
            Ok(()) => files::clear_replaced(&mut self.store.disk, &self.next, &self.store.manifest),
            Err(error) => {
                tracing::warn!(%error, generation, "committed, but the manifest may not outlast a power cut")
            }
        }
        self.store.fill_reserve();
        Ok(Commit {
            generation,
            changed_banks,
            dropped_banks,
        })
    }

    /// Everything but the manifest.
    fn write(&mut self) -> Result<(), Error> {
        let disk = &mut self.store.disk;
        // A file lasts once its directory is synced, and that once its own directory is.
        let mut directories = BTreeSet::new();
        for (path, bytes) in std::mem::take(&mut self.files) {
            for directory in path.ancestors().skip(1) {
                directories.insert(directory.to_owned());
            }
            disk.create_directory(path.parent().unwrap_or(Path::new("")))?;
            disk.write(&path, &bytes)?;
        }
        for directory in directories.iter().rev() {
            disk.sync_directory(directory)?;
        }
        Ok(())
    }
}
