//! The fields of a request's body, each refused by its name. What nobody knows is ignored, as OpenAI does.

use super::list::list;
use crate::engine::{MAX_STOP_IDS, MAX_STOPS, PredictorKind, Priority, SamplingParams};
use crate::sampler::{Certainty, NoiseRemoval};
use crate::server::failure::Failure;
use crate::server::requests::{MAX_PIECES, Piece};
use crate::server::status::BadField;
use axum::http::StatusCode;
use serde::de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// A JSON object by its fields, each of which is read when it is taken: what nobody takes costs its bytes and no more.
#[derive(Debug, Default)]
pub struct Fields(HashMap<String, Box<RawValue>>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadFields)
    }
}

struct ReadFields;

impl<'de> Visitor<'de> for ReadFields {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Fields, A::Error> {
        let mut fields = HashMap::new();
        while let Some((name, value)) = from.next_entry()? {
            fields.insert(name, value); // of a name that is there twice the last one, as elsewhere
        }
        Ok(Fields(fields))
    }
}

/// What asks for nothing is not longer.
const NOTHING: usize = 256;

impl Fields {
    pub fn read(body: &[u8]) -> Result<Fields, Failure> {
        serde_json::from_slice(body).map_err(|error| {
            let message = format!("the body is not a JSON object: {error}");
            Failure::new(StatusCode::BAD_REQUEST, message)
        })
    }

    /// A field as it is written; `None` where it is missing or null.
    pub fn written(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.0.remove(name).filter(|value| value.get() != "null")
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
        self.take_by(PhantomData, name, path)
    }

    /// The same, read by `seed`.
    pub fn take_by<S: for<'de> DeserializeSeed<'de, Value = T>, T>(
        &mut self,
        seed: S,
        name: &str,
        path: &'static str,
    ) -> Result<Option<T>, BadField> {
        let Some(value) = self.written(name) else {
            return Ok(None);
        };
        let mut written = serde_json::Deserializer::from_str(value.get());
        let read = seed.deserialize(&mut written);
        read.map(Some)
            .map_err(|error| BadField::new(path, said(&error)))
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
        let Some(value) = self.0.get(name).map(|value| value.get()) else {
            return Ok(());
        };
        let read = || serde_json::from_str(value).ok();
        let value = if value.len() > NOTHING { None } else { read() };
        match value {
            Some(value) if value == Value::Null || nothing(&value) => Ok(()),
            _ => Err(BadField::new(name, reason)),
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
        let stop = self.take_by(list(MAX_STOPS).or_one(), "stop", "stop")?;
        Ok(stop.unwrap_or_default())
    }

    /// Ids of tokens to stop at.
    pub fn stop_ids(&mut self) -> Result<Vec<u32>, BadField> {
        let ids = self.take_by(list(MAX_STOP_IDS), "stop_token_ids", "stop_token_ids")?;
        Ok(ids.unwrap_or_default())
    }
}

/// What is wrong with a field, without where in the field that is.
fn said(error: &serde_json::Error) -> String {
    let (text, place) = (
        error.to_string(),
        format!(" at line {} column {}", error.line(), error.column()),
    );
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
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
        let Some(mut inner) = fields.take::<Fields>("choir")? else {
            return Ok(Ours::default());
        };
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
            template: inner.take_by(list::<Piece>(MAX_PIECES), "template", "choir.template")?,
        };
        match inner.0.keys().min() {
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
