//! `choir.v1.Inference`: requests in, the engine's events out.

use super::convert;
use crate::engine::{self, EngineHandle, EventStream, Preparation, Resolved};
use crate::model::tokenizer::ChatError;
use crate::pb;
use crate::pb::inference_server::Inference;
use crate::pb::piece::Piece;
use crate::server::Limits;
use crate::server::status::BadField;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Text of more bytes than this is tokenized off the runtime's threads.
const LONG_TEXT: usize = 4096;
/// Pieces of a template at most.
const MAX_PIECES: usize = 1024;
const TEMPLATE: &str = "template";
const MESSAGES: &str = "messages";

/// Serves what the engine's generation serves.
pub struct InferenceService {
    engine: EngineHandle,
    /// Limit of a prompt, in bytes.
    prompt_bytes: usize,
    /// Whether clients are believed who they say they are.
    trust_client_id: bool,
}

/// A request that is being prepared: it leases the generation that it will run on.
struct Prepared {
    place: Arc<Preparation>,
    target: Resolved,
}

impl Prepared {
    /// The token that begins every text, where the tokenizer has one.
    fn beginning(&self) -> Vec<u32> {
        self.target.lease.tokenizer.begin().into_iter().collect()
    }

    /// Does what takes long beside the runtime's threads. The place is taken until it is done, also where the call does not
    /// wait for it any more.
    async fn beside<T: Send + 'static>(
        &self,
        field: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let place = self.place.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        done.await
            .map_err(|error| Status::internal(format!("{field}: {error}")))
    }
}

impl InferenceService {
    pub fn new(engine: EngineHandle, limits: &Limits) -> Self {
        InferenceService {
            engine,
            prompt_bytes: limits.prompt_bytes,
            trust_client_id: limits.trust_client_id,
        }
    }

    /// Refuses more bytes of text than a prompt may have.
    fn check_bytes(&self, field: &'static str, bytes: usize) -> Result<(), BadField> {
        match bytes <= self.prompt_bytes {
            true => Ok(()),
            false => {
                let reason = format!(
                    "it has {bytes} bytes and at most {} are allowed",
                    self.prompt_bytes
                );
                Err(BadField::new(field, reason))
            }
        }
    }

    /// A place to be prepared in, and what the names of a mix mean.
    async fn prepare(
        &self,
        mix: Vec<pb::VariantWeight>,
        deadline: Option<Instant>,
    ) -> Result<Prepared, Status> {
        let place = Arc::new(within(deadline, self.engine.prepare()).await??);
        let target = self.engine.resolve(convert::mix(mix))?;
        Ok(Prepared { place, target })
    }

    /// The tokens of a text, at least one; `control`: whether control tokens may be written in it.
    async fn encode(
        &self,
        prepared: &Prepared,
        field: &'static str,
        text: String,
        control: bool,
    ) -> Result<Vec<u32>, Status> {
        if text.is_empty() {
            return Err(BadField::new(field, "it is empty").into());
        }
        self.check_bytes(field, text.len())?;
        let tokenizer = prepared.target.lease.tokenizer.clone();
        let long = text.len() > LONG_TEXT;
        let encode = move || match control {
            true => tokenizer.encode_control(&text),
            false => tokenizer.encode(&text),
        };
        let tokens = if long {
            prepared.beside(field, encode).await?
        } else {
            encode()
        };
        match tokens {
            Ok(tokens) if tokens.is_empty() => {
                Err(BadField::new(field, "the tokenizer makes no token of it").into())
            }
            tokens => tokens.map_err(|error| BadField::new(field, error.to_string()).into()),
        }
    }

    /// The tokens of a conversation, up to where its answer begins.
    async fn conversation(
        &self,
        prepared: &Prepared,
        messages: Vec<pb::Message>,
        enable_thinking: Option<bool>,
    ) -> Result<Vec<u32>, Status> {
        let messages = convert::messages(messages)?;
        let bytes = messages.iter().map(|message| message.content.len());
        self.check_bytes(MESSAGES, bytes.sum())?;
        let tokenizer = prepared.target.lease.tokenizer.clone();
        let render = move || tokenizer.chat(&messages, enable_thinking);
        let tokens = prepared.beside(MESSAGES, render).await?;
        tokens.map_err(|error| {
            let message = format!("{MESSAGES}: {error}");
            match error {
                ChatError::NoTemplate | ChatError::Template(_) | ChatError::Endless => {
                    Status::failed_precondition(message)
                }
                _ => Status::invalid_argument(message),
            }
        })
    }

