//! What every client command shares: the connection, the mix, and errors in words.

use crate::client::{Bearer, Connection, retry_after};
use crate::pb;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use std::path::PathBuf;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Where the server is, and who asks.
#[derive(Args, Clone, Debug, Default)]
pub struct ServerArgs {
    /// The server to ask: http://HOST:PORT, https://HOST:PORT, or unix:PATH.
    #[arg(long, default_value = "http://127.0.0.1:50051", env = "CHOIR_SERVER")]
    server: String,
    /// The API key, for a server that has keys; better given in the environment, where other users do not see it.
    #[arg(long, env = "CHOIR_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Who vouches for an https:// server, in PEM [default: whom this machine trusts].
    #[arg(long, env = "CHOIR_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// A certificate of one's own, in PEM, for a server that asks for one.
    #[arg(long, requires = "tls_client_key", env = "CHOIR_TLS_CLIENT_CERT")]
    tls_client_cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, requires = "tls_client_cert", env = "CHOIR_TLS_CLIENT_KEY")]
    tls_client_key: Option<PathBuf>,
}

impl ServerArgs {
    pub fn at(server: String) -> Self {
        ServerArgs {
            server,
            ..ServerArgs::default()
        }
    }

    pub async fn connect(&self) -> Result<Connection> {
        let mut bearer = None;
        if let Some(key) = &self.api_key {
            let key = format!("Bearer {key}").parse::<MetadataValue<Ascii>>();
            let mut key = key.map_err(|_| anyhow!("--api-key: it is not printable ASCII"))?;
            key.set_sensitive(true);
            bearer = Some(key);
        }
        let channel = self.endpoint()?.connect().await.map_err(|error| {
            anyhow!(
                "no server answers at {}: {} (is `choir serve` running?)",
                self.server,
                root(&error)
            )
        })?;
        Ok(InterceptedService::new(channel, Bearer(bearer)))
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let said = |error: &dyn std::fmt::Display| anyhow!("--server {}: {error}", self.server);
        let settings = [&self.tls_ca, &self.tls_client_cert];
        let plain = |kind: &str| match settings.iter().any(|one| one.is_some()) {
            true => Err(said(&format!(
                "{kind} has no TLS, and certificates are given"
            ))),
            false => Ok(()),
        };
        if let Some(path) = self.server.strip_prefix("unix:") {
            plain("a unix socket")?;
            let path = std::path::absolute(path.trim_start_matches("//"))?;
            let address = format!("unix://{}", path.display());
            return Endpoint::from_shared(address).map_err(|error| said(&error));
        }
        let address = match self.server.contains("://") {
            true => self.server.clone(),
            false => format!("http://{}", self.server),
        };
        let endpoint = Endpoint::from_shared(address).map_err(|error| said(&error))?;
        let uri = endpoint.uri();
        if !["", "/"].contains(&uri.path()) || uri.query().is_some() {
            return Err(said(&"an address ends after its port"));
        }
        match uri.scheme_str() {
            Some("http") => plain("http://").map(|()| endpoint),
            Some("https") => endpoint
                .tls_config(self.tls()?)
                .map_err(|error| said(&root(&error))),
            _ => bail!(said(&"it is neither http:// nor https:// nor unix:")),
        }
    }

    fn tls(&self) -> Result<ClientTlsConfig> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
        let mut tls = ClientTlsConfig::new();
        tls = match &self.tls_ca {
            None => tls.with_native_roots(),
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
        };
        if let (Some(certificate), Some(key)) = (&self.tls_client_cert, &self.tls_client_key) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(tls)
    }
}

/// Runs a client's work on a runtime of its own.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// A status as one line: its code, then what the server says.
pub fn refused(status: tonic::Status) -> anyhow::Error {
    let hint = retry_after(&status).map_or(String::new(), |after| {
        format!(" (try again in {} ms)", after.as_millis())
    });
    anyhow!("{:?}: {}{hint}", status.code(), status.message())
}

/// The first cause of an error.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// `NAME` or `NAME=WEIGHT`.
#[derive(Clone, Debug)]
pub struct Weighted(String, Option<f32>);

impl std::str::FromStr for Weighted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None => Ok(Weighted(text.to_owned(), None)),
            Some((name, weight)) => {
                let weight = weight
                    .parse()
                    .map_err(|_| format!("{weight:?} is no number"))?;
                Ok(Weighted(name.to_owned(), Some(weight)))
            }
        }
    }
}

/// Which weights answer.
#[derive(Args, Debug)]
pub struct MixArgs {
    /// A variant, as NAME or NAME=WEIGHT; give several for a mix [default: the base].
    #[arg(long = "variant", short = 'v', value_name = "NAME[=WEIGHT]")]
    variants: Vec<Weighted>,
}

impl MixArgs {
    pub fn wire(&self) -> Vec<pb::VariantWeight> {
        let part = |Weighted(name, weight): &Weighted| pb::VariantWeight {
            name: name.clone(),
            weight: *weight,
        };
        self.variants.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(server: &str, tls_ca: Option<&str>) -> String {
        let args = ServerArgs {
            tls_ca: tls_ca.map(PathBuf::from),
            ..ServerArgs::at(server.to_owned())
        };
        let endpoint = args.endpoint().map(|endpoint| endpoint.uri().clone());
        endpoint.expect_err(server).to_string()
    }

    #[test]
    fn addresses_that_are_none_are_refused() {
        for (server, said) in [
            ("http://a:1/path", "an address ends"),
            ("http://a:1/?query", "an address ends"),
            ("a:1/path", "an address ends"),
            ("ftp://a:1", "neither"),
            ("http://", "--server"),
            ("", "--server"),
            ("not an address", "--server"),
        ] {
            let error = refused(server, None);
            assert!(error.contains(said), "{server}: {error}");
        }
        for plain in ["http://a:1", "a:1", "unix:/a"] {
            let error = refused(plain, Some("ca.pem"));
            assert!(error.contains("no TLS"), "{plain}: {error}");
        }
        let error = refused("https://a:1", Some("/no/such/file"));
        assert!(error.contains("/no/such/file"), "{error}");
        for good in [
            "a:1",
            "http://a:1",
            "http://[::1]:1/",
            "unix:a",
            "unix:///a",
        ] {
            let args = ServerArgs::at(good.to_owned());
            args.endpoint().expect(good);
        }
    }
}
