//! The standard health service: a name for the server (""), for each of its services and for each variant being served.

use crate::engine::EngineHandle;
use std::collections::BTreeSet;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

/// Names that are known from the start to the end. A variant's name has no dot, so none can be taken for a service.
const SERVICES: [&str; 4] = [
    "",
    "choir.v1.Inference",
    "choir.v1.Admin",
    "inference.GRPCInferenceService",
];

/// What is known of every name.
#[derive(Clone, Debug, Default)]
struct State {
    variants: BTreeSet<String>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Loading,
    Serving,
    Drained,
}

impl State {
    fn of(&self, name: &str) -> ServingStatus {
        match SERVICES.contains(&name) || self.variants.contains(name) {
            false => ServingStatus::ServiceUnknown,
            true if self.stage == Stage::Serving => ServingStatus::Serving,
            true => ServingStatus::NotServing,
        }
    }
}

/// Answers checks and watches. Clones share one state. Nothing serves until [`Health::begin`].
#[derive(Clone)]
pub struct Health {
    state: watch::Sender<State>,
}

impl Health {
    pub fn new() -> Self {
        Health {
            state: watch::Sender::new(State::default()),
        }
    }

    /// The service to register.
    pub fn service(&self) -> health_server::HealthServer<Health> {
        health_server::HealthServer::new(self.clone())
    }

    /// What is known serves from now on, until it is drained.
    pub fn begin(&self) {
        self.state.send_modify(|state| {
            if state.stage == Stage::Loading {
                state.stage = Stage::Serving;
            }
        });
    }

    /// Follows the generation in force. Whoever publishes calls this afterwards; the last call sees the last generation.
    pub fn follow(&self, engine: &EngineHandle) {
        self.state.send_modify(|state| {
            state.variants = engine.generation().variants.keys().cloned().collect();
        });
    }

    /// Nothing serves any more.
    pub fn drain(&self) {
        self.state.send_modify(|state| state.stage = Stage::Drained);
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = &request.get_ref().service;
        match self.state.borrow().of(name) {
            ServingStatus::ServiceUnknown => Err(Status::not_found(format!(
                "there is neither a service nor a variant {name:?}"
            ))),
            status => Ok(Response::new(response(status))),
        }
    }

    /// Stays open whatever becomes of the name, which may come later or come back, until nothing serves any more.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().service;
        let mut states = self.state.subscribe();
        let (to, answers) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut before = None;
            loop {
                let (now, drained) = {
                    let state = states.borrow_and_update();
                    (state.of(&name), state.stage == Stage::Drained)
                };
                if before.replace(now) != Some(now) && to.send(Ok(response(now))).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = states.changed(), if !drained => {
                        if changed.is_err() {
                            return;
                        }
                    }
                    () = to.closed(), if !drained => return,
                    else => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
