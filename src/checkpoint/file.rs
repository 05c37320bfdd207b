//! Files of an operator's own choosing: special ones are refused, and nothing waits for one that never ends.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::{Unreadable, room};

/// How long a disk may take to answer: others wait meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// What `read` gives, on a thread of its own, which is left to itself where the disk does not answer in time.
///
/// # Errors
/// The thread's own, and where it takes longer than `patience`.
pub(crate) fn in_time<T: Send + 'static>(
    patience: Duration,
    read: impl FnOnce() -> Result<T, Unreadable> + Send + 'static,
) -> Result<T, Unreadable> {
    let (done, result) = mpsc::channel();
    std::thread::Builder::new()
        .name("choir-read".into())
        .spawn(move || drop(done.send(read())))?;
    result.recv_timeout(patience).unwrap_or_else(|_| {
        let reason = format!("it could not be read within {patience:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, reason).into())
    })
}

/// The bytes of one shard. A file's are read where they are asked for and never mapped: one that is cut meanwhile is an error, not the
/// end of the process.
#[derive(Debug)]
pub(super) enum Bytes<'a> {
    File(Arc<File>, u64),
    Held(Cow<'a, [u8]>),
}

impl Bytes<'static> {
    /// Those of a regular file.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        Self::of(opened(path)?)
    }

    /// The same of one that is open.
    pub fn of(file: File) -> Result<Self, Unreadable> {
        let length = regular(&file)?;
        Ok(Bytes::File(Arc::new(file), length))
    }
}

impl Bytes<'_> {
    pub fn len(&self) -> u64 {
        match self {
            Bytes::File(_, length) => *length,
            Bytes::Held(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `out` with what begins at byte `at`. A file's come by way of another thread, since a disk may not answer.
    pub fn read(&self, at: usize, out: &mut Vec<u8>) -> Result<(), Unreadable> {
        match self {
            Bytes::File(file, _) => {
                let (file, mut bytes) = (file.clone(), std::mem::take(out));
                *out = in_time(PATIENCE, move || {
                    match file.read_exact_at(&mut bytes, at as u64) {
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            Err(Unreadable::WrongLength)
                        }
                        Err(error) => Err(error.into()),
                        Ok(()) => Ok(bytes),
                    }
                })?;
                Ok(())
            }
            Bytes::Held(bytes) => {
                let end = at.checked_add(out.len());
                let from = end.and_then(|end| bytes.get(at..end));
                out.copy_from_slice(from.ok_or(Unreadable::WrongLength)?);
                Ok(())
            }
        }
    }
}

fn opened(path: &Path) -> Result<File, Unreadable> {
    Ok(OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK) // opening a pipe would wait for its writer
        .open(path)?)
}

/// The length of a regular file that is not empty. One that says it is empty is taken at its word: those of /proc do, and some of them
/// block.
fn regular(file: &File) -> Result<u64, Unreadable> {
    match file.metadata()? {
        found if found.is_dir() => Err(Unreadable::Directory),
        found if !found.is_file() => Err(Unreadable::NotAFile),
        found if found.len() == 0 => Err(Unreadable::Empty),
        found => Ok(found.len()),
    }
}

/// Reads a regular file whole, where there is memory for it.
///
/// # Errors
/// Where `path` is a directory, a device or a pipe, which may never end, or a file that is empty.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Unreadable> {
    read_small(path, u64::MAX)
}

/// The same of at most `longest` bytes.
///
/// # Errors
/// Also where it is longer.
pub fn read_small(path: &Path, longest: u64) -> Result<Vec<u8>, Unreadable> {
    let file = opened(path)?;
    if regular(&file)? > longest {
        return Err(Unreadable::TooLong { longest });
    }
    read_open(&file)
}

/// A file that is open, whole, from its beginning.
///
/// # Errors
/// As [`read_file`]'s.
pub fn read_open(mut file: &File) -> Result<Vec<u8>, Unreadable> {
    let length = regular(file)?;
    room(length)?;
    let mut bytes = Vec::new();
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(wanted).map_err(io::Error::other)?;
    file.rewind()?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A name or a path as it may be shown on a terminal, whoever chose it.
pub fn shown(text: &str) -> String {
    let escaped = |letter: char| match letter.is_control() || is_invisible(letter) {
        true => letter.escape_unicode().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// What changes the order in which a line is read, or does not show.
fn is_invisible(letter: char) -> bool {
    matches!(letter, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_disk_that_does_not_answer_are_given_up() {
        let never = || -> Result<(), Unreadable> {
            loop {
                std::thread::park();
            }
        };
        let error = in_time(Duration::from_millis(1), never).expect_err("nothing was read");
        assert!(error.to_string().contains("within 1ms"), "{error}");
        assert_eq!(in_time(PATIENCE, || Ok(1)).expect("a number"), 1);
    }
}
