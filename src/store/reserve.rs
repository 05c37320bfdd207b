//! Bytes kept so that a full disk can be given room: a removal writes nothing but a manifest, and that must not be what
//! keeps it from making room. They lie in the lock's file, which is there anyway.

use std::io::{self, Seek, Write};
use std::path::Path;

use super::files::MANIFEST;
use super::{Error, Operation, Store};

const LOCK: &str = "lock";
const LEAST: u64 = 64 << 10;

impl Store {
    /// Writes the manifest; where that is all that a change writes and the disk is full, in place of the reserve.
    pub(super) fn write_manifest(&mut self, bytes: &[u8], alone: bool) -> Result<(), Error> {
        let path = Path::new(MANIFEST);
        match self.disk.write(path, bytes) {
            Err(Error::Io { source, .. }) if alone && is_full(&source) => {
                let lock = self.lock.file();
                let empty = |_| lock.set_len(0);
                self.disk.step(Operation::Remove, Path::new(LOCK), empty)?;
                self.disk.write(path, bytes)
            }
            written => written,
        }
    }

    /// Makes the reserve as large as two manifests. Where there is no room for it, the next change tries again.
    pub(super) fn fill_reserve(&mut self) {
        let mut lock = self.lock.file();
        let size = |file: io::Result<std::fs::Metadata>| file.map_or(0, |file| file.len());
        let manifest = size(std::fs::metadata(self.disk.root().join(MANIFEST)));
        let (have, wanted) = (
            size(lock.metadata()),
            (2 * manifest).next_power_of_two().max(LEAST),
        );
        if have >= wanted {
            return;
        }
        let fill = |_| {
            lock.seek(io::SeekFrom::Start(have))?;
            lock.write_all(&vec![0; (wanted - have) as usize])?;
            lock.sync_all()
        };
        if let Err(error) = self.disk.step(Operation::Write, Path::new(LOCK), fill) {
            tracing::debug!(%error, "there is no room for a reserve");
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
