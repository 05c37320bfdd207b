//! Files that clients upload, whatever the protocol: on the store's disk without a name, bounded in how slow and how long silent the client
//! may be, and in the room of all uploads together and of each client.

use super::room::{ClientName, Held, Room};
use super::status::{exhausted, of_change};
use crate::catalog::{Catalog, begins};
use crate::checkpoint::BEGINNING;
use std::fs::File;
use std::io;
use std::sync::Arc;
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
pub struct UploadRoom(Room);

impl UploadRoom {
    pub fn new(bytes: u64) -> Self {
        UploadRoom(Room::new(bytes, SHARES))
    }

    /// Bytes of one client's uploads at most.
    pub fn share(&self) -> u64 {
        self.0.share()
    }

    /// Room for one upload, of no more than a client's share.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED where there is none now.
    pub fn reserve(&self, client: &ClientName, bytes: u64) -> Result<Held, Status> {
        let mut held = self.0.of(client.clone());
        let taken = held.take(bytes.max(self.0.bytes() / MOST));
        taken.map_err(|crowded| {
            let message = format!("{crowded} uploads leave no room for this one now");
            exhausted(message, Some(Duration::from_secs(5)))
        })?;
        Ok(held)
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
    fn uploads_are_bounded_in_number_too() {
        let (room, client) = (UploadRoom::new(1000), Some("ann".into()));
        let small: Vec<_> = std::iter::from_fn(|| room.reserve(&client, 1).ok()).collect();
        assert!((30..=64).contains(&small.len()), "{}", small.len());
        let error = room.reserve(&client, 1).expect_err("full");
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        drop(small);
        room.reserve(&client, 500).expect("all of its share");
    }
}
