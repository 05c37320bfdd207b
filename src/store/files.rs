//! Where a generation's files are, that they are what was written, and that there are no others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::disk::{Disk, PARTIAL};
use super::{BankId, Error, FileRecord, Manifest};
use crate::superposition::Digest;

pub(super) const MANIFEST: &str = "manifest.json";
/// The last manifest of format 1, beside the first one of the present format.
pub(super) const FORMER_MANIFEST: &str = "manifest.format-1.json";

pub(super) fn of_bank(id: &BankId, file: &FileRecord) -> PathBuf {
    PathBuf::from(format!("banks/{id}/{}", file.name))
}

pub(super) fn of_variant(name: &str, file: &FileRecord) -> PathBuf {
    PathBuf::from(format!("variants/{name}/{}", file.name))
}

/// Every file that `manifest` names.
pub(super) fn of(manifest: &Manifest) -> BTreeMap<PathBuf, &FileRecord> {
    let banks = manifest.banks.iter();
    let banks = banks.map(|(id, record)| (of_bank(id, &record.file), &record.file));
    let variants = manifest.variants.iter().flat_map(|(name, record)| {
        let files = record.files();
        files.map(move |file| (of_variant(name, file), file))
    });
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
pub(super) fn load<T, E: std::fmt::Display>(
    disk: &Disk,
    path: &Path,
    record: &FileRecord,
    decode: impl FnOnce(&[u8]) -> Result<T, E>,
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
    for file in [MANIFEST, FORMER_MANIFEST] {
        let partial = PathBuf::from(format!("{file}{PARTIAL}"));
        if disk.root().join(&partial).exists() {
            remove(disk, &[partial], []);
        }
    }
}

/// Removes what `before` names and `manifest` does not, without a look at the disk: what a commit replaces costs the same in
/// a store of any size.
pub(super) fn clear_replaced(disk: &mut Disk, before: &Manifest, manifest: &Manifest) {
    let named = of(manifest);
    let files: Vec<_> = of(before)
        .into_keys()
        .filter(|file| !named.contains_key(file))
        .collect();
    let in_use: BTreeSet<_> = named.keys().filter_map(|path| path.parent()).collect();
    let left = files.iter().filter_map(|file| file.parent());
    let unused: BTreeSet<_> = left
        .filter(|directory| !in_use.contains(directory))
        .map(Path::to_owned)
        .collect();
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