    /// What a request gives, as the engine takes it: the prompt, the length of the first hole, and what stands after it.
    async fn given(
        &self,
        prepared: &Prepared,
        request: &mut pb::GenerateRequest,
    ) -> Result<(Vec<u32>, usize, Vec<Option<u32>>), Status> {
        let control = request.control_tokens;
        let max_tokens = request.max_tokens.unwrap_or(convert::DEFAULT_MAX_TOKENS) as usize;
        if !request.messages.is_empty() {
            let bad = |reason: &str| Err(BadField::new(MESSAGES, reason).into());
            if !request.prompt.is_empty()
                || request.suffix.is_some()
                || !request.template.is_empty()
            {
                return bad("they stand instead of prompt, suffix and template");
            }
            if control {
                return bad("control tokens are the chat template's");
            }
            let messages = std::mem::take(&mut request.messages);
            let thinking = request.enable_thinking;
            let prompt = self.conversation(prepared, messages, thinking).await?;
            return Ok((prompt, max_tokens, Vec::new()));
        }
        if request.enable_thinking.is_some() {
            return Err(BadField::new("enable_thinking", "there are no messages").into());
        }
        if request.template.is_empty() {
            let mut prompt = prepared.beginning();
            let text = std::mem::take(&mut request.prompt);
            prompt.extend(self.encode(prepared, "prompt", text, control).await?);
            let after = match request.suffix.take() {
                Some(suffix) => self.encode(prepared, "suffix", suffix, control).await?,
                None => Vec::new(),
            };
            return Ok((prompt, max_tokens, after.into_iter().map(Some).collect()));
        }
        let bad = |reason: &str| Status::from(BadField::new(TEMPLATE, reason));
        if !request.prompt.is_empty() || request.suffix.is_some() || request.max_tokens.is_some() {
            return Err(bad("it stands instead of prompt, suffix and max_tokens"));
        }
        if request.template.len() > MAX_PIECES {
            return Err(bad("it has more than 1024 pieces"));
        }
        let pieces: Option<Vec<Piece>> = request
            .template
            .drain(..)
            .map(|piece| piece.piece)
            .collect();
        let pieces = pieces.ok_or_else(|| bad("one of its pieces is neither text nor hole"))?;
        let bytes = pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.len(),
            Piece::Hole(_) => 0,
        });
        self.check_bytes(TEMPLATE, bytes.sum())?;
        let limit = self.engine.config().max_tokens;
        if !pieces.iter().any(|piece| matches!(piece, Piece::Text(_))) {
            return Err(bad("it is nothing but holes"));
        }
        let (mut prompt, mut first, mut after, mut holes) =
            (prepared.beginning(), 0, Vec::new(), 0);
        for piece in pieces {
            match piece {
                Piece::Text(text) if first == 0 => {
                    prompt.extend(self.encode(prepared, TEMPLATE, text, control).await?)
                }
                Piece::Text(text) => {
                    let tokens = self.encode(prepared, TEMPLATE, text, control).await?;
                    after.extend(tokens.into_iter().map(Some))
                }
                Piece::Hole(0) => return Err(bad("one of its holes is empty")),
                Piece::Hole(length) => {
                    holes += length as usize;
                    if holes > limit {
                        return Err(bad(&format!("its holes have more than {limit} tokens")));
                    }
                    match first {
                        0 => first = length as usize,
                        _ => after.extend(std::iter::repeat_n(None, length as usize)),
                    }
                }
            }
        }
        match first {
            0 => Err(bad("it has no hole")),
            _ => Ok((prompt, first, after)),
        }
    }
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type GenerateStream = Events;

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Events>, Status> {
        let deadline = convert::deadline(request.metadata())?;
        let client = convert::client(&request, self.trust_client_id)?;
        let mut request = request.into_inner();
        // A variant that is not there, before what does not fit it.
        let prepared = self
            .prepare(std::mem::take(&mut request.mix), deadline)
            .await?;
        let defaults = prepared.target.defaults().clone();
        let sampling = convert::choice(request.sampling)?.over(defaults)?;
        let (template, chat) = (!request.template.is_empty(), !request.messages.is_empty());
        let (prompt, max_tokens, after) = self.given(&prepared, &mut request).await?;
        let mix = prepared.target.names().to_vec();
        let request = engine::Request {
            sampling,
            prompt,
            max_tokens,
            after,
            stop: request.stop,
            stop_ids: request.stop_ids,
            seed: request.seed,
            steps_wanted: request.want_steps,
            mix: prepared.target.into(),
            deadline,
            priority: convert::priority(request.priority)?,
            client,
        };
        let events = self.engine.submit(request);
        let events = events.map_err(|error| {
            of_given(error, |field| match field {
                "prompt" | "max_tokens" if template => TEMPLATE,
                "prompt" if chat => MESSAGES,
                TEMPLATE if !template => "suffix",
                field => field,
            })
        })?;
        Ok(Response::new(Events {
            events,
            mix,
            ended: false,
        }))
    }

    async fn score(
        &self,
        request: Request<pb::ScoreRequest>,
    ) -> Result<Response<pb::ScoreResponse>, Status> {
        let deadline = convert::deadline(request.metadata())?;
        let client = convert::client(&request, self.trust_client_id)?;
        let request = request.into_inner();
        let prepared = self.prepare(request.mix, deadline).await?;
        let mut tokens = prepared.beginning();
        let given = tokens.len();
        let text = self.encode(&prepared, "text", request.text, false);
        tokens.extend(text.await?);
        let request = engine::ScoreRequest {
            mix: prepared.target.into(),
            tokens,
            given,
            samples: request.samples.unwrap_or(convert::DEFAULT_SAMPLES) as usize,
            seed: request.seed,
            deadline,
            client,
        };
        let reply = self.engine.score(request);
        let reply = reply.map_err(|error| {
            of_given(error, |field| match field {
                "prompt" | "tokens" => "text",
                field => field,
            })
        })?;
        let score = within(deadline, reply)
            .await?
            .map_err(|_| engine::Error::Stopped)??;
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
async fn within<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = T>,
) -> Result<T, engine::Error> {
    let Some(deadline) = deadline else {
        return Ok(future.await);
    };
    let begun = Instant::now();
    let passed = |_| engine::Error::DeadlinePassed {
        waited: begun.elapsed(),
    };
    tokio::time::timeout_at(deadline.into(), future)
        .await
        .map_err(passed)
}

/// What a client is told of text that the engine knows as tokens before and after a hole: `name` says in which field it came.
fn of_given(error: engine::Error, name: impl Fn(&'static str) -> &'static str) -> Status {
    use engine::Error as E;
    match error {
        E::PromptTooLong { tokens, limit } => {
            let reason = format!("it has {tokens} tokens and at most {limit} are allowed");
            BadField::new(name("prompt"), reason).into()
        }
        E::BadField { field, reason } => E::BadField {
            field: name(field),
            reason,
        }
        .into(),
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
