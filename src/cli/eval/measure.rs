//! What a set of weights makes of held-out text, by the engine's own score; and what that says.

use crate::engine::{
    Engine, EngineConfig, EngineHandle, Event, Generation, Request, Sampling, ScoreRequest,
};
use crate::model::tokenizer::Tokenizer;
use crate::model::{DitConfig, Place, place};
use crate::train::data::Contexts;
use crate::train::folder::Tensors;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Requests handed in at once, at most.
pub const IN_FLIGHT: usize = 64;
/// Nats per token that a fine-tune must have gained before a share of it means anything.
pub const LEAST_GAIN: f64 = 1e-3;

/// An engine that takes [`IN_FLIGHT`] requests whose streams are read one after the other.
pub fn engine(generation: Generation) -> Result<EngineHandle> {
    let config = EngineConfig {
        queue: IN_FLIGHT,
        unread: usize::MAX,
        ..EngineConfig::default()
    };
    Ok(Engine::start(config, generation)?)
}

/// Weights as a base without variants.
pub fn lone(
    place: &Place,
    config: &DitConfig,
    weights: &Tensors,
    tokenizer: Arc<Tokenizer>,
) -> Result<EngineHandle> {
    let base = place::ResidentBase::new(place, config.architecture()?, weights)?;
    engine(Generation {
        number: 0,
        denoiser: base.instance([], [])?.denoiser,
        tokenizer,
        defaults: Sampling::of(config.process()),
        variants: BTreeMap::new(),
        memory: Vec::new(),
    })
}

/// The NELBO in nats per scored token over texts, each with the number of tokens that are given and not scored; `samples` noise
/// levels to a block. A text's noise depends on its number only.
pub fn nats(
    engine: &EngineHandle,
    mix: &[(String, f32)],
    texts: &[(Vec<u32>, usize)],
    samples: usize,
) -> Result<f64> {
    let (mut sum, mut tokens) = (0.0, 0);
    for (first, part) in (0..).step_by(IN_FLIGHT).zip(texts.chunks(IN_FLIGHT)) {
        let ask = |(index, (tokens, given)): (u64, &(Vec<u32>, usize))| {
            engine.score(ScoreRequest {
                mix: mix.to_vec().into(),
                tokens: tokens.clone(),
                given: *given,
                samples,
                seed: Some(index),
                deadline: None,
                client: None,
            })
        };
        let replies = (first..)
            .zip(part)
            .map(ask)
            .collect::<Result<Vec<_>, _>>()?;
        for reply in replies {
            let score = reply.blocking_recv().context("the engine has stopped")??;
            sum += score.nats_per_token * score.tokens as f64;
            tokens += score.tokens;
        }
    }
    Ok(sum / tokens.max(1) as f64)
}

/// How many of the texts an engine writes to their end, token by token as `sampling` says, where it is given their beginning.
pub fn exact(
    engine: &EngineHandle,
    mix: &[(String, f32)],
    sampling: &Sampling,
    texts: &[(Vec<u32>, usize)],
) -> Result<usize> {
    let mut right = 0;
    for part in texts.chunks(IN_FLIGHT) {
        let ask = |(tokens, given): &(Vec<u32>, usize)| {
            let (given, left) = (tokens[..*given].to_vec(), tokens.len() - given);
            engine.submit(Request {
                mix: mix.to_vec().into(),
                seed: Some(0),
                ..Request::new(given, left, sampling.clone())
            })
        };
        let streams = part.iter().map(ask).collect::<Result<Vec<_>, _>>()?;
        for (mut stream, (tokens, given)) in streams.into_iter().zip(part) {
            let mut answer = Vec::new();
            while let Some(event) = stream.blocking_recv() {
                match event {
                    Event::Block { tokens, .. } => answer.extend(tokens),
                    Event::Failed(error) => return Err(error.into()),
                    _ => {}
                }
            }
            right += usize::from(answer == tokens[*given..]);
        }
    }
    Ok(right)
}

/// One context up to its last scored token, and how many tokens before the first are given.
pub fn text(contexts: &Contexts, index: usize) -> (Vec<u32>, usize) {
    let one = contexts.slice(index..index + 1);
    let scored = |weight: &f32| *weight > 0.0;
    let given = one.importance.iter().position(scored).unwrap_or(0);
    let last = one.importance.iter().rposition(scored);
    (
        one.tokens[..last.map_or(0, |last| last + 1)].to_vec(),
        given,
    )
}

/// The share of the fine-tune's gain that is left: 1 is all of it, 0 none, below 0 worse than the base. `None`
/// where the fine-tune itself gained next to nothing.
pub fn recovered(base: f64, fine_tuned: f64, kept: f64) -> Option<f64> {
    let gain = base - fine_tuned;
    (gain >= LEAST_GAIN).then(|| (base - kept) / gain)
}

/// The mean; `None` of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0usize, 0.0), |(count, sum), value| {
        (count + 1, sum + value)
    });
    (count > 0).then(|| sum / count as f64)
}
