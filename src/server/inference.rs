//! `choir.v1.Inference`: requests in, the engine's events out.

use super::convert;
use super::status::BadField;
use crate::engine::{self, EngineHandle, EventStream};
use crate::pb;
use crate::pb::inference_server::Inference;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Text of more bytes than this is tokenized off the runtime's threads.
const LONG_TEXT: usize = 4096;

/// Serves what the engine's generation serves.
pub struct InferenceService {
    engine: EngineHandle,
    /// Limit of a prompt, in bytes.
    prompt_bytes: usize,
}

impl InferenceService {
    pub fn new(engine: EngineHandle, prompt_bytes: usize) -> Self {
        InferenceService { engine, prompt_bytes }
    }

    /// The tokens of a text after the one that begins every text, where the tokenizer has one, and how many that is.
    async fn encode(&self, field: &'static str, text: String) -> Result<(Vec<u32>, usize), Status> {
        if text.is_empty() {
            return Err(BadField::new(field, "it is empty").into());
        }
        let bytes = text.len();
        if bytes > self.prompt_bytes {
            let reason = format!("it has {bytes} bytes and at most {} are allowed", self.prompt_bytes);
            return Err(BadField::new(field, reason).into());
        }
        let tokenizer = self.engine.generation().tokenizer.clone();
        let beginning: Vec<u32> = tokenizer.end_of_text().into_iter().collect();
        let given = beginning.len();
        let encode = move || [beginning, tokenizer.encode(&text)].concat();
        let tokens = if bytes <= LONG_TEXT {
            encode()
        } else {
            let encoding = tokio::task::spawn_blocking(encode);
            encoding
                .await
                .map_err(|error| Status::internal(format!("{field}: {error}")))?
        };
        match tokens.len() > given {
            true => Ok((tokens, given)),
            false => Err(BadField::new(field, "the tokenizer makes no token of it").into()),
        }
    }
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type GenerateStream = Events;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<Events>, Status> {
        let deadline = convert::deadline(request.metadata());
        let request = request.into_inner();
        let mix = convert::mix(request.mix);
        let defaults = self.engine.generation().defaults(&mix);
        let request = engine::Request {
            sampling: convert::sampling(request.sampling, defaults)?,
            prompt: self.encode("prompt", request.prompt).await?.0,
            max_tokens: request.max_tokens.unwrap_or(convert::DEFAULT_MAX_TOKENS) as usize,
            stop: request.stop,
            stop_ids: request.stop_ids,
            seed: request.seed,
            steps_wanted: request.want_steps,
            mix: mix.clone(),
            deadline,
        };
        let events = self.engine.submit(request)?;
        Ok(Response::new(Events {
            events,
            mix,
            ended: false,
        }))
    }

    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let deadline = convert::deadline(request.metadata());
        let request = request.into_inner();
        let (tokens, given) = self.encode("text", request.text).await?;
        let request = engine::ScoreRequest {
            mix: convert::mix(request.mix),
            tokens,
            given,
            samples: request.samples.unwrap_or(convert::DEFAULT_SAMPLES) as usize,
            seed: request.seed,
            deadline,
        };
        let reply = self.engine.score(request).map_err(of_text)?;
        let score = within(deadline, reply).await?.map_err(|_| engine::Error::Stopped)??;
        Ok(Response::new(pb::ScoreResponse {
            nats_per_token: score.nats_per_token,
            tokens: convert::small(score.tokens),
            nfe: score.nfe,
            generation: score.generation,
            seed: score.seed,
        }))
    }
}

/// What `future` gives, unless the deadline passes first: the engine notices that only between two steps.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Result<T, engine::Error> {
    let Some(deadline) = deadline else {
        return Ok(future.await);
    };
    let begun = Instant::now();
    let passed = |_| engine::Error::DeadlinePassed {
        waited: begun.elapsed(),
    };
    tokio::time::timeout_at(deadline.into(), future).await.map_err(passed)
}

/// The engine knows the text as tokens.
fn of_text(error: engine::Error) -> Status {
    match error {
        engine::Error::PromptTooLong { tokens, limit } => BadField::new(
            "text",
            format!("it has {tokens} tokens and at most {limit} are allowed"),
        )
        .into(),
        engine::Error::BadField {
            field: "tokens",
            reason,
        } => BadField::new("text", reason).into(),
        other => other.into(),
    }
}

/// One generation's events on the wire. Dropping it, as tonic does when the client leaves, cancels the request.
pub struct Events {
    events: EventStream,
    mix: Vec<(String, f32)>,
    /// The last event was seen.
    ended: bool,
}

impl Stream for Events {
    type Item = Result<pb::GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(Pin::new(&mut self.events).poll_next(context))
            // A stream without a last event: the engine's thread is gone.
            .unwrap_or(engine::Event::Failed(engine::Error::Stopped));
        self.ended = matches!(event, engine::Event::Finished(_) | engine::Event::Failed(_));
        Poll::Ready(Some(convert::event(event, &self.mix).map_err(Status::from)))
    }
}
