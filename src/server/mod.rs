//! The server: one folder a protocol, none of which knows another, and what they all stand on. The only code that knows the wire,
//! besides the command line's client.

pub mod access;
mod changes;
pub mod choir;
pub mod codec;
mod deadline;
mod failure;
mod front;
mod health;
mod http;
mod kserve;
pub mod listener;
mod metrics;
mod mix;
mod openai;
mod page;
pub mod paths;
mod reload;
mod requests;
pub mod status;
pub mod tls;
mod variants;

use crate::catalog::Catalog;
use crate::engine::EngineHandle;
use crate::kserve::grpc_inference_service_server::GrpcInferenceServiceServer;
use crate::{kserve as kserve_pb, pb};
use access::{Access, Keys, Need, Peer, Role};
use axum::http::HeaderValue;
pub use listener::Listener;
use paths::Paths;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tls::Tls;
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;

/// Room in a message for everything but its prompt or chunk, in bytes.
const ENVELOPE_BYTES: usize = 64 << 10;
/// Calls that one connection may have open.
const CALLS_PER_CONNECTION: u32 = 4096;
/// How often a connection on which nothing happens is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long calls may go on after the engine has ended by itself.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long errors of calls that were ended are waited for to be taken.
const TAKE_ERRORS: Duration = Duration::from_millis(500);
/// A prompt's bytes in JSON, where a character may be written as an escape.
const JSON_ROOM: usize = 6;

/// What clients may ask for and hold at most, and how long the last ones are waited for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A prompt, or a text to score, in bytes.
    pub prompt_bytes: usize,
    /// All uploads under way together, in bytes of memory.
    pub upload_bytes: u64,
    /// How long a client may take to send the body of a request over HTTP.
    pub patience: Duration,
    /// How long a drain may take. What still runs then ends with UNAVAILABLE.
    pub drain: Duration,
    /// Connections: how many, and how long they may be silent before their first request.
    pub connections: listener::Bounds,
    /// How long a connection lives at most, and its calls after that.
    pub connection_age: Option<(Duration, Duration)>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            prompt_bytes: 1 << 20,
            upload_bytes: 1 << 30,
            patience: Duration::from_secs(30),
            drain: Duration::from_secs(25),
            connections: listener::Bounds::default(),
            connection_age: None,
        }
    }
}

/// Where clients come in.
#[derive(Debug)]
pub struct Doors {
    /// All gRPC services, but for `choir.v1.Admin` where that has a door of its own.
    pub grpc: Listener,
    pub http: Option<Listener>,
    /// `choir.v1.Admin` alone.
    pub admin: Option<Listener>,
}

impl Doors {
    /// gRPC and nothing else.
    pub fn only(grpc: Listener) -> Doors {
        Doors {
            grpc,
            http: None,
            admin: None,
        }
    }
}

impl std::fmt::Display for Doors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.grpc.address())?;
        if let Some(http) = &self.http {
            write!(f, " and http://{}", http.address())?;
        }
        match &self.admin {
            Some(admin) => write!(f, ", operators on {}", admin.address()),
            None => Ok(()),
        }
    }
}

/// Who may come in, and what for.
#[derive(Debug)]
pub struct ServerSettings {
    pub limits: Limits,
    /// None: everybody is an admin.
    pub keys: Option<Arc<Keys>>,
    /// The file that the keys are from, read again when it changes.
    pub keys_file: Option<PathBuf>,
    /// Whether to believe the client ids that requests bring ([`access::CLIENT_ID`]): only where a proxy sets them.
    pub trust_client_id: bool,
    pub tls: Option<Arc<Tls>>,
    /// Files of the server's own disk that admins may name.
    pub paths: Paths,
    /// Whom browsers may let ask from pages of their own.
    pub origins: Vec<HeaderValue>,
}

impl Default for ServerSettings {
    /// For clients on this machine: everybody is an admin, and may name any file.
    fn default() -> Self {
        ServerSettings {
            limits: Limits::default(),
            keys: None,
            keys_file: None,
            trust_client_id: false,
            tls: None,
            paths: Paths::Any,
            origins: Vec::new(),
        }
    }
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network must not reach a server without keys by accident.
    #[error(
        "{address} can be reached from other machines, and there are no API keys: give --api-keys FILE, or allow it with \
         --insecure-bind"
    )]
    NotLoopback { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        source: std::io::Error,
    },
    #[error("the reflection service could not be built")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the server failed")]
    Transport(#[from] tonic::transport::Error),
    /// All requests have been answered with errors; only a new process can serve again.
    #[error("the engine has ended: {reason}")]
    Engine { reason: String },
}

/// Listens on `address`; port 0 takes any free one.
///
/// # Errors
/// `NotLoopback` where other machines can reach it and are not `admitted`: by keys, or by whoever allows it. `Listen` where the
/// system refuses.
pub async fn bind(address: SocketAddr, admitted: bool) -> Result<Listener, Error> {
    if !address.ip().is_loopback() && !admitted {
        return Err(Error::NotLoopback { address });
    }
    Listener::tcp(address).await
}

