//! Where an operator's checkpoint comes from.

use super::Error;
use super::base::{Base, checkpoint};
use crate::model::Regime;
use crate::superposition::{Unreadable, read_file, read_open};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// The origin of what has no path.
const UPLOADED: &str = "uploaded";

/// How long reading a file may take: others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);

/// A checkpoint: a fine-tune's weights in the published layout, a packed delta, or an archived one.
#[derive(Clone, Debug)]
pub enum Source {
    Path(PathBuf),
    Bytes(Vec<u8>),
    /// An upload, in a file without a name: [`Catalog::spool`](super::Catalog::spool).
    Spooled(Arc<File>),
}

/// What `read` makes of a file, on a thread of its own, which is left to itself where the disk does not answer in time.
fn in_time<T: Send + 'static>(
    patience: Duration,
    path: PathBuf,
    read: fn(&Path) -> Result<T, Unreadable>,
) -> Result<T, Unreadable> {
    let (done, result) = mpsc::channel();
    std::thread::Builder::new()
        .name("choir-read".into())
        .spawn(move || drop(done.send(read(&path))))?;
    result.recv_timeout(patience).unwrap_or_else(|_| {
        let reason = format!("it could not be read within {patience:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, reason).into())
    })
}

impl Source {
    /// Where it comes from, for people.
    pub(super) fn origin(&self) -> String {
        match self {
            Source::Path(path) => path.display().to_string(),
            Source::Bytes(_) | Source::Spooled(_) => UPLOADED.to_owned(),
        }
    }

    /// Its bytes, and what the configuration beside it says it was tuned for.
    pub(super) fn read(self, base: &Base) -> Result<(Vec<u8>, Option<Regime>), Error> {
        match self {
            Source::Bytes(bytes) => Ok((bytes, None)),
            Source::Spooled(file) => {
                let bytes = read_open(&file);
                let bytes = bytes.map_err(|error| checkpoint(UPLOADED)(error.into()))?;
                Ok((bytes, None))
            }
            Source::Path(path) => {
                let bytes = in_time(PATIENCE, path.clone(), read_file)
                    .map_err(|error| checkpoint(&path.display().to_string())(error.into()))?;
                Ok((bytes, base.check_neighbours(&path)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_disk_that_does_not_answer_are_given_up() {
        fn never(_: &Path) -> Result<Vec<u8>, Unreadable> {
            loop {
                std::thread::park();
            }
        }
        let refused = in_time(Duration::from_millis(1), PathBuf::new(), never);
        let error = refused.expect_err("nothing was read");
        assert!(error.to_string().contains("within 1ms"), "{error}");
        let read = in_time(PATIENCE, PathBuf::from("a"), |path: &Path| {
            Ok(path.to_owned())
        });
        assert_eq!(read.expect("a path"), Path::new("a"));
    }
}
