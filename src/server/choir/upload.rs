//! A checkpoint that a client streams in chunks.

use crate::pb::{AddVariantRequest, add_variant_request::Part};
use crate::server::access::Caller;
use crate::server::room::Held;
use crate::server::spool::{Spool, UploadRoom};
use crate::server::status::BadField;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Status, Streaming};

/// Largest chunk, in bytes.
pub const CHUNK_BYTES: usize = 1 << 20;
const FIELD: &str = "header.upload_bytes";

/// Room for one upload; refused at once where there is none.
pub fn reserve(room: &UploadRoom, caller: &Caller, bytes: u64) -> Result<Held, Status> {
    let share = room.share();
    match (1..=share).contains(&bytes) {
        true => room.reserve(&caller.client, bytes),
        false => {
            let reason = format!(
                "it is {bytes}, not within 1 and {share}; a path on the server has no limit"
            );
            Err(BadField::new(FIELD, reason).into())
        }
    }
}

/// Receives exactly `expected` bytes, reporting the share received after every chunk.
pub async fn receive(
    requests: &mut Streaming<AddVariantRequest>,
    expected: u64,
    mut spool: Spool,
    mut progress: impl FnMut(f32),
) -> Result<Arc<File>, Status> {
    let bad = |reason: String| Status::from(BadField::new("chunk", reason));
    while let Some(request) = spool.next(requests.message()).await?? {
        let Some(Part::Chunk(chunk)) = request.part else {
            return Err(bad("only chunks may follow the header".to_owned()));
        };
        if chunk.is_empty() {
            return Err(bad("it is empty".to_owned()));
        }
        if chunk.len() > CHUNK_BYTES {
            return Err(bad(format!("it has more than {CHUNK_BYTES} bytes")));
        }
        if chunk.len() as u64 > expected - spool.received() {
            let reason = format!("the file is longer than the {expected} bytes announced");
            return Err(bad(reason));
        }
        spool.write("chunk", &chunk).await?;
        progress((spool.received() as f64 / expected as f64) as f32);
    }
    let received = spool.received();
    if received < expected {
        let reason = format!("the file ended after {received} of the {expected} bytes announced");
        return Err(bad(reason));
    }
    spool.finish().await
}

/// The first message of an upload, which must not take for ever.
pub async fn first(
    requests: &mut Streaming<AddVariantRequest>,
    patience: Duration,
) -> Result<Option<AddVariantRequest>, Status> {
    tokio::time::timeout(patience, requests.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the upload stopped"))?
}
