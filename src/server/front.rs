//! What every gRPC call meets first: calls of other protocols are refused, and when a drain has lasted long enough whatever still runs ends with
//! UNAVAILABLE.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};

/// Ends every call at once, whatever it is about. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct End(watch::Sender<bool>);

impl End {
    /// Every call that runs, and every later one, ends with UNAVAILABLE.
    pub fn now(&self) {
        self.0.send_replace(true);
    }

    fn status() -> Status {
        Status::unavailable("the server has ended")
    }
}

/// The layer that puts a [`Front`] before a service.
#[derive(Clone)]
pub struct FrontLayer(pub End);

impl<S> tower_layer::Layer<S> for FrontLayer {
    type Service = Front<S>;

    fn layer(&self, inner: S) -> Front<S> {
        Front {
            inner,
            end: self.0.clone(),
        }
    }
}

/// A service behind the checks of this module.
#[derive(Clone)]
pub struct Front<S> {
    inner: S,
    end: End,
}

/// gRPC over HTTP/2, with protobuf messages. Not gRPC-Web, which is another protocol.
fn is_grpc(headers: &http::HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE);
    let rest = kind.and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| {
        matches!(rest.first(), None | Some(b';')) || rest.starts_with(b"+proto")
    })
}

fn unsupported() -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(
        "this port speaks gRPC: the content type has to be application/grpc\n".to_owned(),
    ));
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    let text = http::HeaderValue::from_static("text/plain");
    (response.headers_mut()).insert(http::header::CONTENT_TYPE, text);
    response
}

impl<S> Service<http::Request<Body>> for Front<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Send,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            return Box::pin(async { Ok(unsupported()) });
        }
        let mut end = self.end.0.subscribe();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let ended = async { end.wait_for(|ended| *ended).await.map(|_| ()).ok() };
            let response = tokio::select! {
                response = answer => response?,
                Some(()) = ended => return Ok(End::status().into_http()),
            };
            Ok(response.map(|inner| {
                Body::new(Ending {
                    inner,
                    end: Some(WatchStream::new(end)),
                })
            }))
        })
    }
}

/// An answer that ends early where the server does.
struct Ending {
    inner: Body,
    /// None once the answer is over.
    end: Option<WatchStream<bool>>,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(end) = &mut this.end else {
            return Poll::Ready(None);
        };
        while let Poll::Ready(Some(ended)) = Pin::new(&mut *end).poll_next(context) {
            if ended {
                this.end = None;
                let mut trailers = http::HeaderMap::new();
                return Poll::Ready(Some(match End::status().add_header(&mut trailers) {
                    Ok(()) => Ok(Frame::trailers(trailers)),
                    Err(status) => Err(status),
                }));
            }
        }
        Pin::new(&mut this.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_of_other_protocols_are_told_apart() {
        let is = |kind: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert(http::header::CONTENT_TYPE, kind.parse().expect("value"));
            is_grpc(&headers)
        };
        for ours in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=1",
        ] {
            assert!(is(ours), "{ours}");
        }
        for other in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc+json",
            "application/json",
            "text/html",
            "",
        ] {
            assert!(!is(other), "{other}");
        }
        assert!(!is_grpc(&http::HeaderMap::new()));
    }
}
