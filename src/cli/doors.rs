//! Where `choir serve` listens, and whom it lets in.

use crate::server::access::ApiKeys;
use crate::server::paths::Paths;
use crate::server::tls::{Tls, TlsFiles};
use crate::server::{self, Doors, Limits, Listener, ServerSettings};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tonic::codegen::http::HeaderValue;

/// The address of gRPC where none is given, and of HTTP then.
const GRPC: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 50051);
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// The environment variable with API keys themselves.
const KEYS: &str = "CHOIR_API_KEYS";

/// Where to listen and whom to let in.
#[derive(Args, Debug)]
#[command(next_help_heading = "Network")]
pub struct DoorArgs {
    /// Address of gRPC (choir.v1 and the Open Inference Protocol); port 0 takes any free one.
    #[arg(long, default_value_t = GRPC, env = "CHOIR_LISTEN")]
    listen: SocketAddr,
    /// Address of HTTP: OpenAI's interface, metrics, health [default: 127.0.0.1:8080, if it is free, where --listen has its default;
    /// else none].
    #[arg(long, env = "CHOIR_HTTP")]
    http: Option<SocketAddr>,
    /// Do without HTTP.
    #[arg(long, conflicts_with = "http")]
    no_http: bool,
    /// An address of its own for choir.v1.Admin, which the others do not answer then: IP:PORT or unix:PATH.
    #[arg(long)]
    admin_listen: Option<String>,
    /// Allow addresses that other machines can reach without API keys.
    #[arg(long)]
    insecure_bind: bool,
    /// File of API keys, a line each: NAME infer|admin SECRET [requests=N] [tokens-per-minute=N]. It is read again when it
    /// changes. The environment variable CHOIR_API_KEYS can hold the lines themselves [default: no keys; whoever reaches the server
    /// may do everything].
    #[arg(long, env = "CHOIR_API_KEYS_FILE")]
    api_keys: Option<PathBuf>,
    /// A folder of whose files admins may name any, as checkpoints to add; give several for several [default: any file where only
    /// this machine can reach the server and there are no keys; else none].
    #[arg(long, value_name = "ROOT")]
    allow_path: Vec<PathBuf>,
    /// The server's certificate, and those that vouch for it, in PEM: everything is spoken over TLS then. Read again when it
    /// changes, as its key is.
    #[arg(long, requires = "tls_key", env = "CHOIR_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    #[arg(long, requires = "tls_cert", env = "CHOIR_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// Who vouches for clients, in PEM: those without a certificate are not served then.
    #[arg(long, requires = "tls_cert", env = "CHOIR_TLS_CLIENT_CA")]
    tls_client_ca: Option<PathBuf>,
    /// An origin whose pages may ask from a browser, as in https://example.org; give several for several [default: none].
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<HeaderValue>,
    /// Believe who clients say they are, in the metadata choir-client-id; for servers behind a proxy that sets it. Clients are
    /// their keys, or addresses, otherwise.
    #[arg(long)]
    trust_client_id: bool,
}

impl DoorArgs {
    /// Listens everywhere, and reads keys and certificates: mistakes to hear of before a model is loaded.
    pub async fn open(&self) -> Result<(Doors, ServerSettings)> {
        let keys = self.keys()?;
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let files = TlsFiles {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    client_ca: self.tls_client_ca.clone(),
                };
                Some(Tls::open(files).context("--tls-cert, --tls-key")?)
            }
            _ => None,
        };
        let admitted = keys.is_some() || self.insecure_bind;
        let grpc = server::bind(self.listen, admitted).await?;
        let http = match (self.http, self.no_http) {
            (Some(address), _) => Some(server::bind(address, admitted).await?),
            (None, false) if self.listen == GRPC => match server::bind(HTTP, admitted).await {
                Ok(listener) => Some(listener),
                Err(error) => {
                    tracing::warn!("no HTTP: {error}; --http names another address");
                    None
                }
            },
            _ => None,
        };
        let admin = match self.admin_listen.as_deref() {
            None => None,
            Some(address) => Some(match address.strip_prefix("unix:") {
                Some(path) => Listener::unix(path.as_ref())?,
                None => {
                    let address = address.parse().with_context(|| {
                        format!("--admin-listen {address:?}: IP:PORT or unix:PATH")
                    })?;
                    server::bind(address, admitted).await?
                }
            }),
        };
        let doors = Doors { grpc, http, admin };
        let local = [Some(&doors.grpc), doors.http.as_ref(), doors.admin.as_ref()];
        let private = keys.is_none() && local.into_iter().flatten().all(Listener::is_local);
        let settings = ServerSettings {
            limits: Limits::default(),
            keys_file: self.api_keys.clone().filter(|_| keys.is_some()),
            paths: match private && self.allow_path.is_empty() {
                true => Paths::Any,
                false => Paths::under(&self.allow_path).context("--allow-path")?,
            },
            keys,
            trust_client_id: self.trust_client_id,
            tls,
            origins: self.cors_origin.clone(),
        };
        Ok((doors, settings))
    }

    fn keys(&self) -> Result<Option<Arc<ApiKeys>>> {
        let said = std::env::var(KEYS).ok().filter(|said| !said.is_empty());
        let (text, from) = match (&self.api_keys, said) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => bail!("give API keys by --api-keys or by {KEYS}, not by both"),
            (None, Some(said)) => (said, KEYS.to_owned()),
            (Some(file), None) => {
                let from = format!("--api-keys {}", file.display());
                (
                    std::fs::read_to_string(file).with_context(|| from.clone())?,
                    from,
                )
            }
        };
        Ok(Some(Arc::new(ApiKeys::read(&text).context(from)?)))
    }
}
