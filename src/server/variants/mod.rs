//! Variants over HTTP, for operators: all of them, and one by its name, which is put with a file as its body, and deleted. A page of
//! another origin can have no browser do either.

mod add;
mod upload;

use super::access::Caller;
use super::changes::Changes;
use super::failure::Failure;
use super::spool::UploadRoom;
use crate::catalog::{RemoveRequest, VariantInfo};
use crate::model::Process;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, put};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tonic::{Code, Status};

/// Where a file is given.
const BODY: &str = "body";

/// What the routes stand on.
#[derive(Clone)]
pub struct Variants {
    pub changes: Changes,
    /// Of all uploads together.
    pub room: UploadRoom,
    /// How long a client may be silent in the middle of an upload.
    pub patience: Duration,
}

/// The routes, which are for admins.
pub fn routes(variants: Variants) -> Router {
    Router::new()
        .route("/choir/v1/variants", get(list))
        .route("/choir/v1/variants/{name}", put(add::add).delete(remove))
        .with_state(variants)
}

async fn list(State(variants): State<Variants>) -> Response {
    let variants = variants.changes.catalog.list();
    let variants: Vec<Value> = variants.iter().map(variant).collect();
    answer(StatusCode::OK, &json!({"variants": variants}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    expected_generation: Option<u64>,
}

async fn remove(
    State(variants): State<Variants>,
    Path(name): Path<String>,
    query: Result<Query<Removal>, QueryRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let caller = Caller::of(request.extensions())?;
    let Query(removal) = query.map_err(bad_query)?;
    let removal = RemoveRequest {
        delta: None,
        expected_generation: removal.expected_generation,
    };
    let removed = variants.changes.remove(&caller, "name", name, removal);
    let generation = removed.await.map_err(told)?;
    Ok(answer(StatusCode::OK, &json!({"generation": generation})))
}

fn bad_query(error: QueryRejection) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, error.body_text())
}

/// What went wrong, where nothing has a header. A body that is damaged is the client's, a store that is damaged is not.
fn told(status: Status) -> Failure {
    if status.code() == Code::DataLoss && status.message().starts_with(&format!("{BODY}: ")) {
        return Failure::new(StatusCode::BAD_REQUEST, status.message());
    }
    match status.message().strip_prefix("header.") {
        None => status.into(),
        Some(message) => {
            Status::with_metadata(status.code(), message, status.metadata().clone()).into()
        }
    }
}

fn answer(code: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = code;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// What an operator may see of a variant. What is not known, or is shared with others, is null.
fn variant(info: &VariantInfo) -> Value {
    let process = match info.regime.process {
        Process::Absorbing => "absorbing",
        Process::Uniform => "uniform",
    };
    json!({
        "name": info.name,
        "seed": info.seed,
        "scale": info.scale,
        "keep": info.keep.to_string(),
        "banks": info.banks,
        "bits": info.bits,
        "bytes": info.bytes,
        "cosine": info.cosine,
        "relative_error": info.relative_error,
        "share": info.share.as_ref().map(|share| share.share),
        "process": process,
        "block_size": info.regime.block,
        "source": info.source,
        "delta_digest": info.delta_digest,
        "archived": info.archived,
        "added": info.added,
    })
}
