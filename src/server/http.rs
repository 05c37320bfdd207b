//! The HTTP port: one router of all that is served there, and the loop that serves it.

use super::access::{self, Access, AccessRole, Need, Peer};
use super::failure::Failure;
use super::listener::ServedConnection;
use super::metrics::{self, Metrics};
use super::openai::{self, OpenAi};
use super::variants::{self, Variants};
use super::{CALLS_PER_CONNECTION, KEEP_ALIVE, page};
use crate::engine::EngineHandle;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_stream::{Stream, StreamExt};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a client's own request id at most.
const LONGEST_ID: usize = 128;

/// What the whole port stands on.
#[derive(Clone)]
pub struct Port {
    pub openai: OpenAi,
    /// Where operators have no address of their own.
    pub variants: Option<Variants>,
    pub engine: EngineHandle,
    pub metrics: Arc<Metrics>,
    pub access: Access,
    /// Whom browsers may let ask from pages of their own.
    pub origins: Arc<[HeaderValue]>,
}

/// All routes, behind the door.
pub fn router(port: Port) -> Router {
    let ids = Ids::default();
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(scrape))
        .with_state(port.clone())
        .merge(openai::routes(port.openai.clone()))
        .merge(
            port.variants
                .clone()
                .map_or_else(Router::new, variants::routes),
        )
        .merge(page::routes())
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "there is no such route"))
        .method_not_allowed_fallback(async || {
            let message = "this route has no such method";
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(from_fn_with_state(port, admit))
        .layer(from_fn_with_state(ids, identify))
}

/// Alive: the process answers, and its engine has not ended.
async fn health(State(port): State<Port>) -> Result<&'static str, Failure> {
    match port.engine.status().lost {
        None => Ok("ok\n"),
        Some(_) => {
            let message = "the engine has ended";
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, message))
        }
    }
}

/// Ready for requests, which it is not once it drains.
async fn ready(State(port): State<Port>) -> Result<&'static str, Failure> {
    match port.engine.status().draining {
        false => Ok("ok\n"),
        true => {
            let message = "the server takes nothing new";
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, message))
        }
    }
}

async fn scrape(State(port): State<Port>) -> Response {
    let mut response = Response::new(Body::from(port.metrics.text()));
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Lets in whom the route is for; says to browsers what pages of named origins may do.
async fn admit(State(port): State<Port>, mut request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN);
    let origin = origin
        .filter(|origin| port.origins.contains(origin))
        .cloned();
    let preflight = request.method() == Method::OPTIONS && origin.is_some();
    let mut response = if preflight {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let need = access::of_route(request.uri().path());
        let peer = request.extensions().get::<Peer>();
        match port.access.admit(request.headers(), peer, need) {
            Ok(_)
                if need == Need::Role(AccessRole::Admin)
                    && port.access.is_open()
                    && named(&request) =>
            {
                let message = "without keys this is answered only where the server is asked by an IP address or as localhost";
                Failure::new(StatusCode::FORBIDDEN, message).into_response()
            }
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(status) => Failure::from(status).into_response(),
        }
    };
    if let Some(origin) = origin {
        allow(response.headers_mut(), origin);
    }
    response
}

/// Whether the server is asked by a name that anybody may have given it: so that a page which has its own name point here is not
/// taken for an operator of this machine.
fn named(request: &Request) -> bool {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let host = request.uri().authority().or(host.as_ref());
    host.is_none_or(|host| {
        let host = host.host().trim_matches(['[', ']']);
        host != "localhost" && host.parse::<IpAddr>().is_err()
    })
}

fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, x-request-id",
        ),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "x-request-id"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Names for requests whose clients give none: another for each, and others after a restart.
#[derive(Clone)]
struct Ids(Arc<(u64, AtomicU64)>);

impl Default for Ids {
    fn default() -> Self {
        Ids(Arc::new((
            RandomState::new().hash_one(0),
            AtomicU64::new(0),
        )))
    }
}

/// Gives every answer the client's own request id, or one of ours.
async fn identify(State(ids): State<Ids>, request: Request, next: Next) -> Response {
    let own = request.headers().get(REQUEST_ID);
    let own = own
        .filter(|id| (1..=LONGEST_ID).contains(&id.len()))
        .cloned();
    let id = own.or_else(|| {
        let (start, count) = &*ids.0;
        let count = count.fetch_add(1, Ordering::Relaxed);
        HeaderValue::try_from(format!("req-{start:016x}-{count}")).ok()
    });
    let asked = format!("{} {}", request.method(), request.uri().path());
    let mut response = next.run(request).await;
    if let Some(id) = id {
        let status = response.status().as_u16();
        tracing::debug!(request_id = ?id, asked, status, "answered");
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Serves connections until `drained`, and then those that are open until they end.
pub async fn serve(
    mut connections: impl Stream<Item = io::Result<ServedConnection>> + Unpin,
    router: Router,
    patience: Duration,
    drained: impl Future<Output = ()>,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .keep_alive_interval(Some(KEEP_ALIVE));
    let graceful = GracefulShutdown::new();
    tokio::pin!(drained);
    loop {
        let connection = tokio::select! {
            () = &mut drained => break,
            connection = connections.next() => connection,
        };
        let Some(Ok(connection)) = connection else {
            break;
        };
        let router = router.clone().layer(axum::Extension(connection.peer));
        let serving =
            server.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
        let serving = graceful.watch(serving.into_owned());
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::debug!("a connection ended early: {error}");
            }
        });
    }
    drop(connections); // listens no more
    graceful.shutdown().await;
}
