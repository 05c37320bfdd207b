//! The fields of a request's body, each refused by its name. What nobody knows is ignored, as OpenAI does.

use crate::engine::{PredictorKind, Priority, SamplingParams};
use crate::sampler::{Certainty, NoiseRemoval};
use crate::server::failure::Failure;
use crate::server::requests::Piece;
use crate::server::status::BadField;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::time::{Duration, Instant};

/// A JSON object, taken apart field by field.
pub struct Fields(Map<String, Value>);

impl Fields {
    pub fn read(body: &[u8]) -> Result<Fields, Failure> {
        let bad = |what: String| {
            let message = format!("the body is not a JSON object: {what}");
            Failure::new(StatusCode::BAD_REQUEST, message)
        };
        match serde_json::from_slice(body).map_err(|error| bad(error.to_string()))? {
            Value::Object(fields) => Ok(Fields(fields)),
            _ => Err(bad("it is something else".to_owned())),
        }
    }

    /// Those of an object inside.
    pub fn of(fields: Map<String, Value>) -> Fields {
        Fields(fields)
    }

    /// A field; `None` where it is missing or null.
    pub fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, BadField> {
        self.take_as(name, name)
    }

    /// The same of an object inside another, where it has the name `path`.
    fn take_as<T: DeserializeOwned>(
        &mut self,
        name: &str,
        path: &'static str,
    ) -> Result<Option<T>, BadField> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| BadField::new(path, error.to_string())),
        }
    }

    /// A flag that is not set where it is missing.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, BadField> {
        Ok(self.take(name)?.unwrap_or(false))
    }

    /// Refuses a field that asks for what there is not; `nothing` says that it asks for nothing.
    pub fn refuse(
        &self,
        name: &'static str,
        reason: &str,
        nothing: impl Fn(&Value) -> bool,
    ) -> Result<(), BadField> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if nothing(value) => Ok(()),
            Some(_) => Err(BadField::new(name, reason)),
        }
    }

    /// What is meant by a seed: any 64 bits, signed or not.
    pub fn seed(&mut self) -> Result<Option<u64>, BadField> {
        let number: Option<serde_json::Number> = self.take("seed")?;
        let bits = |number: serde_json::Number| {
            let signed = || number.as_i64().map(i64::cast_unsigned);
            number
                .as_u64()
                .or_else(signed)
                .ok_or_else(|| BadField::new("seed", "it is not a whole number of 64 bits"))
        };
        number.map(bits).transpose()
    }

    /// One string, or several.
    pub fn stop(&mut self) -> Result<Vec<String>, BadField> {
        Ok(match self.take::<Value>("stop")? {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(several) => serde_json::from_value(several).map_err(|_| {
                BadField::new("stop", "it is neither a string nor a list of strings")
            })?,
        })
    }
}

/// What a request says under `choir`.
#[derive(Debug, Default)]
pub struct Ours {
    pub choice: SamplingParams,
    pub priority: Priority,
    pub want_steps: bool,
    pub control_tokens: bool,
    pub deadline: Option<Instant>,
    pub template: Option<Vec<Piece>>,
}

impl Ours {
    /// Our own settings; unknown ones are refused here.
    pub fn read(fields: &mut Fields) -> Result<Ours, BadField> {
        let Some(inner) = fields.take::<Map<String, Value>>("choir")? else {
            return Ok(Ours::default());
        };
        let mut inner = Fields(inner);
        let choice = SamplingParams {
            kind: named(
                inner.take_as("predictor", "choir.predictor")?,
                "choir.predictor",
                &[
                    ("first_hitting", PredictorKind::FirstHitting),
                    ("ancestral", PredictorKind::Ancestral),
                    ("confidence", PredictorKind::Confidence),
                    ("static", PredictorKind::Static),
                    ("sequential", PredictorKind::Sequential),
                    ("psi", PredictorKind::Psi),
                ],
            )?,
            steps: inner.take_as("steps", "choir.steps")?,
            threshold: inner.take_as("threshold", "choir.threshold")?,
            eps: inner.take_as("eps", "choir.eps")?,
            noise_removal: named(
                inner.take_as("noise_removal", "choir.noise_removal")?,
                "choir.noise_removal",
                &[
                    ("ancestral", NoiseRemoval::Ancestral),
                    ("greedy", NoiseRemoval::Greedy),
                ],
            )?,
            block_size: inner.take_as("block_size", "choir.block_size")?,
            top_k: inner.take_as("top_k", "choir.top_k")?,
            certainty: named(
                inner.take_as("certainty", "choir.certainty")?,
                "choir.certainty",
                &[
                    ("best", Certainty::Best),
                    ("drawn", Certainty::Drawn),
                    ("filtered", Certainty::Filtered),
                ],
            )?,
            ..SamplingParams::default()
        };
        let priority = named(
            inner.take_as("priority", "choir.priority")?,
            "choir.priority",
            &[
                ("interactive", Priority::Interactive),
                ("batch", Priority::Batch),
            ],
        )?;
        let milliseconds: Option<u64> = inner.take_as("timeout_ms", "choir.timeout_ms")?;
        let after = |ms| Instant::now().checked_add(Duration::from_millis(ms));
        let ours = Ours {
            choice,
            priority: priority.unwrap_or_default(),
            want_steps: inner
                .take_as("want_steps", "choir.want_steps")?
                .unwrap_or(false),
            control_tokens: inner
                .take_as("control_tokens", "choir.control_tokens")?
                .unwrap_or(false),
            deadline: milliseconds.and_then(after),
            template: inner
                .take_as::<Vec<Value>>("template", "choir.template")?
                .map(|pieces| pieces.into_iter().map(piece).collect())
                .transpose()?,
        };
        match inner.0.keys().next() {
            None => Ok(ours),
            Some(name) => {
                let reason = format!(
                    "there is no setting {:?}",
                    name.chars().take(64).collect::<String>()
                );
                Err(BadField::new("choir", reason))
            }
        }
    }
}

/// A piece of a template: given text, or the number of tokens to make.
fn piece(value: Value) -> Result<Piece, BadField> {
    let length = value.as_u64().and_then(|length| u32::try_from(length).ok());
    match (value, length) {
        (Value::String(text), _) => Ok(Piece::Text(text)),
        (_, Some(length)) => Ok(Piece::Hole(length)),
        _ => Err(BadField::new(
            "choir.template",
            "its pieces are strings, and numbers of tokens to make",
        )),
    }
}

fn named<T: Copy>(
    given: Option<String>,
    field: &'static str,
    names: &[(&str, T)],
) -> Result<Option<T>, BadField> {
    let Some(given) = given else { return Ok(None) };
    let found = names.iter().find(|(name, _)| *name == given);
    let known = || {
        let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        BadField::new(field, format!("it is one of {}", known.join(", ")))
    };
    found.map(|(_, value)| Some(*value)).ok_or_else(known)
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
