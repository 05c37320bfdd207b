//! Doors that are open, and what stands behind them: first nothing but the word that the server is loading, then all of it, then a
//! drain.

use super::access::{self, Access, AccessRole, ApiKeys, Need, Peer};
use super::failure::Failure;
use super::incoming::Incoming;
use super::openai;
use super::spool::UploadRoom;
use super::switch::Switch;
use super::tls::Tls;
use super::{
    CALLS_PER_CONNECTION, Doors, ENVELOPE_BYTES, Error, JSON_ROOM, KEEP_ALIVE, LAST_WORDS, Limits,
    Listener, ServerSettings, TAKE_ERRORS, changes, choir, front, health, http, kserve, listener,
    metrics, reflection, reload, requests, variants,
};
use crate::catalog::Catalog;
use crate::engine::EngineHandle;
use crate::kserve::grpc_inference_service_server::GrpcInferenceServiceServer;
use crate::pb;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::service::Routes;

const LOADING: &str = "the server is loading";

/// Doors behind which somebody answers.
pub struct Open {
    settings: ServerSettings,
    health: health::Health,
    access: Access,
    main: Switch,
    admin: Option<Switch>,
    http: Option<Switch>,
    end: front::End,
    incoming: Incoming,
    drained: watch::Sender<bool>,
    /// A task for each door.
    serving: JoinSet<Result<(), tonic::transport::Error>>,
}

impl Open {
    /// Answers whoever comes that the server is loading: health says NOT_SERVING, requests end with UNAVAILABLE. Has to be called
    /// within a runtime; dropping it closes the doors.
    #[must_use]
    pub fn new(doors: Doors, settings: ServerSettings) -> Open {
        let (health, end) = (health::Health::new(), front::End::default());
        let access = Access::new(settings.keys.clone(), settings.trust_client_id);
        let (drained, _) = watch::channel(false);
        let (tls, limits) = (settings.tls.clone(), settings.limits.clone());
        let incoming = Incoming::new(limits.incoming_bytes, limits.patience);
        let mut serving = JoinSet::new();
        let mut grpc = |door| {
            let loading = Routes::new(health.service()).prepare().into_axum_router();
            let told = async || Status::unavailable(LOADING).into_http::<axum::body::Body>();
            let switch = Switch::new(loading.fallback(told));
            let routes = guarded(switch.router(), access.clone(), incoming.clone());
            let (door, limits) = ((door, tls.clone()), limits.clone());
            let front = front::FrontLayer(end.clone());
            serving.spawn(grpc_door(door, routes, limits, front, until(&drained)));
            switch
        };
        let main = grpc(doors.grpc);
        let admin = doors.admin.map(grpc);
        let http = doors.http.map(|door| {
            let told = async || Failure::new(StatusCode::SERVICE_UNAVAILABLE, LOADING);
            let loading = Router::new().route("/health", get(async || "ok\n"));
            let switch = Switch::new(loading.fallback(told));
            let connections = listener::accept(door, tls.clone(), limits.connections);
            let (router, first) = (switch.router(), limits.connections.first);
            let drained = until(&drained);
            serving.spawn(async move {
                http::serve(connections, router, first, drained).await;
                Ok(())
            });
            switch
        });
        Open {
            settings,
            health,
            access,
            main,
            admin,
            http,
            end,
            incoming,
            drained,
            serving,
        }
    }

