//! The one way from a protocol to the engine: what was asked, in the words that all protocols share, checked and turned into
//! tokens; and the events that come of it.

mod answer;
mod given;
mod prepared;

pub use answer::{Answer, Whole};
pub use given::{InputText, MAX_PIECES, MOST_MESSAGES, Piece, RequestInput};

use super::access::{Caller, Overspent};
use super::metrics::{Metrics, Protocol, RequestWatch};
use super::status::BadField;
use crate::engine::{self, EngineHandle, Priority, SamplingParams};
use crate::model::tokenizer::ChatError;
use prepared::PreparedRequest;
use std::sync::Arc;
use std::time::Instant;

/// Tokens to make where a request does not say.
pub const DEFAULT_MAX_TOKENS: u32 = 128;
/// Noise levels of a score where a request does not say.
pub const DEFAULT_SAMPLES: u32 = 4;

/// A request for text. Fields are refused by the names they have here, or that the engine gives them: [`Refusal::named`].
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub protocol: Protocol,
    /// Variants by name with their weights; none is the base.
    pub mix: Vec<(String, f32)>,
    pub given: RequestInput,
    /// Over the defaults of the mix.
    pub choice: SamplingParams,
    pub stop: Vec<String>,
    pub stop_ids: Vec<u32>,
    pub seed: Option<u64>,
    pub want_steps: bool,
    /// Whether the text of a control token in what is given is that token.
    pub control_tokens: bool,
    pub deadline: Option<Instant>,
    pub priority: Priority,
    pub caller: Caller,
}