/// Serves until `shutdown` resolves, then drains: health says NOT_SERVING, new requests are refused, what was accepted
/// is finished, for [`Limits::drain`] at most: what still runs then ends with UNAVAILABLE.
///
/// # Errors
/// `Engine` where the engine ended by itself, as it does when its device is lost: health says NOT_SERVING then, too.
pub async fn serve(
    doors: Doors,
    catalog: Arc<Catalog>,
    engine: EngineHandle,
    settings: ServerSettings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let limits = settings.limits;
    let metrics = metrics::Metrics::new(engine.clone(), catalog.clone());
    let health = health::Health::new();
    let access = Access::new(settings.keys.clone(), settings.trust_client_id);
    let requests = requests::Requests::new(engine.clone(), metrics.clone(), limits.prompt_bytes);
    let changes = changes::Changes::new(
        catalog.clone(),
        engine.clone(),
        health.clone(),
        metrics.clone(),
        settings.paths,
    );
    changes.follow();
    health.begin();

    let message_bytes = limits.prompt_bytes + ENVELOPE_BYTES;
    let inference = choir::InferenceService::new(requests.clone());
    let inference = pb::inference_server::InferenceServer::new(inference)
        .max_decoding_message_size(message_bytes);
    let kserve = kserve::Service::new(requests.clone(), changes.clone());
    let kserve = GrpcInferenceServiceServer::new(kserve).max_decoding_message_size(message_bytes);
    let room = choir::Room::new(limits.upload_bytes);
    // Operators with an address of their own have none other.
    let operators = doors.admin.is_none().then(|| variants::Variants {
        changes: changes.clone(),
        room: room.clone(),
        patience: limits.patience,
    });
    let admin = choir::AdminService::new(changes, engine.clone(), room);
    let admin = pb::admin_server::AdminServer::new(admin)
        .max_decoding_message_size(choir::CHUNK_BYTES + ENVELOPE_BYTES);
    let mut main = Routes::new(health.service())
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(inference)
        .add_service(kserve);
    let aside = match doors.admin {
        None => {
            main = main.add_service(admin);
            None
        }
        Some(door) => Some((door, Routes::new(health.service()).add_service(admin))),
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let http = doors.http.map(|door| {
        let openai = openai::OpenAi {
            requests,
            catalog,
            body_bytes: limits.prompt_bytes * JSON_ROOM + ENVELOPE_BYTES,
            patience: limits.patience,
            since: since.map_or(0, |since| since.as_secs()),
        };
        let router = http::router(http::Port {
            openai,
            variants: operators,
            engine: engine.clone(),
            metrics,
            access: access.clone(),
            origins: settings.origins.into(),
        });
        (door, router)
    });

    let watched: Vec<Arc<dyn reload::Watched>> = settings
        .tls
        .clone()
        .map(|tls| tls as _)
        .into_iter()
        .chain(settings.keys.zip(settings.keys_file).map(|(keys, file)| {
            let keys = access::KeysFile { keys, file };
            Arc::new(keys) as _
        }))
        .collect();
    let by_itself = AtomicBool::new(false);
    let (drain_begins, draining) = oneshot::channel();
    let (drained, after_drain) = watch::channel(false);
    let drain = async {
        let most = tokio::select! {
            () = shutdown => {
                tracing::info!("draining");
                limits.drain
            }
            () = engine.ended() => {
                by_itself.store(true, Ordering::Relaxed);
                tracing::error!("the engine has ended");
                limits.drain.min(LAST_WORDS)
            }
        };
        health.drain();
        let _ = drain_begins.send(most);
        engine.drain().await;
        let _ = drained.send(true);
        std::future::pending().await
    };
    let end = front::End::default();
    let late = async {
        let Ok(most) = draining.await else {
            return std::future::pending().await;
        };
        tokio::time::sleep(most).await;
        end.now();
        // Connections that do not even take their errors are left.
        tokio::time::sleep(TAKE_ERRORS).await;
    };
    let until_drained = || {
        let mut after_drain = after_drain.clone();
        async move {
            let _ = after_drain.wait_for(|drained| *drained).await;
        }
    };
    let tls = settings.tls;
    let connections = |door| listener::accept(door, tls.clone(), limits.connections);
    let grpc = async |(door, routes): (Listener, Routes)| {
        let mut server = tonic::transport::Server::builder()
            .layer(front::FrontLayer(end.clone()))
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
        let router = server.add_routes(guarded(routes, access.clone()));
        let served = router.serve_with_incoming_shutdown(connections(door), until_drained());
        served.await
    };
    let all = async {
        let main = grpc((doors.grpc, main));
        let aside = async {
            match aside {
                Some(aside) => grpc(aside).await,
                None => Ok(()),
            }
        };
        let http = async {
            if let Some((door, router)) = http {
                let patience = limits.connections.first;
                http::serve(connections(door), router, patience, until_drained()).await;
            }
            Ok(())
        };
        tokio::try_join!(main, aside, http).map(|_| ())
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

/// The routes of gRPC services, behind the door.
fn guarded(routes: Routes, access: Access) -> Routes {
    let admit = async |access: Access,
                       mut request: axum::extract::Request,
                       next: axum::middleware::Next| {
        let need = access::of_method(request.uri().path()).unwrap_or(Need::Role(Role::Admin));
        let peer = request.extensions().get::<Peer>();
        match access.admit(request.headers(), peer, need) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(status) => status.into_http(),
        }
    };
    let layer =
        axum::middleware::from_fn(move |request, next| admit(access.clone(), request, next));
    Routes::from(routes.prepare().into_axum_router().layer(layer))
}

/// The descriptors of every gRPC service.
fn descriptors() -> [&'static [u8]; 4] {
    [
        pb::DESCRIPTORS,
        kserve_pb::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ]
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure();
    descriptors()[..3].iter().fold(builder, |builder, set| {
        builder.register_encoded_file_descriptor_set(set)
    })
}
