//! `choir.v1.Admin`: the catalog's actions, off the runtime's threads.

use super::convert;
use super::upload;
use crate::catalog::{AddRequest, AdditionProgress, CheckpointSource, RemoveRequest, Tuning};
use crate::engine::{EngineHandle, MemoryPart};
use crate::pb;
use crate::pb::add_variant_request::Part;
use crate::pb::add_variant_response::Event;
use crate::pb::admin_server::Admin;
use crate::server::Limits;
use crate::server::access::Caller;
use crate::server::changes::Changes;
use crate::server::spool::{Spool, UploadRoom};
use crate::server::status::BadField;
use crate::store;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type AddSender = mpsc::Sender<Result<pb::AddVariantResponse, Status>>;

/// Progress messages that may wait for a slow client; more are left out.
const PROGRESS_WAITING: usize = 32;

/// Serves the catalog.
#[derive(Clone)]
pub struct AdminService {
    changes: Changes,
    engine: EngineHandle,
    room: UploadRoom,
    /// With clients that are silent or slow.
    patience: Duration,
    /// Told in the status.
    prompt_bytes: u64,
}

impl AdminService {
    /// `room` is that of all uploads under way together.
    pub fn new(changes: Changes, engine: EngineHandle, room: UploadRoom, limits: &Limits) -> Self {
        AdminService {
            changes,
            engine,
            room,
            patience: limits.patience,
            prompt_bytes: limits.prompt_bytes as u64,
        }
    }

