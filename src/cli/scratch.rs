//! A directory for one run of a command.

use std::path::{Path, PathBuf};

/// Not made here, but removed with everything in it when this is dropped.
pub struct ScratchStore(PathBuf);

impl ScratchStore {
    /// A path of this process's own among the system's temporary files.
    pub fn new(purpose: &str) -> Self {
        ScratchStore(std::env::temp_dir().join(format!("choir-{purpose}-{}", std::process::id())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchStore {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // nothing depends on its going
    }
}
