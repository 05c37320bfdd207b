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
mod incoming;
mod kserve;
pub mod listener;
mod metrics;
mod mix;
mod open;
pub mod openai;
mod page;
pub mod paths;
mod reload;
mod requests;
mod room;
mod spool;
pub mod status;
mod switch;
pub mod tls;
mod variants;

use crate::catalog::Catalog;
use crate::engine::EngineHandle;
use crate::{kserve as kserve_pb, pb};
use access::ApiKeys;
use axum::http::HeaderValue;
pub use listener::Listener;
pub use open::Open;
use paths::Paths;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tls::Tls;

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
/// Bytes of JSON for one of a prompt, at most: where all but ASCII is written as escapes, six for a character of two.
const JSON_ROOM: usize = 3;

/// What clients may ask for and hold at most, and how long the last ones are waited for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Text that one request may give, in bytes.
    pub prompt_bytes: usize,
    /// All uploads under way together, in bytes on the store's disk; one client has half.
    pub upload_bytes: u64,
    /// Messages of all clients that are not whole yet, in bytes of memory.
    pub incoming_bytes: u64,
    /// How long a client may take to send a message, the body of a request over HTTP, or say nothing within an upload.
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
            prompt_bytes: 128 << 10,
            upload_bytes: 16 << 30,
            incoming_bytes: 64 << 20,
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
    pub keys: Option<Arc<ApiKeys>>,
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

/// Opens the doors and serves: see [`Open::serve`].
///
/// # Errors
/// As there.
pub async fn serve(
    doors: Doors,
    catalog: Arc<Catalog>,
    engine: EngineHandle,
    settings: ServerSettings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let open = Open::new(doors, settings);
    open.stand(catalog, &engine)?;
    open.serve(engine, shutdown).await
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