    async fn add(
        &self,
        caller: &Caller,
        mut requests: Streaming<pb::AddVariantRequest>,
        events: &AddSender,
    ) -> Result<Event, Status> {
        let Some(Part::Header(header)) = upload::first(&mut requests, self.patience)
            .await?
            .and_then(|request| request.part)
        else {
            return Err(BadField::new("header", "it must come first").into());
        };
        // Before the upload, not after it.
        store::check_name(&header.name)?;
        let replaces = header.replaces.as_deref().map(convert::replaces);
        let replaces = replaces.transpose()?;
        match (self.changes.catalog.get(&header.name), replaces) {
            (Ok(_), None) => return Err(store::Error::NameTaken { name: header.name }.into()),
            (Err(unknown), Some(_)) => return Err(unknown.into()),
            _ => {}
        }
        let defaults = convert::choice(header.defaults).map_err(|error| {
            let error = error.to_string();
            let inside = error.strip_prefix("sampling.").unwrap_or(&error);
            BadField::new("header.defaults", inside)
        })?;
        let tuning = Tuning {
            process: convert::process(header.process)?,
            block_size: header.block_size.map(|size| size as usize),
            time_conditioning: header.time_conditioning,
        };
        if header.beside.is_some()
            && matches!(header.source, Some(pb::add_variant_header::Source::Path(_)))
        {
            let reason = "of a path it is read where the path is";
            return Err(BadField::new("header.beside", reason).into());
        }
        let beside = convert::beside(header.beside)?;
        // Its room is held until the catalog is done with the file.
        let (source, reserved, field) = match header.source {
            Some(pb::add_variant_header::Source::Path(path)) if !path.is_empty() => {
                let file = self.changes.file("header.path", path).await?;
                (CheckpointSource::Path(file), None, "header.path")
            }
            Some(pb::add_variant_header::Source::UploadBytes(bytes)) => {
                let reserved = upload::reserve(&self.room, caller, bytes)?;
                let report = |fraction| tell(events, pb::AddStage::Receiving, fraction);
                let spool = Spool::new(&self.changes.catalog, Some(bytes), self.patience)?;
                let file = upload::receive(&mut requests, bytes, spool, report).await?;
                (CheckpointSource::Spooled(file), Some(reserved), "chunk")
            }
            Some(pb::add_variant_header::Source::Path(_)) | None => {
                return Err(BadField::new(
                    "header.source",
                    "give a path or the size of the upload",
                )
                .into());
            }
        };
        let request = AddRequest {
            name: header.name,
            seed: header.seed,
            source,
            beside,
            scale: header.scale,
            tuning,
            defaults,
            keep: convert::keep(header.keep)?,
            bits: header.bits,
            replaces,
            min_share: header.min_share,
            check_text: header.check_text,
            force: header.force,
            dry_run: header.dry_run,
            expected_generation: header.expected_generation,
        };
        let dry_run = request.dry_run;
        let events = events.clone();
        let told = move |progress: AdditionProgress| {
            let _held = &reserved;
            tell(&events, convert::stage(progress.stage), progress.fraction)
        };
        let added = self.changes.add(caller, field, request, told).await?;
        Ok(match dry_run {
            true => Event::DryRun(convert::dry_run(added)),
            false => Event::Variant(convert::variant(added.variant)),
        })
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type AddVariantStream = ReceiverStream<Result<pb::AddVariantResponse, Status>>;

    async fn add_variant(
        &self,
        request: Request<Streaming<pb::AddVariantRequest>>,
    ) -> Result<Response<Self::AddVariantStream>, Status> {
        let (sender, receiver) = mpsc::channel(PROGRESS_WAITING);
        let caller = Caller::of(request.extensions())?;
        let (service, requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let end = service.add(&caller, requests, &sender).await;
            let end = end.map(|event| pb::AddVariantResponse { event: Some(event) });
            let _ = sender.send(end).await; // the client may have left
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn remove_variant(
        &self,
        request: Request<pb::RemoveVariantRequest>,
    ) -> Result<Response<pb::RemoveVariantResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let request = request.into_inner();
        let delta = match request.path {
            Some(path) => Some(CheckpointSource::Path(
                self.changes.file("path", path).await?,
            )),
            None => None,
        };
        let removal = RemoveRequest {
            delta,
            expected_generation: request.expected_generation,
        };
        let removed = self.changes.remove(&caller, "path", request.name, removal);
        let generation = removed.await?;
        Ok(Response::new(pb::RemoveVariantResponse { generation }))
    }

    async fn list_variants(
        &self,
        _: Request<pb::ListVariantsRequest>,
    ) -> Result<Response<pb::ListVariantsResponse>, Status> {
        let variants = self
            .changes
            .catalog
            .list()
            .into_iter()
            .map(convert::variant)
            .collect();
        Ok(Response::new(pb::ListVariantsResponse { variants }))
    }

    async fn get_variant(
        &self,
        request: Request<pb::GetVariantRequest>,
    ) -> Result<Response<pb::GetVariantResponse>, Status> {
        let variant = convert::variant(self.changes.catalog.get(&request.into_inner().name)?);
        Ok(Response::new(pb::GetVariantResponse {
            variant: Some(variant),
        }))
    }

    async fn get_status(
        &self,
        _: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        let (catalog, engine) = (self.changes.catalog.status(), self.engine.status());
        let cache = MemoryPart {
            part: "key-value cache".into(),
            bytes: engine.kv_bytes,
            on_device: engine.kv_on_device,
        };
        let tokenizer = MemoryPart {
            part: "tokenizer".into(),
            bytes: catalog.tokenizer_bytes,
            on_device: false,
        };
        let materialised = MemoryPart {
            part: "materialised".into(),
            bytes: engine.materialised_bytes,
            on_device: engine.kv_on_device,
        };
        let beside = [tokenizer, cache, materialised]
            .into_iter()
            .filter(|part| part.bytes > 0);
        let memory = catalog
            .memory
            .into_iter()
            .chain(beside)
            .map(|part| pb::MemoryPart {
                part: part.to_string(),
                bytes: part.bytes,
            });
        Ok(Response::new(pb::GetStatusResponse {
            generation: engine.generation,
            variants: convert::small(catalog.variants),
            banks: convert::small(catalog.banks),
            memory: memory.collect(),
            waiting: convert::small(engine.waiting),
            queue_limit: convert::small(engine.queue_limit),
            running: convert::small(engine.running),
            max_running: convert::small(engine.max_running),
            pages_used: engine.pages_used as u64,
            pages_total: engine.pages_total as u64,
            steps: engine.steps,
            tokens_generated: engine.tokens_generated,
            finished: engine.finished,
            cancelled: engine.cancelled,
            failed: engine.failed,
            draining: engine.draining,
            version: env!("CARGO_PKG_VERSION").into(),
            paused: convert::small(engine.paused),
            open_streams: engine.streams as u64,
            generations: convert::small(engine.generations),
            leases: engine.leases as u64,
            late: engine.late,
            stalled: engine.stalled,
            refused: Some(convert::refused(engine.refused)),
            variant_loads: engine.variants.into_iter().map(convert::load).collect(),
            pages_idle: engine.pages_idle as u64,
            preempted: engine.preempted,
            tokens_reused: engine.tokens_reused,
            max_parts: convert::small(engine.max_parts),
            coded: convert::small(catalog.coded),
            low_rank: convert::small(catalog.low_rank),
            max_evaluations: engine.max_evaluations,
            max_prompt_bytes: self.prompt_bytes,
        }))
    }
}

/// Tells a client how far its addition is; a client too slow to listen misses some.
fn tell(events: &AddSender, stage: pb::AddStage, fraction: f32) {
    let progress = pb::AddProgress {
        stage: stage.into(),
        fraction,
    };
    let _ = events.try_send(Ok(pb::AddVariantResponse {
        event: Some(Event::Progress(progress)),
    }));
}
