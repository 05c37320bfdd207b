//! Where a generation's files are, that they are what was written, and that there are no others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::disk::{Disk, PARTIAL};
use super::{BankId, BankRecord, Error, FileRecord, Manifest, VariantRecord};
use crate::superposition::{Digest, Unreadable};

pub(super) const MANIFEST: &str = "manifest.json";

pub(super) fn bank(id: &BankId, generation: u64) -> PathBuf {
    PathBuf::from(format!("banks/{id}/{generation}.safetensors"))
}

pub(super) fn private(variant: &str) -> PathBuf {
    PathBuf::from(format!("variants/{variant}/private.safetensors"))
}

pub(super) fn archive(variant: &str) -> PathBuf {
    PathBuf::from(format!("variants/{variant}/delta.safetensors"))
}

fn of_bank<'a>(id: &BankId, record: &'a BankRecord) -> (PathBuf, &'a FileRecord) {
    (bank(id, record.generation), &record.file)
}

fn of_variant<'a>(
    name: &str,
    record: &'a VariantRecord,
) -> impl Iterator<Item = (PathBuf, &'a FileRecord)> {
    let archived = record.archive.as_ref().map(|file| (archive(name), file));
    [(private(name), &record.private)]
        .into_iter()
        .chain(archived)
}

/// Every file that `manifest` names.
pub(super) fn of(manifest: &Manifest) -> BTreeMap<PathBuf, &FileRecord> {
    let banks = manifest
        .banks
        .iter()
        .map(|(id, record)| of_bank(id, record));
    let variants = manifest.variants.iter();
    let variants = variants.flat_map(|(name, record)| of_variant(name, record));
    banks.chain(variants).collect()
}

/// Refuses a file of so many bytes and this digest that is not what was written.
fn check(
    disk: &Disk,
    path: &Path,
    record: &FileRecord,
    (bytes, digest): (u64, Digest),
) -> Result<(), Error> {
    if bytes != record.bytes {
        let detail = format!("it has {bytes} bytes, {} were written", record.bytes);
        return Err(disk.corrupt(path, detail));
    }
    if digest != record.sha256 {
        return Err(disk.corrupt(path, "its SHA-256 is not that of what was written"));
    }
    Ok(())
}

/// Reads, checks and decodes a file.
pub(super) fn load<T>(
    disk: &Disk,
    path: &Path,
    record: &FileRecord,
    decode: impl Fn(&[u8]) -> Result<T, Unreadable>,
) -> Result<T, Error> {
    let bytes = disk.read(path)?;
    check(disk, path, record, (bytes.len() as u64, Digest::of(&bytes)))?;
    decode(&bytes).map_err(|error| disk.corrupt(path, error))
}

/// Checks every file of a generation; the first damaged one in order of path.
pub(super) fn verify(disk: &Disk, manifest: &Manifest) -> Result<(), Error> {
    let files: Vec<_> = of(manifest).into_iter().collect();
    let results: Vec<_> = files
        .par_iter()
        .map(|(path, record)| check(disk, path, record, disk.digest(path)?))
        .collect();
    results.into_iter().collect()
}

/// Removes what `manifest` does not name from the directories that belong to the store, and from nowhere else. What
/// cannot be removed now is left for the next time: it does no harm.
pub(super) fn clear(disk: &mut Disk, manifest: &Manifest) {
    let named = of(manifest);
    let directories = [
        disk.list(Path::new("banks")),
        disk.list(Path::new("variants")),
    ]
    .concat();
    let files = directories
        .iter()
        .flat_map(|directory| disk.list(directory));
    let stray: Vec<_> = files.filter(|file| !named.contains_key(file)).collect();
    let in_use: BTreeSet<_> = named.keys().filter_map(|path| path.parent()).collect();
    let unused = directories
        .iter()
        .filter(|directory| !in_use.contains(directory.as_path()));
    remove(disk, &stray, unused);
    let partial = PathBuf::from(format!("{MANIFEST}{PARTIAL}"));
    if disk.root().join(&partial).exists() {
        remove(disk, &[partial], []);
    }
}

/// Removes what `before` names and `manifest` does not, without a look at anything else: what a commit replaces costs the same in
/// a store of any size.
pub(super) fn clear_replaced(disk: &mut Disk, before: &Manifest, manifest: &Manifest) {
    let written = |id| {
        manifest
            .banks
            .get(id)
            .map(|bank: &BankRecord| bank.generation)
    };
    let banks = before.banks.iter();
    let banks = banks.filter(|(id, record)| written(id) != Some(record.generation));
    let variants = before.variants.iter();
    let variants = variants.filter(|(name, _)| !manifest.variants.contains_key(*name));
    let (mut files, mut unused) = (Vec::new(), BTreeSet::new());
    for (id, record) in banks {
        let (file, _) = of_bank(id, record);
        if written(id).is_none() {
            unused.extend(file.parent().map(Path::to_owned));
        }
        files.push(file);
    }
    for (file, _) in variants.flat_map(|(name, record)| of_variant(name, record)) {
        unused.extend(file.parent().map(Path::to_owned));
        files.push(file);
    }
    remove(disk, &files, &unused);
}

/// Removes files, then directories, which are to be empty then.
fn remove<'a>(
    disk: &mut Disk,
    files: &[PathBuf],
    directories: impl IntoIterator<Item = &'a PathBuf>,
) {
    let mut removals: Vec<_> = files.iter().map(|file| disk.remove_file(file)).collect();
    removals.extend(
        directories
            .into_iter()
            .map(|directory| disk.remove_directory(directory)),
    );
    for error in removals.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "a file that is no longer used stays in the store");
    }
}
