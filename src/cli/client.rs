//! What every client command shares: the connection, the mix, and errors in words.

use crate::pb;
use anyhow::{Result, anyhow};
use clap::Args;
use tonic::transport::Channel;

/// Where the server is.
#[derive(Args, Debug)]
pub struct ServerArgs {
    /// The server to ask.
    #[arg(long, default_value = "http://127.0.0.1:50051", env = "CHOIR_SERVER")]
    server: String,
}

impl ServerArgs {
    pub fn at(server: String) -> Self {
        ServerArgs { server }
    }

    pub async fn connect(&self) -> Result<Channel> {
        let address = match self.server.contains("://") {
            true => self.server.clone(),
            false => format!("http://{}", self.server),
        };
        let endpoint = Channel::from_shared(address)
            .map_err(|error| anyhow!("--server {}: {error}", self.server))?;
        endpoint.connect().await.map_err(|error| {
            anyhow!(
                "no server answers at {}: {} (is `choir serve` running?)",
                self.server,
                root(&error)
            )
        })
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
    let retry = status.metadata().get(crate::server::status::RETRY_AFTER);
    let retry = retry.and_then(|value| value.to_str().ok());
    let hint = retry.map_or(String::new(), |ms| format!(" (try again in {ms} ms)"));
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
