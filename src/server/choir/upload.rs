//! A checkpoint that a client streams: bounded in size, in how long the client may be silent, and in the memory of all uploads
//! together.

use crate::pb::{AddVariantRequest, add_variant_request::Part};
use crate::server::status::{BadField, exhausted};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, Streaming};

/// Largest chunk, in bytes.
pub const CHUNK_BYTES: usize = 1 << 20;
/// A client silent for this long has left.
const PATIENCE: Duration = Duration::from_secs(30);
const FIELD: &str = "header.upload_bytes";

/// Room in memory for uploads, shared by all of them.
#[derive(Clone)]
pub struct Room {
    kib: Arc<Semaphore>,
    bytes: u64,
}

impl Room {
    pub fn new(bytes: u64) -> Self {
        let permits = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX);
        Room {
            kib: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            bytes,
        }
    }

    /// Room for one upload until the permit is dropped; refused at once where there is none.
    pub fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Status> {
        if bytes == 0 || bytes > self.bytes {
            let reason = format!(
                "it is {bytes}, not within 1 and {}; a path on the server has no limit",
                self.bytes
            );
            return Err(BadField::new(FIELD, reason).into());
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.kib.clone().try_acquire_many_owned(kib).map_err(|_| {
            exhausted(
                "other uploads leave no room for this one now",
                Some(Duration::from_secs(5)),
            )
        })
    }
}

/// Receives exactly `expected` bytes, reporting the share received after every chunk.
pub async fn receive(
    requests: &mut Streaming<AddVariantRequest>,
    expected: u64,
    mut progress: impl FnMut(f32),
) -> Result<Vec<u8>, Status> {
    let expected =
        usize::try_from(expected).map_err(|_| BadField::new(FIELD, "it is too large"))?;
    let mut file = Vec::new();
    file.try_reserve_exact(expected)
        .map_err(|error| exhausted(error.to_string(), None))?;
    while let Some(request) = next(requests).await? {
        let Some(Part::Chunk(chunk)) = request.part else {
            return Err(BadField::new("chunk", "only chunks may follow the header").into());
        };
        if chunk.len() > CHUNK_BYTES {
            return Err(
                BadField::new("chunk", format!("it has more than {CHUNK_BYTES} bytes")).into(),
            );
        }
        if chunk.len() > expected - file.len() {
            return Err(BadField::new(
                "chunk",
                format!("the file is longer than the {expected} bytes announced"),
            )
            .into());
        }
        file.extend_from_slice(&chunk);
        progress(file.len() as f32 / expected as f32);
    }
    if file.len() < expected {
        let reason = format!(
            "the file ended after {} of the {expected} bytes announced",
            file.len()
        );
        return Err(BadField::new("chunk", reason).into());
    }
    Ok(file)
}

/// The next message of an upload, which must not take for ever.
pub async fn next(
    requests: &mut Streaming<AddVariantRequest>,
) -> Result<Option<AddVariantRequest>, Status> {
    tokio::time::timeout(PATIENCE, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the upload stopped"))?
}