/// A request for the likelihood of a text.
#[derive(Debug)]
pub struct ScoreAsk {
    pub mix: Vec<(String, f32)>,
    pub text: String,
    pub samples: Option<u32>,
    pub seed: Option<u64>,
    pub deadline: Option<Instant>,
    pub caller: Caller,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Field(#[from] BadField),
    #[error(transparent)]
    Engine(engine::Error),
    #[error("messages: {0}")]
    Chat(#[from] ChatError),
    /// The key that was given has no more of something.
    #[error(transparent)]
    Overspent(#[from] Overspent),
}

impl From<engine::Error> for Refusal {
    fn from(error: engine::Error) -> Self {
        match error {
            engine::Error::BadField { field, reason } => BadField { field, reason }.into(),
            engine::Error::PromptTooLong { tokens, limit } => {
                let reason = format!("it has {tokens} tokens and at most {limit} are allowed");
                BadField::new("prompt", reason).into()
            }
            other => Refusal::Engine(other),
        }
    }
}

impl Refusal {
    /// The same, with its field as `name` has it.
    #[must_use]
    pub fn named(self, name: impl Fn(&'static str) -> &'static str) -> Self {
        match self {
            Refusal::Field(BadField { field, reason }) => BadField {
                field: name(field),
                reason,
            }
            .into(),
            other => other,
        }
    }
}

/// The way in, for every protocol.
#[derive(Clone)]
pub struct Requests {
    engine: EngineHandle,
    metrics: Arc<Metrics>,
    /// Limit of the text of a request, in bytes.
    prompt_bytes: usize,
}

impl Requests {
    pub fn new(engine: EngineHandle, metrics: Arc<Metrics>, prompt_bytes: usize) -> Self {
        Requests {
            engine,
            metrics,
            prompt_bytes,
        }
    }

    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Lets a request wait for the engine, or says why not.
    pub async fn generate(&self, ask: Ask) -> Result<Answer, Refusal> {
        let protocol = ask.protocol;
        let answer = self.admit(ask).await;
        answer.inspect_err(|refusal| self.metrics.count_refusal(protocol, refusal))
    }

    async fn admit(&self, ask: Ask) -> Result<Answer, Refusal> {
        let bytes = ask.given.bytes(self.prompt_bytes)?;
        engine::check_stops(&ask.stop, &ask.stop_ids)?;
        // A variant that is not there, before what does not fit it.
        let client = ask.caller.client.as_ref();
        let prepared = self.prepare(ask.mix, bytes, ask.deadline, client).await?;
        let sampling = ask.choice.over(prepared.target.defaults().clone());
        let sampling = sampling.map_err(engine::Error::from)?;
        self.engine
            .has_room(&prepared.target, ask.priority, client)?;
        let rename = ask.given.names();
        let laid_out = self.lay_out(&prepared, ask.given, ask.control_tokens);
        let laid_out = within(ask.deadline, laid_out).await??;
        let mix = prepared.target.names().to_vec();
        let payer = prepared.target.payer().to_owned();
        let charge = ask.caller.charge(laid_out.asked())?;
        let events = self.engine.submit(engine::Request {
            mix: prepared.target.into(),
            prompt: laid_out.prompt,
            max_tokens: laid_out.max_tokens,
            after: laid_out.after,
            sampling,
            stop: ask.stop,
            stop_ids: ask.stop_ids,
            seed: ask.seed,
            steps_wanted: ask.want_steps,
            deadline: ask.deadline,
            priority: ask.priority,
            client: ask.caller.client,
        });
        let events = events.map_err(|error| Refusal::from(error).named(rename))?;
        let id = events.request_id();
        let watch = RequestWatch::new(self.metrics.clone(), ask.protocol, &payer, id);
        Ok(Answer::new(events, mix, watch, charge))
    }

    /// A place to be prepared in, and what the names of a mix mean.
    async fn prepare(
        &self,
        mix: Vec<(String, f32)>,
        bytes: usize,
        deadline: Option<Instant>,
        client: Option<&Arc<str>>,
    ) -> Result<PreparedRequest, Refusal> {
        let place = within(deadline, self.engine.prepare(client, bytes)).await??;
        let target = self.engine.resolve(mix)?;
        Ok(PreparedRequest::new(place, target))
    }

    /// Refuses a score of more evaluations than a request may ask for, where that is known before its text is tokenized, as it mostly
    /// is; gives the text back.
    async fn affordable(
        &self,
        prepared: &PreparedRequest,
        text: String,
        samples: u32,
    ) -> Result<String, Refusal> {
        let Some(block) = prepared.target.regime.block else {
            return Ok(text);
        };
        let limit = self.engine.config().max_evaluations;
        let most = (limit / samples.max(1)) as usize * block;
        let tokenizer = prepared.target.tokenizer().clone();
        let long = text.len() > engine::LONG_TEXT;
        let look = move || (tokenizer.fewest(&text, most), text);
        let (fewest, text) = match long {
            true => prepared.beside(look).await?,
            false => look(),
        };
        if fewest <= most {
            return Ok(text);
        }
        let evaluations = fewest.div_ceil(block) as u64 * u64::from(samples);
        let reason = format!(
            "that takes {evaluations} evaluations of the network or more, and one request may ask for {limit}"
        );
        Err(BadField::new("samples", reason).into())
    }

    /// How likely a text is.
    pub async fn score(&self, ask: ScoreAsk) -> Result<engine::Score, Refusal> {
        let bytes = ask.text.len();
        given::check_bytes("text", bytes, self.prompt_bytes)?;
        let client = ask.caller.client.as_ref();
        let prepared = self.prepare(ask.mix, bytes, ask.deadline, client).await?;
        self.engine
            .has_room(&prepared.target, Priority::Batch, client)?;
        let (mut tokens, config) = (prepared.beginning(), self.engine.config());
        let samples = ask.samples.unwrap_or(DEFAULT_SAMPLES);
        let text = self.affordable(&prepared, ask.text, samples);
        let text = InputText::Written(within(ask.deadline, text).await??);
        let given = tokens.len();
        let bound = (given, config.max_prompt.saturating_add(config.max_tokens));
        let text = self.encode(&prepared, "text", text, false, bound);
        tokens.extend(within(ask.deadline, text).await??);
        let _charge = ask.caller.charge(0)?;
        let reply = self.engine.score(engine::ScoreRequest {
            mix: prepared.target.into(),
            tokens,
            given,
            samples: samples as usize,
            seed: ask.seed,
            deadline: ask.deadline,
            client: ask.caller.client,
        });
        let reply = reply.map_err(|error| {
            Refusal::from(error).named(|field| match field {
                "prompt" | "tokens" => "text",
                field => field,
            })
        })?;
        let score = within(ask.deadline, reply).await?;
        Ok(score.map_err(|_| engine::Error::Stopped)??)
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
