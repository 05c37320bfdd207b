//! A file that is the body of a request, or the end of one.

use super::{BODY, Variants, told};
use crate::catalog::Beside;
use crate::server::access::Caller;
use crate::server::failure::Failure;
use crate::server::room::Held;
use crate::server::spool::Spool;
use crate::server::status::BadField;
use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

/// A body of this type has before its file what stands beside that: eight bytes, little end first, say how long a JSON object is, then
/// comes the object, of the small files' names and contents.
pub const WITH_BESIDE: &str = "application/vnd.choir.variant";
/// Bytes of that object at most.
const LONGEST_BESIDE: u64 = 2 << 20;

/// Room for a body whose head says how long it is.
pub fn reserve(variants: &Variants, caller: &Caller, body: &Body) -> Result<Held, Failure> {
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

/// The file, and what stands beside it where the body is of that type.
pub async fn receive(
    variants: &Variants,
    mut body: Body,
    with_beside: bool,
) -> Result<(Arc<File>, Beside), Failure> {
    let length = body.size_hint().exact().filter(|_| !with_beside);
    let mut spool = Spool::new(&variants.changes.catalog, length, variants.patience)?;
    let (mut beside, mut before) = (Beside::default(), with_beside.then(Vec::new));
    while let Some(frame) = spool.next(body.frame()).await? {
        let Ok(frame) = frame else {
            let message = "the upload ended early";
            return Err(Failure::new(StatusCode::BAD_REQUEST, message));
        };
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        let kept = match &mut before {
            None => spool.write(BODY, &bytes).await.map_err(told),
            Some(begun) => {
                begun.extend_from_slice(&bytes);
                match split(begun) {
                    Ok(None) => Ok(()),
                    Ok(Some((found, file))) => {
                        let kept = spool.write(BODY, file).await.map_err(told);
                        (beside, before) = (found, None);
                        kept
                    }
                    Err(bad) => Err(bad.into()),
                }
            }
        };
        if let Err(failure) = kept {
            discard(variants, body).await;
            return Err(failure);
        }
    }
    if before.is_some() {
        return Err(BadField::new("beside", "the body ends within it").into());
    }
    Ok((spool.finish().await?, beside))
}

/// What stands beside the file, and the beginning of the file; nothing where more has to come.
fn split(bytes: &[u8]) -> Result<Option<(Beside, &[u8])>, BadField> {
    let bad = |reason: String| BadField::new("beside", reason);
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_BESIDE {
        return Err(bad(format!("it has more than {LONGEST_BESIDE} bytes")));
    }
    let Some((files, file)) = rest.split_at_checked(length as usize) else {
        return Ok(None);
    };
    let files: BTreeMap<String, String> =
        serde_json::from_slice(files).map_err(|error| bad(error.to_string()))?;
    let files = files
        .into_iter()
        .map(|(name, content)| (name, content.into_bytes()));
    let beside = Beside::sent(files, None).map_err(bad)?;
    Ok(Some((beside, file)))
}

/// Takes a body that is not wanted, for a while: a browser that cannot send all of it would show a broken connection, and not the
/// answer that says why.
pub async fn discard(variants: &Variants, mut body: Body) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(variants.patience, all).await;
}
