//! The write operations of a store, each announced to a watch before it is done.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Error;
use crate::superposition::Digest;

/// One operation on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Lock,
    CreateDirectory,
    CreateFile,
    Write,
    Sync,
    Rename,
    SyncDirectory,
    Remove,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Operation::Read => "cannot read",
            Operation::Lock => "cannot lock",
            Operation::CreateDirectory => "cannot create the directory",
            Operation::CreateFile => "cannot create",
            Operation::Write => "cannot write",
            Operation::Sync => "cannot sync",
            Operation::Rename => "cannot rename",
            Operation::SyncDirectory => "cannot sync the directory",
            Operation::Remove => "cannot remove",
        })
    }
}

/// Called before every operation that changes the disk; where it fails, the operation has failed with that error
/// and is not done. For tests: a full disk, a crash.
pub type DiskWatch = Box<dyn FnMut(Operation, &Path) -> io::Result<()> + Send + Sync>;

/// Ends the name of a file that is being written.
pub(super) const PARTIAL: &str = ".partial";

/// Keeps other processes out of a directory. The operating system releases it when the process ends, however it ends.
pub(super) struct Lock(File);

impl Lock {
    /// The file, which may hold anything.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for Lock {
    /// Closing the file is not enough: a child process that is just being started still has it open.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the store's lock could not be released");
        }
    }
}

/// A file without a name on the disk of a directory: gone with its last handle, whatever ends the process.
pub fn spool(directory: &Path) -> io::Result<File> {
    tempfile::tempfile_in(directory)
}

/// A directory and what may be done in it; every path is relative to it.
pub(super) struct Disk {
    root: PathBuf,
    watch: Option<DiskWatch>,
}

impl Disk {
    pub fn new(root: &Path, watch: Option<DiskWatch>) -> Self {
        Disk {
            root: root.to_owned(),
            watch,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Says that the file at `path` is not what was written.
    pub fn corrupt(&self, path: &Path, detail: impl fmt::Display) -> Error {
        Error::Corrupt {
            path: self.root.join(path),
            detail: detail.to_string(),
        }
    }

    /// Makes sure that no other process has the directory open, until the lock that is returned is dropped.
    pub fn lock(&mut self) -> Result<Lock, Error> {
        let file = self.step(Operation::Lock, Path::new("lock"), |path| {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Locked {
                dir: self.root.clone(),
            }),
            Err(TryLockError::Error(source)) => {
                let path = self.root.join("lock");
                Err(Error::Io {
                    operation: Operation::Lock,
                    path,
                    source,
                })
            }
        }
    }

    pub fn read(&self, path: &Path) -> Result<Vec<u8>, Error> {
        self.reading(path, |path| fs::read(path))
    }

    /// The size and the digest of a file, of which never more than a piece is in memory.
    pub fn digest(&self, path: &Path) -> Result<(u64, Digest), Error> {
        self.reading(path, |path| Digest::of_all(File::open(path)?))
    }

    fn reading<T>(
        &self,
        path: &Path,
        read: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<T, Error> {
        let path = self.root.join(path);
        read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Corrupt {
                path,
                detail: "it is missing".to_owned(),
            },
            _ => Error::Io {
                operation: Operation::Read,
                path,
                source,
            },
        })
    }

    pub fn create_directory(&mut self, path: &Path) -> Result<(), Error> {
        self.step(Operation::CreateDirectory, path, fs::create_dir_all)
    }

    /// Writes a file whole: beside, synced, then renamed. It lasts once its directory is synced.
    pub fn write(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let partial = partial(path);
        let mut file = self.step(Operation::CreateFile, &partial, File::create)?;
        self.step(Operation::Write, &partial, |_| file.write_all(bytes))?;
        self.step(Operation::Sync, &partial, |_| file.sync_all())?;
        let to = self.root.join(path);
        self.step(Operation::Rename, &partial, |from| fs::rename(from, to))
    }

    /// The same of a file that `write` makes at the path that it is given; where that fails, nothing of it is left.
    pub fn write_by(
        &mut self,
        path: &Path,
        write: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), Error> {
        let (partial, to) = (partial(path), self.root.join(path));
        let written = self
            .step(Operation::Write, &partial, |path| write(&path))
            .and_then(|()| {
                self.step(Operation::Sync, &partial, |path| {
                    File::open(path)?.sync_all()
                })
            })
            .and_then(|()| self.step(Operation::Rename, &partial, |from| fs::rename(from, to)));
        if written.is_err() {
            _ = fs::remove_file(self.root.join(&partial));
        }
        written
    }

    pub fn sync_directory(&mut self, path: &Path) -> Result<(), Error> {
        self.step(Operation::SyncDirectory, path, |path| {
            File::open(path)?.sync_all()
        })
    }

    pub fn remove_file(&mut self, path: &Path) -> Result<(), Error> {
        self.step(Operation::Remove, path, fs::remove_file)
    }

    /// Removes a file, which need not be there; what cannot be removed stays.
    pub fn remove_if_there(&mut self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        if self.root.join(path).exists()
            && let Err(error) = self.remove_file(path)
        {
            tracing::warn!(%error, "a file that is no longer used stays in the store");
        }
    }

    /// Removes a directory that is empty.
    pub fn remove_directory(&mut self, path: &Path) -> Result<(), Error> {
        self.step(Operation::Remove, path, fs::remove_dir)
    }

    /// The names in a directory, in order; none where it is not there.
    pub fn list(&self, path: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root.join(path))
            .into_iter()
            .flatten()
            .flatten();
        let mut paths: Vec<_> = entries.map(|entry| path.join(entry.file_name())).collect();
        paths.sort();
        paths
    }

    /// Does one operation, unless the watch has it fail.
    pub fn step<T>(
        &mut self,
        operation: Operation,
        path: &Path,
        act: impl FnOnce(PathBuf) -> io::Result<T>,
    ) -> Result<T, Error> {
        let path = self.root.join(path);
        let announced = self
            .watch
            .as_mut()
            .map_or(Ok(()), |watch| watch(operation, &path));
        announced
            .and_then(|()| act(path.clone()))
            .map_err(|source| Error::Io {
                operation,
                path,
                source,
            })
    }
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PARTIAL);
    name.into()
}
