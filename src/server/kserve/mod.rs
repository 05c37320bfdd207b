//! The Open Inference Protocol, version 2 (KServe's), with Triton's extensions: a model is the base, a variant or a mix.

mod ask;
mod load;
mod statistics;
mod stream;
mod tensors;

use super::access::Caller;
use super::changes::Changes;
use super::deadline;
use super::mix;
use super::requests::{Answer, Requests};
use crate::engine::{BASE, EngineHandle};
use crate::kserve as pb;
use ask::{InferForm, check_version};
use pb::grpc_inference_service_server::GrpcInferenceService;
use statistics::Statistics;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Answers that may wait for a client to read them.
const WAITING: usize = 16;
const EXTENSIONS: [&str; 3] = ["model_configuration", "model_repository", "statistics"];

/// Serves what the engine's generation serves.
#[derive(Clone)]
pub struct Service {
    requests: Requests,
    changes: Changes,
    statistics: Statistics,
}

impl Service {
    pub fn new(requests: Requests, changes: Changes) -> Self {
        Service {
            requests,
            changes,
            statistics: Statistics::default(),
        }
    }

    fn engine(&self) -> &EngineHandle {
        self.requests.engine()
    }

    fn names(&self) -> Vec<String> {
        let generation = self.engine().generation();
        let variants = generation.variants.keys().cloned();
        std::iter::once(BASE.to_owned()).chain(variants).collect()
    }

    /// Refuses a model that is not there.
    fn check(&self, name: &str, version: &str) -> Result<(), Status> {
        check_version(version)?;
        let mix = mix::named("name", name)?;
        self.engine().resolve(mix)?;
        Ok(())
    }

    async fn submit(
        &self,
        request: pb::ModelInferRequest,
        deadline: Option<Instant>,
        caller: Caller,
    ) -> Result<(Answer, InferForm), Status> {
        let (ask, shown) = ask::read(request, deadline, caller)?;
        let answer = self.requests.generate(ask).await;
        let answer = answer.map_err(|refusal| refusal.named(ask::path))?;
        Ok((answer, shown))
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    type ModelStreamInferStream = ReceiverStream<Result<pb::ModelStreamInferResponse, Status>>;

    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> Result<Response<pb::ServerLiveResponse>, Status> {
        let live = self.engine().status().lost.is_none();
        Ok(Response::new(pb::ServerLiveResponse { live }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Result<Response<pb::ServerReadyResponse>, Status> {
        let ready = !self.engine().status().draining;
        Ok(Response::new(pb::ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Result<Response<pb::ModelReadyResponse>, Status> {
        let pb::ModelReadyRequest { name, version } = request.into_inner();
        let ready = self.check(&name, &version).is_ok() && !self.engine().status().draining;
        Ok(Response::new(pb::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Result<Response<pb::ServerMetadataResponse>, Status> {
        Ok(Response::new(pb::ServerMetadataResponse {
            name: "choir".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Result<Response<pb::ModelMetadataResponse>, Status> {
        let pb::ModelMetadataRequest { name, version } = request.into_inner();
        self.check(&name, &version)?;
        Ok(Response::new(ask::metadata(name)))
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Result<Response<pb::ModelConfigResponse>, Status> {
        let pb::ModelConfigRequest { name, version } = request.into_inner();
        self.check(&name, &version)?;
        let config = Some(ask::config(name));
        Ok(Response::new(pb::ModelConfigResponse { config }))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Result<Response<pb::ModelStatisticsResponse>, Status> {
        let pb::ModelStatisticsRequest { name, version } = request.into_inner();
        let served = self.names();
        let names = match name.is_empty() {
            true => served.clone(),
            false => {
                self.check(&name, &version)?;
                vec![name]
            }
        };
        let model_stats = self.statistics.of_models(&names, &served);
        Ok(Response::new(pb::ModelStatisticsResponse { model_stats }))
    }

    async fn model_infer(
        &self,
        request: Request<pb::ModelInferRequest>,
    ) -> Result<Response<pb::ModelInferResponse>, Status> {
        let deadline = deadline::of(request.metadata())?;
        let caller = Caller::of(request.extensions())?;
        let begun = Instant::now();
        let (answer, shown) = self.submit(request.into_inner(), deadline, caller).await?;
        if shown.stream {
            let message = "stream: ModelStreamInfer sends a text block by block";
            return Err(Status::invalid_argument(message));
        }
        match answer.whole().await {
            Ok(whole) => {
                self.statistics.finished(&shown, begun, &whole.summary);
                Ok(Response::new(shown.text(whole.text, true)))
            }
            Err(error) => {
                self.statistics.failed(&shown, begun);
                Err(error.into())
            }
        }
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<pb::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let (service, requests) = (self.clone(), request.into_inner());
        tokio::spawn(stream::answer(service, caller, requests, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn repository_index(
        &self,
        _: Request<pb::RepositoryIndexRequest>,
    ) -> Result<Response<pb::RepositoryIndexResponse>, Status> {
        let model = |name| pb::repository_index_response::ModelIndex {
            name,
            version: ask::VERSION.into(),
            state: "READY".into(),
            reason: String::new(),
        };
        let models = self.names().into_iter().map(model).collect();
        Ok(Response::new(pb::RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Result<Response<pb::RepositoryModelLoadResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        self.load(&caller, request.into_inner()).await?;
        Ok(Response::new(pb::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Result<Response<pb::RepositoryModelUnloadResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        self.unload(&caller, request.into_inner()).await?;
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }
}
