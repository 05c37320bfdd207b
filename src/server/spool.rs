//! Files that clients upload, whatever the protocol: on the store's disk without a name, bounded in how slow and how long silent the client
//! may be, and in the room of all uploads together and of each client.

use super::status::{exhausted, of_change};
use crate::catalog::{Catalog, begins};
use crate::checkpoint::BEGINNING;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use tonic::Status;

/// Bytes that come in a second at least, over the whole upload, once the patience with silent clients is over.
const LEAST_RATE: u64 = 128 << 10;
/// Of the room an upload takes at least one part in so many, so that uploads are bounded in number, too.
const MOST: u64 = 64;
/// One client has at most one part in so many.
const SHARES: u64 = 2;

/// Room on the disk for uploads, shared by all of them.
#[derive(Clone)]
pub struct UploadRoom {
    bytes: u64,
    /// By client; those that have some.
    taken: Arc<Mutex<Taken>>,
}

/// As [`Caller`](super::access::Caller) has it.
type Client = Option<Arc<str>>;
type Taken = BTreeMap<Client, u64>;

/// Room of one upload, given back when this is dropped.
pub struct Reserved {
    room: UploadRoom,
    client: Client,
    bytes: u64,
}

impl UploadRoom {
    pub fn new(bytes: u64) -> Self {
        UploadRoom {
            bytes,
            taken: Arc::default(),
        }
    }

    /// Bytes of one client's uploads at most.
    pub fn share(&self) -> u64 {
        self.bytes / SHARES
    }

    fn change<T>(&self, change: impl FnOnce(&mut Taken) -> T) -> T {
        change(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Room for one upload, of no more than a client's share.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED where there is none now.
    pub fn reserve(&self, client: &Client, bytes: u64) -> Result<Reserved, Status> {
        let (client, bytes) = (client.clone(), bytes.max(self.bytes / MOST));
        self.change(|taken| {
            let own = taken.get(&client).copied().unwrap_or(0);
            let crowded = |whose| {
                let message = format!("{whose} uploads leave no room for this one now");
                Err(exhausted(message, Some(Duration::from_secs(5))))
            };
            if own + bytes > self.share() {
                return crowded("this client's other");
            }
            if taken.values().sum::<u64>() + bytes > self.bytes {
                return crowded("other");
            }
            *taken.entry(client.clone()).or_default() += bytes;
            Ok(())
        })?;
        Ok(Reserved {
            room: self.clone(),
            client,
            bytes,
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.room.change(|taken| {
            let own = taken.get(&self.client).copied().unwrap_or(0);
            match own.saturating_sub(self.bytes) {
                0 => taken.remove(&self.client),
                left => taken.insert(self.client.clone(), left),
            };
        });
    }
}

/// A file on its way in.
pub struct Spool {
    file: tokio::fs::File,
    /// Bytes that it will have, where that is known.
    length: Option<u64>,
    /// What it begins with, as far as that tells what it is.
    beginning: Vec<u8>,
    received: u64,
    begun: Instant,
    patience: Duration,
}

impl Spool {
    /// One for a file of this `length`, where that is known. `patience`: how long the client may be silent.
    pub fn new(catalog: &Catalog, length: Option<u64>, patience: Duration) -> Result<Self, Status> {
        let file = catalog.spool().map_err(|error| spoiled(&error))?;
        Ok(Spool {
            file: tokio::fs::File::from_std(file),
            length,
            beginning: Vec::new(),
            received: 0,
            begun: Instant::now(),
            patience,
        })
    }

    /// Bytes that have come.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What comes next.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED for a client that is silent for too long, or too slow over the whole.
    pub async fn next<T>(&self, next: impl Future<Output = T>) -> Result<T, Status> {
        let slowest = self.begun + self.patience + Duration::from_secs(self.received / LEAST_RATE);
        let silent = Instant::now() + self.patience;
        let next = tokio::time::timeout_at(slowest.min(silent), next).await;
        next.map_err(|_| {
            Status::deadline_exceeded(match slowest < silent {
                true => "the upload is too slow",
                false => "the upload stopped",
            })
        })
    }

    /// Writes what came in `field`, unless that begins no checkpoint.
    pub async fn write(&mut self, field: &'static str, chunk: &[u8]) -> Result<(), Status> {
        let more = (BEGINNING - self.beginning.len()).min(chunk.len());
        if more > 0 {
            self.beginning.extend_from_slice(&chunk[..more]);
            let begins = begins(&self.beginning, self.length.unwrap_or(u64::MAX));
            begins.map_err(|error| of_change(error, field))?;
        }
        let written = self.file.write_all(chunk).await;
        written.map_err(|error| spoiled(&error))?;
        self.received += chunk.len() as u64;
        Ok(())
    }

    /// The whole file.
    pub async fn finish(mut self) -> Result<Arc<File>, Status> {
        let flushed = self.file.flush().await;
        flushed.map_err(|error| spoiled(&error))?;
        Ok(Arc::new(self.file.into_std().await))
    }
}

/// What a client is told where its upload cannot be kept.
fn spoiled(error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            exhausted("the server's disk has no room for the upload", None)
        }
        _ => {
            tracing::error!("an upload cannot be kept: {error}");
            Status::internal("the upload cannot be kept; the server's log has the details")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_has_a_share_for_each_client() {
        let room = UploadRoom::new(1000);
        let [ann, ben, eve] = ["ann", "ben", "eve"].map(|name| Some(name.into()));
        let code =
            |reserved: Result<Reserved, Status>| reserved.map(drop).expect_err("full").code();
        let first = room.reserve(&ann, 400).expect("room");
        assert_eq!(
            code(room.reserve(&ann, 200)),
            tonic::Code::ResourceExhausted
        );
        let second = room.reserve(&ann, 100).expect("the rest of the share");
        let third = room.reserve(&ben, 500).expect("another's share");
        assert_eq!(code(room.reserve(&eve, 1)), tonic::Code::ResourceExhausted);
        drop((first, second, third));
        // Small ones are bounded in number.
        let small: Vec<_> = std::iter::from_fn(|| room.reserve(&ann, 1).ok()).collect();
        assert!((30..=64).contains(&small.len()), "{}", small.len());
        drop(small);
        assert!(room.taken.lock().expect("a lock").is_empty());
    }
}
