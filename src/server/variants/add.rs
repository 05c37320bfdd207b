//! `PUT /choir/v1/variants/{name}`: an addition. Its progress is told as events where the client wants them; else the answer
//! waits for the end.

use super::{BODY, Variants, answer, bad_query, told, upload, variant};
use crate::catalog::{
    AddRequest, Added, AdditionProgress, AdditionStage, CheckpointSource, Tuning,
};
use crate::model::Process;
use crate::server::access::Caller;
use crate::server::failure::Failure;
use crate::server::status::BadField;
use crate::store;
use crate::superposition::Digest;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Events that may wait for a slow client; more of the progress is left out.
const EVENTS_WAITING: usize = 32;

/// What is said of a new variant beside its file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addition {
    seed: Option<u64>,
    scale: Option<f32>,
    keep: Option<String>,
    bits: Option<f32>,
    process: Option<String>,
    block_size: Option<usize>,
    time_conditioning: Option<bool>,
    min_share: Option<f32>,
    replaces: Option<String>,
    expected_generation: Option<u64>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    dry_run: bool,
}

impl Addition {
    /// The request without its file.
    fn request(self, name: String) -> Result<AddRequest, BadField> {
        let keep = self.keep.map(|keep| keep.parse());
        let process = self.process.map(|process| match process.as_str() {
            "absorbing" => Ok(Process::Absorbing),
            "uniform" => Ok(Process::Uniform),
            _ => Err(BadField::new(
                "process",
                "it is neither absorbing nor uniform",
            )),
        });
        let replaces = self.replaces.map(|digest| {
            let reason = "it is not 64 lower-case hexadecimal digits";
            Digest::parse(&digest).ok_or_else(|| BadField::new("replaces", reason))
        });
        Ok(AddRequest {
            seed: self.seed,
            scale: self.scale,
            keep: keep
                .transpose()
                .map_err(|error| BadField::new("keep", error))?,
            bits: self.bits,
            tuning: Tuning {
                process: process.transpose()?,
                block_size: self.block_size,
                time_conditioning: self.time_conditioning,
            },
            min_share: self.min_share,
            replaces: replaces.transpose()?,
            expected_generation: self.expected_generation,
            force: self.force,
            dry_run: self.dry_run,
            ..AddRequest::new(name, CheckpointSource::Bytes(Vec::new()))
        })
    }
}

pub async fn add(
    State(variants): State<Variants>,
    Path(name): Path<String>,
    query: Result<Query<Addition>, QueryRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let caller = Caller::of(request.extensions())?;
    let wants_events = wants_events(request.headers());
    let with_beside = request.headers().get(header::CONTENT_TYPE);
    let with_beside = with_beside.is_some_and(|kind| kind == upload::WITH_BESIDE);
    let waits = request.headers().contains_key(header::EXPECT);
    let body = request.into_body();
    // Before the upload, not after it.
    let admitted = || {
        let Query(addition) = query.map_err(bad_query)?;
        let addition = addition.request(name)?;
        variants.check(&addition).map_err(told)?;
        Ok((addition, upload::reserve(&variants, &caller, &body)?))
    };
    let (mut addition, permit) = match admitted() {
        Ok(admitted) => admitted,
        Err(refused) => {
            if !waits {
                upload::discard(&variants, body).await;
            }
            return Err(refused);
        }
    };
    let (file, beside) = upload::receive(&variants, body, with_beside).await?;
    (addition.source, addition.beside) = (CheckpointSource::Spooled(file), beside);
    let (changes, dry_run) = (variants.changes, addition.dry_run);
    if !wants_events {
        let held = move |_: AdditionProgress| {
            let _held = &permit;
        };
        let added = changes.add(&caller, BODY, addition, held).await;
        let code = match dry_run {
            true => StatusCode::OK,
            false => StatusCode::CREATED,
        };
        return Ok(answer(code, &end(added.map_err(told)?, dry_run)));
    }
    let (sender, events) = mpsc::channel(EVENTS_WAITING);
    tokio::spawn(async move {
        let progress = sender.clone();
        let tell = move |AdditionProgress { stage, fraction }| {
            let _held = &permit;
            let _ = progress.try_send(json!({"stage": name_of(stage), "fraction": fraction}));
        };
        let last = match changes.add(&caller, BODY, addition, tell).await {
            Ok(added) => end(added, dry_run),
            Err(status) => told(status).body(),
        };
        let _ = sender.send(last).await; // the client may have left
    });
    let events =
        ReceiverStream::new(events).map(|event| Ok::<_, Infallible>(format!("data: {event}\n\n")));
    let mut response = Response::new(Body::from_stream(events));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter();
    let mut accepts = accepts.filter_map(|accept| accept.to_str().ok());
    accepts.any(|accept| accept.contains("text/event-stream"))
}

/// What came of an addition.
fn end(added: Added, dry_run: bool) -> Value {
    let made = variant(&added.variant);
    match dry_run {
        false => json!({"variant": made}),
        true => json!({"dry_run": {
            "variant": made,
            "disk_bytes": added.disk_bytes,
            "memory_bytes": added.memory_bytes,
        }}),
    }
}

fn name_of(stage: AdditionStage) -> &'static str {
    match stage {
        AdditionStage::Reading => "reading",
        AdditionStage::Comparing => "comparing",
        AdditionStage::Accumulating => "accumulating",
        AdditionStage::Measuring => "measuring",
        AdditionStage::Writing => "writing",
        AdditionStage::Publishing => "publishing",
    }
}

impl Variants {
    /// Refuses what could not be added whatever its file is.
    fn check(&self, addition: &AddRequest) -> Result<(), Status> {
        let name = &addition.name;
        store::check_name(name)?;
        match (self.changes.catalog.get(name), addition.replaces) {
            (Ok(_), None) => Err(store::Error::NameTaken { name: name.clone() }.into()),
            (Err(unknown), Some(_)) => Err(unknown.into()),
            _ => Ok(()),
        }
    }
}
