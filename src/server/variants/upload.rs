//! A file that is the body of a request.

use super::{Variants, told};
use crate::server::access::Caller;
use crate::server::failure::Failure;
use crate::server::spool::{Reserved, Spool};
use crate::server::status::BadField;
use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use std::fs::File;
use std::sync::Arc;

/// Room for a body whose head says how long it is.
pub fn reserve(variants: &Variants, caller: &Caller, body: &Body) -> Result<Reserved, Failure> {
    let Some(length) = body.size_hint().exact() else {
        let message = "an upload says how long it is: Content-Length";
        return Err(Failure::new(StatusCode::LENGTH_REQUIRED, message));
    };
    let share = variants.room.share();
    if !(1..=share).contains(&length) {
        let reason = format!("it has {length} bytes, not within 1 and {share}");
        return Err(BadField::new("upload_bytes", reason).into());
    }
    variants.room.reserve(&caller.client, length).map_err(told)
}

/// The whole body.
pub async fn receive(variants: &Variants, mut body: Body) -> Result<Arc<File>, Failure> {
    let mut spool = Spool::new(&variants.changes.catalog, variants.patience)?;
    while let Some(frame) = spool.next(body.frame()).await? {
        let Ok(frame) = frame else {
            let message = "the upload ended early";
            return Err(Failure::new(StatusCode::BAD_REQUEST, message));
        };
        if let Ok(bytes) = frame.into_data() {
            spool.write(&bytes).await?;
        }
    }
    Ok(spool.finish().await?)
}

/// Takes a body that is not wanted, for a while: a browser that cannot send all of it would show a broken connection, and not the
/// answer that says why.
pub async fn discard(variants: &Variants, mut body: Body) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(variants.patience, all).await;
}
