//! A server as its clients see it: the connection, with a key where there is one, and when to come back.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::server::status::RETRY_AFTER;

/// A server, asked with a key where there is one.
pub type Connection = InterceptedService<Channel, Bearer>;

/// Puts the API key into every request.
#[derive(Clone, Debug)]
pub struct Bearer(pub Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

/// When a refused client is to come back, where the server says so.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let text = status.metadata().get(RETRY_AFTER)?.to_str().ok()?;
    text.parse().ok().map(Duration::from_millis)
}
