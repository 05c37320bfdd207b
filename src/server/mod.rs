//! The gRPC server: the only code that knows tonic and protobuf, besides the command line's client.

pub mod choir;
pub mod codec;
mod health;
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
use tonic::transport::server::TcpIncoming;

/// Room in a message for everything but its prompt or chunk, in bytes.
const ENVELOPE_BYTES: usize = 64 << 10;
/// Calls that one connection may have open.
const CALLS_PER_CONNECTION: u32 = 4096;

/// What a client may ask for at most, and how long the last ones are waited for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A prompt, or a text to score, in bytes.
    pub prompt_bytes: usize,
    /// All uploads under way together, in bytes of memory.
    pub upload_bytes: u64,
    /// Whether to believe the client ids that requests bring ([`choir::convert::CLIENT_ID`]): only where a proxy sets them.
    pub trust_client_id: bool,
    /// After a drain: for clients that have not yet taken their last bytes.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            prompt_bytes: 1 << 20,
            upload_bytes: 1 << 30,
            trust_client_id: false,
            linger: Duration::from_secs(5),
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
/// is finished.
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
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = health::Health::new(engine.clone(), reporter);
    health.follow().await;
    let inference = choir::InferenceService::new(engine.clone(), &limits);
    let inference = pb::inference_server::InferenceServer::new(inference)
        .max_decoding_message_size(limits.prompt_bytes + ENVELOPE_BYTES);
    let admin =
        choir::AdminService::new(catalog, engine.clone(), health.clone(), limits.upload_bytes);
    let admin = pb::admin_server::AdminServer::new(admin)
        .max_decoding_message_size(choir::CHUNK_BYTES + ENVELOPE_BYTES);
    let router = tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(inference)
        .add_service(admin);

    let by_itself = AtomicBool::new(false);
    let (drained, after_drain) = oneshot::channel();
    let drain = async {
        tokio::select! {
            () = shutdown => tracing::info!("draining"),
            () = engine.ended() => {
                by_itself.store(true, Ordering::Relaxed);
                tracing::error!("the engine has ended");
            }
        }
        health.drain().await;
        engine.drain().await;
        let _ = drained.send(());
    };
    let late = async {
        // A health watcher never leaves by itself.
        match after_drain.await {
            Ok(()) => tokio::time::sleep(limits.linger).await,
            Err(_) => std::future::pending().await,
        }
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::select! {
        served = router.serve_with_incoming_shutdown(incoming, drain) => served?,
        () = late => {}
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
