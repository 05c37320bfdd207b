//! What completions and chats have in common: their fields, each refused by its name.

use super::list::list;
use super::object::{AnySeed, FieldValue, Object};
use super::skim::Skimmed;
use crate::engine::{MAX_STOP_IDS, MAX_STOPS, PredictorKind, Priority, SamplingParams};
use crate::sampler::{Certainty, NoiseRemoval};
use crate::server::access::Caller;
use crate::server::metrics::Protocol;
use crate::server::mix;
use crate::server::requests::{Ask, MAX_PIECES, Piece, RequestInput};
use crate::server::status::BadField;
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::time::{Duration, Instant};

/// Texts that one request may ask for, over all its prompts.
pub const MOST_CHOICES: usize = 128;

/// How answers are to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerForm {
    pub model: String,
    pub stream: bool,
    /// A last chunk with the usage, where it streams.
    pub include_usage: bool,
    /// Choices of each prompt.
    pub n: usize,
}

/// Everything but what is given.
#[derive(Debug, Default)]
pub struct CommonFields {
    model: Option<String>,
    stream: bool,
    include_usage: bool,
    n: Option<usize>,
    temperature: Option<f32>,
    nucleus_p: Option<f32>,
    stop: Vec<String>,
    stop_ids: Vec<u32>,
    seed: Option<u64>,
    ours: Ours,
}

impl Object for CommonFields {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        let no_penalties = "there are no penalties";
        match name {
            "model" => self.model = value.read("model")?,
            "stream" => self.stream = value.read("stream")?.unwrap_or_default(),
            "stream_options" => {
                let options = value.reading.object(StreamOptions::default());
                let options = value.read_by("stream_options", options)?;
                self.include_usage = options.unwrap_or_default().include_usage;
            }
            "n" => self.n = value.read("n")?,
            "temperature" => self.temperature = value.read("temperature")?,
            "top_p" => self.nucleus_p = value.read("top_p")?,
            "stop" => {
                let stop = value.read_by("stop", list(MAX_STOPS).or_one())?;
                self.stop = stop.unwrap_or_default();
            }
            "stop_token_ids" => {
                let ids = value.read_by("stop_token_ids", list(MAX_STOP_IDS))?;
                self.stop_ids = ids.unwrap_or_default();
            }
            "seed" => self.seed = value.read("seed")?.map(|AnySeed(seed)| seed),
            "presence_penalty" => value.refuse("presence_penalty", no_penalties, Skimmed::Zero)?,
            "frequency_penalty" => {
                value.refuse("frequency_penalty", no_penalties, Skimmed::Zero)?
            }
            "logit_bias" => {
                value.refuse("logit_bias", "logits have no bias", Skimmed::Empty)?;
            }
            "logprobs" => {
                let told = "probabilities are not told: a text is not made token by token";
                value.refuse("logprobs", told, Skimmed::False)?;
            }
            "choir" => {
                let ours = value.reading.object(Ours::default());
                self.ours = value.read_by("choir", ours)?.unwrap_or_default();
            }
            _ => value.skip()?,
        }
        Ok(())
    }
}

/// How to show answers, what to ask for each, and the template that is given.
pub struct Common {
    pub shown: AnswerForm,
    pub ask: Ask,
    pub template: Option<RequestInput>,
}

impl CommonFields {
    /// # Errors
    /// The model is missing or no mix, or there are too many choices.
    pub fn checked(self, caller: Caller) -> Result<Common, BadField> {
        let missing = || BadField::new("model", "it is missing");
        let (model, n) = (self.model.ok_or_else(missing)?, self.n.unwrap_or(1));
        if !(1..=MOST_CHOICES).contains(&n) {
            let reason = format!("it is {n}, not within 1 and {MOST_CHOICES}");
            return Err(BadField::new("n", reason));
        }
        let ask = Ask {
            protocol: Protocol::openai,
            mix: mix::named("model", &model)?,
            choice: SamplingParams {
                temperature: self.temperature,
                nucleus_p: self.nucleus_p,
                ..self.ours.choice
            },
            stop: self.stop,
            stop_ids: self.stop_ids,
            seed: self.seed,
            want_steps: self.ours.want_steps,
            control_tokens: self.ours.control_tokens,
            deadline: self.ours.deadline,
            priority: self.ours.priority,
            caller,
            given: RequestInput::default(),
        };
        Ok(Common {
            shown: AnswerForm {
                model,
                stream: self.stream,
                include_usage: self.include_usage,
                n,
            },
            ask,
            template: self.ours.template.map(RequestInput::Template),
        })
    }
}

