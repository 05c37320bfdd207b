//! A file that is the body of a request: bounded in size, and in how long its client may be silent.

use super::{Variants, told};
use crate::server::failure::Failure;
use crate::server::status::exhausted;
use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;

/// Room for a body whose head says how long it is.
pub fn reserve(variants: &Variants, body: &Body) -> Result<OwnedSemaphorePermit, Failure> {
    let Some(length) = body.size_hint().exact() else {
        let message = "an upload says how long it is: Content-Length";
        return Err(Failure::new(StatusCode::LENGTH_REQUIRED, message));
    };
    variants.room.reserve(length).map_err(told)
}

/// The whole body.
pub async fn receive(variants: &Variants, mut body: Body) -> Result<Vec<u8>, Failure> {
    let mut file = Vec::new();
    let length = body.size_hint().exact().unwrap_or(0);
    file.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))
        .map_err(|error| exhausted(error.to_string(), None))?;
    loop {
        let frame = tokio::time::timeout(variants.patience, body.frame()).await;
        let frame = frame.map_err(|_| {
            let message = "the upload stopped";
            Failure::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        match frame {
            None => return Ok(file),
            Some(Err(_)) => {
                let message = "the upload ended early";
                return Err(Failure::new(StatusCode::BAD_REQUEST, message));
            }
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    file.extend_from_slice(&bytes);
                }
            }
        }
    }
}

/// Takes a body that is not wanted, for a while: a browser that cannot send all of it would show a broken connection, and not the
/// answer that says why.
pub async fn discard(variants: &Variants, mut body: Body) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(variants.patience, all).await;
}
