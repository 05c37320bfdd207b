//! The gRPC server: the only code that knows tonic and protobuf, besides the command line's client.

pub mod choir;
pub mod codec;
mod front;
mod health;
pub mod listener;
pub mod status;

use crate::catalog::Catalog;
use crate::engine::EngineHandle;
use crate::pb;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Room in a message for everything but its prompt or chunk, in bytes.
const ENVELOPE_BYTES: usize = 64 << 10;
/// Calls that one connection may have open.
const CALLS_PER_CONNECTION: u32 = 4096;
/// How long calls may go on after the engine has ended by itself.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long errors of calls that were ended are waited for to be taken.
const TAKE_ERRORS: Duration = Duration::from_millis(500);

/// What clients may ask for and hold at most, and how long the last ones are waited for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A prompt, or a text to score, in bytes.
    pub prompt_bytes: usize,
    /// All uploads under way together, in bytes of memory.
    pub upload_bytes: u64,
    /// Whether to believe the client ids that requests bring ([`choir::convert::CLIENT_ID`]): only where a proxy sets them.
    pub trust_client_id: bool,
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
            trust_client_id: false,
            drain: Duration::from_secs(25),
            connections: listener::Bounds::default(),
            connection_age: None,
        }
    }
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no authentication yet, so the network must not reach the server by accident.
    #[error(
        "{address} can be reached from other machines, and choir has no authentication; --insecure-bind allows it"
    )]
    NotLoopback { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
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
/// `NotLoopback` unless `insecure` allows it, `Listen` where the system refuses.
pub async fn bind(address: SocketAddr, insecure: bool) -> Result<TcpListener, Error> {
    if !address.ip().is_loopback() && !insecure {
        return Err(Error::NotLoopback { address });
    }
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

/// Serves until `shutdown` resolves, then drains: health says NOT_SERVING, new requests are refused, what was accepted
/// is finished, for [`Limits::drain`] at most: what still runs then ends with UNAVAILABLE.
///
/// # Errors
/// `Engine` where the engine ended by itself, as it does when its device is lost: health says NOT_SERVING then, too.
pub async fn serve(
    listener: TcpListener,
    catalog: Arc<Catalog>,
    engine: EngineHandle,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let health = health::Health::new();
    health.follow(&engine);
    health.begin();
    let inference = choir::InferenceService::new(engine.clone(), &limits);
    let inference = pb::inference_server::InferenceServer::new(inference)
        .max_decoding_message_size(limits.prompt_bytes + ENVELOPE_BYTES);
    let admin =
        choir::AdminService::new(catalog, engine.clone(), health.clone(), limits.upload_bytes);
    let admin = pb::admin_server::AdminServer::new(admin)
        .max_decoding_message_size(choir::CHUNK_BYTES + ENVELOPE_BYTES);
    let end = front::End::default();
    let mut server = tonic::transport::Server::builder()
        .layer(front::FrontLayer(end.clone()))
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        // A proxy's connection carries many clients: one that resets its calls must not end it for the others.
        .http2_max_pending_accept_reset_streams(Some(CALLS_PER_CONNECTION as usize))
        .http2_max_local_error_reset_streams(Some(CALLS_PER_CONNECTION as usize))
        .http2_keepalive_interval(Some(Duration::from_secs(30)));
    if let Some((age, grace)) = limits.connection_age {
        server = server
            .max_connection_age(age)
            .max_connection_age_grace(grace);
    }
    let router = server
        .add_service(health.service())
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(inference)
        .add_service(admin);

    let by_itself = AtomicBool::new(false);
    let (drain_begins, draining) = oneshot::channel();
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
    };
    let late = async {
        let Ok(most) = draining.await else {
            return std::future::pending().await;
        };
        tokio::time::sleep(most).await;
        end.now();
        // Connections that do not even take their errors are left.
        tokio::time::sleep(TAKE_ERRORS).await;
    };
    let incoming = listener::accept(Arc::new(listener), limits.connections);
    tokio::select! {
        served = router.serve_with_incoming_shutdown(incoming, drain) => served?,
        () = late => tracing::warn!("the drain took too long: what was left has been ended"),
    }
    match engine.status().lost {
        Some(reason) => Err(Error::Engine { reason }),
        None if by_itself.load(Ordering::Relaxed) => Err(Error::Engine {
            reason: "its thread panicked".to_owned(),
        }),
        None => Ok(()),
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