impl Common {
    /// One request for each choice. Each of several has a seed of its own: the one given and those after it.
    pub fn asks(&self, given: &RequestInput, first: usize) -> impl Iterator<Item = Ask> {
        (0..self.shown.n).map(move |index| {
            let seed = |seed: u64| seed.wrapping_add((first + index) as u64);
            Ask {
                seed: self.ask.seed.map(seed),
                given: given.clone(),
                ..self.ask.clone()
            }
        })
    }
}

#[derive(Debug, Default)]
struct StreamOptions {
    include_usage: bool,
}

impl Object for StreamOptions {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        match name {
            "include_usage" => {
                let path = "stream_options.include_usage";
                self.include_usage = value.read(path)?.unwrap_or_default();
            }
            _ => value.skip()?,
        }
        Ok(())
    }
}

/// What a request says under `choir`: our own settings, of which unknown ones are refused.
#[derive(Debug, Default)]
struct Ours {
    choice: SamplingParams,
    priority: Priority,
    want_steps: bool,
    control_tokens: bool,
    deadline: Option<Instant>,
    template: Option<Vec<Piece>>,
}

impl Object for Ours {
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error> {
        let choice = &mut self.choice;
        match name {
            "predictor" => {
                choice.kind = value.named(
                    "choir.predictor",
                    &[
                        ("first_hitting", PredictorKind::FirstHitting),
                        ("ancestral", PredictorKind::Ancestral),
                        ("confidence", PredictorKind::Confidence),
                        ("static", PredictorKind::Static),
                        ("sequential", PredictorKind::Sequential),
                        ("psi", PredictorKind::Psi),
                    ],
                )?;
            }
            "steps" => choice.steps = value.read("choir.steps")?,
            "threshold" => choice.threshold = value.read("choir.threshold")?,
            "eps" => choice.eps = value.read("choir.eps")?,
            "noise_removal" => {
                choice.noise_removal = value.named(
                    "choir.noise_removal",
                    &[
                        ("ancestral", NoiseRemoval::Ancestral),
                        ("greedy", NoiseRemoval::Greedy),
                    ],
                )?;
            }
            "block_size" => choice.block_size = value.read("choir.block_size")?,
            "top_k" => choice.top_k = value.read("choir.top_k")?,
            "certainty" => {
                choice.certainty = value.named(
                    "choir.certainty",
                    &[
                        ("best", Certainty::Best),
                        ("drawn", Certainty::Drawn),
                        ("filtered", Certainty::Filtered),
                    ],
                )?;
            }
            "priority" => {
                let priority = value.named(
                    "choir.priority",
                    &[
                        ("interactive", Priority::Interactive),
                        ("batch", Priority::Batch),
                    ],
                )?;
                self.priority = priority.unwrap_or_default();
            }
            "timeout_ms" => {
                let after = |ms| Instant::now().checked_add(Duration::from_millis(ms));
                self.deadline = value.read("choir.timeout_ms")?.and_then(after);
            }
            "want_steps" => self.want_steps = value.read("choir.want_steps")?.unwrap_or_default(),
            "control_tokens" => {
                self.control_tokens = value.read("choir.control_tokens")?.unwrap_or_default();
            }
            "template" => {
                self.template = value.read_by("choir.template", list::<Piece>(MAX_PIECES))?;
            }
            _ => {
                let name: String = name.chars().take(64).collect();
                return Err(A::Error::custom(format_args!(
                    "there is no setting {name:?}"
                )));
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadPiece)
    }
}

/// Reads a piece of a template: given text, or the number of tokens to make.
struct ReadPiece;

impl Visitor<'_> for ReadPiece {
    type Value = Piece;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or a number of tokens to make")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Piece, E> {
        Ok(Piece::Text(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, length: u64) -> Result<Piece, E> {
        let fits = u32::try_from(length);
        fits.map(Piece::Hole)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(length), &self))
    }
}

/// What a request has in the place of what the engine calls `field`.
pub fn path(field: &'static str) -> &'static str {
    match field {
        "mix" => "model",
        "nucleus_p" => "top_p",
        "predictor" => "choir.predictor",
        "steps" => "choir.steps",
        "threshold" => "choir.threshold",
        "eps" => "choir.eps",
        "noise_removal" => "choir.noise_removal",
        "block_size" => "choir.block_size",
        "top_k" => "choir.top_k",
        "certainty" => "choir.certainty",
        "template" => "choir.template",
        other => other,
    }
}