    /// Serves from when [`stand`](Self::stand) was called until `shutdown` resolves, then drains: health says NOT_SERVING, new requests are refused, what was accepted
    /// is finished, for [`Limits::drain`] at most: what still runs then ends with UNAVAILABLE.
    ///
    /// # Errors
    /// `Engine` where the engine ended by itself, as it does when its device is lost: health says NOT_SERVING then, too.
    pub async fn serve(
        mut self,
        engine: EngineHandle,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let patience = self.settings.limits.drain;
        let watched = watched(self.settings);
        let by_itself = AtomicBool::new(false);
        let (drain_begins, draining) = oneshot::channel();
        let drain = async {
            let most = tokio::select! {
                () = shutdown => {
                    tracing::info!("draining");
                    patience
                }
                () = engine.ended() => {
                    by_itself.store(true, Ordering::Relaxed);
                    tracing::error!("the engine has ended");
                    patience.min(LAST_WORDS)
                }
            };
            self.health.drain();
            let _ = drain_begins.send(most);
            engine.drain().await;
            let _ = self.drained.send(true);
            std::future::pending().await
        };
        let late = async {
            let Ok(most) = draining.await else {
                return std::future::pending().await;
            };
            tokio::time::sleep(most).await;
            self.end.now();
            // Connections that do not even take their errors are left.
            tokio::time::sleep(TAKE_ERRORS).await;
        };
        let all = async {
            while let Some(ended) = self.serving.join_next().await {
                match ended {
                    Ok(ended) => ended?,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
            Ok::<_, Error>(())
        };
        tokio::select! {
            served = all => served?,
            () = drain => {}
            () = late => tracing::warn!("the drain took too long: what was left has been ended"),
            () = reload::follow(watched) => {}
        }
        match engine.status().lost {
            Some(reason) => Err(Error::Engine { reason }),
            None if by_itself.load(Ordering::Relaxed) => Err(Error::Engine {
                reason: "its thread panicked".to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Puts all that is served behind the doors: whoever comes from now on is served.
    ///
    /// # Errors
    /// `Reflection`.
    pub fn stand(&self, catalog: Arc<Catalog>, engine: &EngineHandle) -> Result<(), Error> {
        let limits = &self.settings.limits;
        let metrics = metrics::Metrics::new(engine.clone(), catalog.clone());
        let requests =
            requests::Requests::new(engine.clone(), metrics.clone(), limits.prompt_bytes);
        let changes = changes::Changes::new(
            catalog.clone(),
            engine.clone(),
            self.health.clone(),
            metrics.clone(),
            self.settings.paths.clone(),
        );
        changes.follow();

        let message_bytes = limits.prompt_bytes + ENVELOPE_BYTES;
        let inference = choir::InferenceService::new(requests.clone());
        let inference = pb::inference_server::InferenceServer::new(inference)
            .max_decoding_message_size(message_bytes);
        let kserve = kserve::Service::new(requests.clone(), changes.clone());
        let kserve =
            GrpcInferenceServiceServer::new(kserve).max_decoding_message_size(message_bytes);
        let room = UploadRoom::new(limits.upload_bytes);
        // Operators with an address of their own have none other.
        let operators = self.admin.is_none().then(|| variants::Variants {
            changes: changes.clone(),
            room: room.clone(),
            patience: limits.patience,
        });
        let admin = choir::AdminService::new(changes, engine.clone(), room, limits);
        let admin = pb::admin_server::AdminServer::new(admin)
            .max_decoding_message_size(choir::CHUNK_BYTES + ENVELOPE_BYTES);
        let mut main = Routes::new(self.health.service())
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(inference)
            .add_service(kserve);
        match &self.admin {
            None => main = main.add_service(admin),
            Some(aside) => {
                let routes = Routes::new(self.health.service()).add_service(admin);
                aside.set(routes.prepare().into_axum_router());
            }
        }
        if let Some(http) = &self.http {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let openai = openai::OpenAi {
                requests,
                catalog,
                body_bytes: limits.prompt_bytes * JSON_ROOM + ENVELOPE_BYTES,
                patience: limits.patience,
                incoming: self.incoming.clone(),
                since: since.map_or(0, |since| since.as_secs()),
            };
            http.set(http::router(http::Port {
                openai,
                variants: operators,
                engine: engine.clone(),
                metrics,
                access: self.access.clone(),
                origins: self.settings.origins.clone().into(),
            }));
        }
        self.main.set(main.prepare().into_axum_router());
        self.health.begin();
        Ok(())
    }
}

/// Resolves once everything has been answered.
fn until(drained: &watch::Sender<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut drained = drained.subscribe();
    async move {
        if drained.wait_for(|drained| *drained).await.is_err() {
            std::future::pending().await // whoever drains is gone, and takes this along
        }
    }
}

/// Serves one door of gRPC.
async fn grpc_door(
    (door, tls): (Listener, Option<Arc<Tls>>),
    routes: Routes,
    limits: Limits,
    front: front::FrontLayer,
    drained: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let mut server = tonic::transport::Server::builder()
        .layer(front)
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        // A proxy's connection carries many clients: one that resets its calls must not end it for the others.
        .http2_max_pending_accept_reset_streams(Some(CALLS_PER_CONNECTION as usize))
        .http2_max_local_error_reset_streams(Some(CALLS_PER_CONNECTION as usize))
        .http2_keepalive_interval(Some(KEEP_ALIVE));
    if let Some((age, grace)) = limits.connection_age {
        server = server
            .max_connection_age(age)
            .max_connection_age_grace(grace);
    }
    let connections = listener::accept(door, tls, limits.connections);
    let router = server.add_routes(routes);
    router
        .serve_with_incoming_shutdown(connections, drained)
        .await
}

/// The routes of gRPC services, behind the door; what clients are still sending is bounded.
fn guarded(routes: Router, access: Access, incoming: Incoming) -> Routes {
    let admit = async |(access, incoming): (Access, Incoming),
                       mut request: axum::extract::Request,
                       next: axum::middleware::Next| {
        let need = access::of_method(request.uri().path()).unwrap_or(Need::Role(AccessRole::Admin));
        let peer = request.extensions().get::<Peer>();
        match access.admit(request.headers(), peer, need) {
            Ok(caller) => {
                let client = caller.client.clone();
                request.extensions_mut().insert(caller);
                let bounded = |body| axum::body::Body::new(incoming.messages(client, body));
                next.run(request.map(bounded)).await
            }
            Err(status) => status.into_http(),
        }
    };
    let layer = axum::middleware::from_fn(move |request, next| {
        admit((access.clone(), incoming.clone()), request, next)
    });
    Routes::from(routes.layer(layer))
}

/// Files that are read again when they change.
fn watched(settings: ServerSettings) -> Vec<Arc<dyn reload::Watched>> {
    let file = |(keys, file): (Arc<ApiKeys>, PathBuf)| {
        Arc::new(access::KeysFile { keys, file }) as Arc<dyn reload::Watched>
    };
    let keys = settings.keys.zip(settings.keys_file).map(file);
    let tls = settings.tls.map(|tls| tls as Arc<dyn reload::Watched>);
    tls.into_iter().chain(keys).collect()
}
