//! `choir.v1.Inference`: requests in, the engine's events out.

use super::convert;
use crate::pb;
use crate::pb::inference_server::Inference;
use crate::server::access::Caller;
use crate::server::deadline;
use crate::server::metrics::Protocol;
use crate::server::requests::{Answer, Ask, Requests, ScoreAsk};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Serves what the engine's generation serves.
pub struct InferenceService {
    requests: Requests,
}

impl InferenceService {
    pub fn new(requests: Requests) -> Self {
        InferenceService { requests }
    }
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type GenerateStream = AnswerStream;

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<AnswerStream>, Status> {
        let deadline = deadline::of(request.metadata())?;
        let caller = Caller::of(request.extensions())?;
        let mut request = request.into_inner();
        let ask = Ask {
            protocol: Protocol::choir,
            mix: convert::mix(std::mem::take(&mut request.mix)),
            choice: convert::choice(request.sampling.take())?,
            priority: convert::priority(request.priority)?,
            stop: std::mem::take(&mut request.stop),
            stop_ids: std::mem::take(&mut request.stop_ids),
            seed: request.seed,
            want_steps: request.want_steps,
            control_tokens: request.control_tokens,
            given: convert::given(request)?,
            deadline,
            caller,
        };
        let answer = self.requests.generate(ask).await;
        let answer = answer.map_err(|refusal| refusal.named(convert::path))?;
        Ok(Response::new(AnswerStream { answer }))
    }

    async fn score(
        &self,
        request: Request<pb::ScoreRequest>,
    ) -> Result<Response<pb::ScoreResponse>, Status> {
        let deadline = deadline::of(request.metadata())?;
        let caller = Caller::of(request.extensions())?;
        let request = request.into_inner();
        let ask = ScoreAsk {
            mix: convert::mix(request.mix),
            text: request.text,
            samples: request.samples,
            seed: request.seed,
            deadline,
            caller,
        };
        let score = self.requests.score(ask).await?;
        Ok(Response::new(pb::ScoreResponse {
            nats_per_token: score.nats_per_token,
            tokens: convert::small(score.tokens),
            nfe: score.nfe,
            generation: score.generation,
            seed: score.seed,
        }))
    }
}

/// One answer on the wire. Dropping it, as tonic does when the client leaves, cancels the request.
pub struct AnswerStream {
    answer: Answer,
}

impl Stream for AnswerStream {
    type Item = Result<pb::GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(Pin::new(&mut self.answer).poll_next(context));
        let wire = |event| convert::event(event, self.answer.mix()).map_err(Status::from);
        Poll::Ready(event.map(wire))
    }
}
