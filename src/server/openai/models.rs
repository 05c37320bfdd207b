//! `GET /v1/models`: the base and its variants.

use super::{OpenAi, json};
use crate::catalog::VariantInfo;
use crate::engine::BASE;
use crate::model::{Process, Regime};
use crate::server::failure::Failure;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};
use tonic::Status;

pub async fn list(State(openai): State<OpenAi>) -> Response {
    let variants = openai.catalog.list();
    let models: Vec<Value> = std::iter::once(openai.base())
        .chain(variants.iter().map(variant))
        .collect();
    json(&json!({"object": "list", "data": models}))
}

pub async fn one(
    State(openai): State<OpenAi>,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    if name == BASE {
        return Ok(json(&openai.base()));
    }
    let found = openai.catalog.get(&name).map_err(Status::from)?;
    Ok(json(&variant(&found)))
}

impl OpenAi {
    fn base(&self) -> Value {
        let generation = self.requests.engine().generation();
        let regime = &generation.denoiser.facts().regime;
        let mut ours = process(regime);
        ours["chat"] = generation.tokenizer.has_chat().into();
        model(BASE, self.since, ours)
    }
}

fn model(name: &str, created: u64, ours: Value) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "choir", "choir": ours})
}

/// No paths of the server: a client of any role sees this.
fn variant(info: &VariantInfo) -> Value {
    let mut ours = process(&info.regime);
    ours["base"] = BASE.into();
    ours["scale"] = info.scale.into();
    ours["banks"] = json!(info.banks);
    ours["cosine"] = info.cosine.into();
    model(&info.name, info.added, ours)
}

fn process(regime: &Regime) -> Value {
    let process = match regime.process {
        Process::Absorbing => "absorbing",
        Process::Uniform => "uniform",
    };
    json!({"process": process, "block_size": regime.block})
}
