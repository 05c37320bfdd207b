//! A change of a store: everything is prepared in memory, then written, then committed by one rename.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{
    BankId, BankKind, BankRecord, Commit, Error, FileRecord, Manifest, NewVariant, Stage, Store,
    VariantRecord, files, manifest_file, measure, name,
};
use crate::superposition::{Bank, Delta, Private};

/// The next generation, as far as it has been prepared.
pub(super) struct Transaction<'a> {
    store: &'a mut Store,
    next: Manifest,
    /// Banks with new content.
    banks: BTreeMap<BankId, Bank>,
    /// Deltas of the variants that are added.
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

    /// Adds the first of `coming` variants.
    pub fn add(&mut self, variant: NewVariant, coming: usize) -> Result<(), Error> {
        let NewVariant {
            name,
            seed,
            delta,
            source,
            process,
            defaults,
            scales,
        } = variant;
        name::check_name(&name)?;
        scales.check()?;
        // Some file systems do not tell upper from lower case.
        if let Some(taken) = self
            .next
            .variants
            .keys()
            .find(|taken| taken.eq_ignore_ascii_case(&name))
        {
            return Err(Error::NameTaken {
                name: taken.clone(),
            });
        }
        delta.check(self.store.base.digest, &self.store.base.shapes)?;
        let digest = delta.digest();
        let seed = seed.unwrap_or_else(|| digest.seed());
        let mut banks = Vec::new();
        for kind in BankKind::ALL {
            let id = self.next.place(kind, seed, coming);
            let bank = self.bank(id)?;
            if bank.tensors.is_empty() {
                self.banks.remove(&id);
                continue;
            }
            bank.accumulate(&delta, seed)?;
            self.record(id).members.push(name.clone());
            banks.push(id);
        }
        let private = self.file(files::private(&name), Private::of(&delta).to_bytes());
        let archived = self.next.options.archive.then(|| delta.to_archive());
        let archive = archived.map(|bytes| self.file(files::archive(&name), bytes));
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let added = since.map_or(0, |since| since.as_secs());
        let record = VariantRecord {
            banks,
            seed,
            scales,
            process,
            defaults,
            delta: digest,
            source,
            added,
            quality: None,
            private,
            archive,
        };
        self.next.variants.insert(name.clone(), record);
        self.deltas.insert(name, delta);
        Ok(())
    }

    pub fn remove(&mut self, name: &str, given: Option<Delta>) -> Result<(), Error> {
        let record = self.store.variant(name)?.clone();
        if let Some(found) = given
            .as_ref()
            .map(Delta::digest)
            .filter(|found| *found != record.delta)
        {
            let (name, expected) = (name.to_owned(), record.delta);
            return Err(Error::OtherDelta {
                name,
                expected,
                found,
            });
        }
        let delta = match given {
            Some(delta) => delta,
            None => {
                let needed = || Error::DeltaNeeded {
                    name: name.to_owned(),
                };
                self.store.load_delta(name)?.ok_or_else(needed)?
            }
        };
        for id in record.banks {
            self.bank(id)?.subtract(&delta, record.seed)?;
            self.record(id).members.retain(|member| member != name);
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
            file: FileRecord::of(&[]),
        });
        record.generation = self.next.generation;
        record
    }

    fn file(&mut self, path: PathBuf, bytes: Vec<u8>) -> FileRecord {
        let record = FileRecord::of(&bytes);
        self.files.push((path, bytes));
        record
    }

    /// Writes everything but the manifest, asks whether the generation will do, and commits it. An error of `accept`, which sees
    /// the store as it will be, changes nothing.
    pub fn commit<E: From<Error>>(
        mut self,
        progress: &mut dyn FnMut(Stage),
        accept: impl FnOnce(&Store) -> Result<(), E>,
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
        progress(Stage::Measuring);
        measure::members(self.store, &mut self.next, &self.banks, &self.deltas)?;
        self.deltas.clear();

        progress(Stage::Writing);
        let changed_banks: Vec<_> = self.banks.keys().copied().collect();
        for (id, bank) in std::mem::take(&mut self.banks) {
            let file = self.file(files::bank(&id, self.next.generation), bank.to_bytes());
            let record = self.record(id);
            record.members.sort();
            record.file = file;
        }
        let generation = self.next.generation;
        let accepted = self.write().map_err(E::from).and_then(|()| {
            progress(Stage::Committing);
            std::mem::swap(&mut self.store.manifest, &mut self.next);
            let accepted = accept(self.store).and_then(|()| {
                let manifest = manifest_file::encode(&self.store.manifest)?;
                Ok(self
                    .store
                    .disk
                    .write(Path::new(files::MANIFEST), &manifest)?)
            });
            if accepted.is_err() {
                std::mem::swap(&mut self.store.manifest, &mut self.next);
            }
            accepted
        });
        if let Err(error) = accepted {
            files::clear(&mut self.store.disk, &self.store.manifest);
            return Err(error);
        }

        // The rename has been done, so this generation is what the next start finds. Should the directory not be
        // synced, a power cut may still bring the old one back: then its files must be there.
        match self.store.disk.sync_directory(Path::new("")) {
            Ok(()) => files::clear_replaced(&mut self.store.disk, &self.next, &self.store.manifest),
            Err(error) => {
                tracing::warn!(%error, generation, "committed, but the manifest may not outlast a power cut")
            }
        }
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
        let mut directories = BTreeSet::from([PathBuf::new()]);
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
