//! Files that are read again when they change, without a restart: keys and certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Something that was read from files.
pub trait Watched: Send + Sync + 'static {
    fn files(&self) -> Vec<PathBuf>;

    /// Reads them again and puts what they say in force; what was in force stays where they say nothing that can be.
    fn reload(&self) -> Result<(), String>;
}

/// What changes with a file's content, also where a link is set to another one, as in a mounted secret.
type Mark = Option<(SystemTime, u64, u64)>;

fn mark(path: &Path) -> Mark {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(path).ok()?;
    Some((found.modified().ok()?, found.len(), found.ino()))
}

fn marks(watched: &dyn Watched) -> Vec<Mark> {
    watched.files().iter().map(|file| mark(file)).collect()
}

/// Follows the files until the task is dropped.
pub async fn follow(watched: Vec<Arc<dyn Watched>>) {
    let mut seen: Vec<Vec<Mark>> = watched.iter().map(|one| marks(&**one)).collect();
    loop {
        tokio::time::sleep(EVERY).await;
        for (one, seen) in watched.iter().zip(&mut seen) {
            let now = marks(&**one);
            if now == *seen {
                continue;
            }
            *seen = now;
            let names: Vec<_> = one
                .files()
                .iter()
                .map(|f| f.display().to_string())
                .collect();
            match one.reload() {
                Ok(()) => tracing::info!("{} read again", names.join(", ")),
                Err(error) => {
                    tracing::error!("what was read before stays in force: {error}");
                }
            }
        }
    }
}
