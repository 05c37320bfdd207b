//! OpenAI's HTTP interface, as far as it has a meaning here: models, completions, chats, server-sent events, usage, errors.

pub mod chat;
pub mod completion;
mod fields;
mod list;
mod models;
mod object;
mod reply;
mod skim;

use super::access::Caller;
use super::failure::Failure;
use super::incoming::Incoming;
use super::requests::{Answer, Ask, Requests};
use crate::catalog::Catalog;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use completion::Completion;
use http_body_util::BodyExt;
use reply::{Form, Making};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// How long the rest of a refused body is waited for.
const LINGER: Duration = Duration::from_secs(5);

/// What the routes stand on.
#[derive(Clone)]
pub struct OpenAi {
    pub requests: Requests,
    pub catalog: Arc<Catalog>,
    /// Limit of a body.
    pub body_bytes: usize,
    /// How long a client may take to send it.
    pub patience: Duration,
    /// Room for what is being sent.
    pub incoming: Incoming,
    /// When the server began, in seconds since 1970: when the base was "created".
    pub since: u64,
}

/// The routes of this protocol.
pub fn routes(openai: OpenAi) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::one))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .with_state(openai)
}

async fn completions(State(openai): State<OpenAi>, request: Request) -> Result<Response, Failure> {
    let caller = Caller::of(request.extensions())?;
    let body = openai.read(&caller, request.into_body()).await?;
    let most = openai.requests.engine().config().max_prompt;
    let Completion { shown, asks } = Completion::read(&body, caller, most)?;
    let mut making = Vec::with_capacity(asks.len());
    for (ask, echo) in asks {
        let before = echo.map_or_else(String::new, |text| openai.requests.written(text));
        let answer = openai.submit(ask).await?;
        making.push(Making { answer, before });
    }
    match shown.stream {
        true => Ok(reply::streamed(Form::Text, shown, making)),
        false => reply::whole(Form::Text, shown, making).await,
    }
}

async fn chat_completions(
    State(openai): State<OpenAi>,
    request: Request,
) -> Result<Response, Failure> {
    let caller = Caller::of(request.extensions())?;
    let body = openai.read(&caller, request.into_body()).await?;
    let (shown, asks) = chat::read(&body, caller)?;
    let mut making = Vec::with_capacity(asks.len());
    for ask in asks {
        let answer = openai.submit(ask).await?;
        let before = String::new();
        making.push(Making { answer, before });
    }
    match shown.stream {
        true => Ok(reply::streamed(Form::Chat, shown, making)),
        false => reply::whole(Form::Chat, shown, making).await,
    }
}

impl OpenAi {
    async fn submit(&self, ask: Ask) -> Result<Answer, Failure> {
        let answer = self.requests.generate(ask).await;
        Ok(answer.map_err(|refusal| refusal.named(fields::path))?)
    }

    /// The body of a client's request, unless it is too long, does not end, or there is no room for it.
    async fn read(&self, caller: &Caller, body: Body) -> Result<Vec<u8>, Failure> {
        let (most, patience) = (self.body_bytes, self.patience);
        let too_large = || {
            let message = format!("the body has more than {most} bytes");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        if body.size_hint().lower() > most as u64 {
            return Err(too_large()); // its head says so
        }
        let mut body = self.incoming.whole(caller.client.clone(), body);
        let mut whole = Vec::new();
        let read = async {
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(unreadable)?.into_data() else {
                    continue;
                };
                if whole.len() + data.len() > most {
                    return Err(too_large());
                }
                whole.extend_from_slice(&data);
            }
            Ok(())
        };
        match tokio::time::timeout(patience, read).await {
            Ok(Ok(())) => Ok(whole),
            Ok(Err(failure)) => {
                drop(whole);
                let rest = throw_away(body.into_inner(), most);
                let _ = tokio::time::timeout(LINGER, rest).await;
                Err(failure)
            }
            Err(_) => {
                let message = format!("the body did not end within {patience:?}");
                Err(Failure::new(StatusCode::REQUEST_TIMEOUT, message))
            }
        }
    }
}

/// Why a body could not be read.
fn unreadable(error: tonic::codegen::StdError) -> Failure {
    match error.downcast::<Status>() {
        Ok(status) => (*status).into(),
        Err(_) => {
            let message = "the body ended early, or is not what its headers say";
            Failure::new(StatusCode::BAD_REQUEST, message)
        }
    }
}

/// Reads what is left of a body that is refused, up to so many bytes: a client that is still sending would see a broken connection
/// instead of the answer.
async fn throw_away(mut body: Body, most: usize) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > most {
            return;
        }
    }
}

fn json(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
