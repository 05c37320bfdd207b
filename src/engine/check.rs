//! From a request to a sequence that may wait: everything a client can get wrong is refused here.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::pages;
use super::score::Scorer;
use super::sequence::{Scoring, Sequence, Text, Work};
use super::text::TextStream;
use super::{EngineConfig, Error, Event, Generation, Request, Sampling, Score, ScoreRequest};
use crate::model::{DitConfig, Process};
use crate::sampler::{self, BlockSampler, BlockSettings, LastBlock, Sampler};

/// Most stop strings of a request, and bytes of each.
pub const MAX_STOPS: usize = 16;
pub const MAX_STOP_BYTES: usize = 256;
/// Most stop ids of a request.
pub const MAX_STOP_IDS: usize = 256;

/// A sequence for text, and the receiving end of its events.
pub fn text(
    config: &EngineConfig,
    lease: Arc<Generation>,
    request: Request,
) -> Result<(Sequence, mpsc::Receiver<Event>), Error> {
    let mix = lease.mix(&request.mix)?;
    let seed = request.seed.unwrap_or_else(fresh_seed);
    if request.prompt.is_empty() {
        return Err(bad("prompt", "it is empty"));
    }
    if request.prompt.len() > config.max_prompt {
        return Err(Error::PromptTooLong {
            tokens: request.prompt.len(),
            limit: config.max_prompt,
        });
    }
    if !(1..=config.max_tokens).contains(&request.max_tokens) {
        let reason = format!("{} is not within 1 and {}", request.max_tokens, config.max_tokens);
        return Err(bad("max_tokens", reason));
    }
    if request.stop.len() > MAX_STOPS || request.stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        return Err(bad(
            "stop",
            format!("at most {MAX_STOPS} strings of at most {MAX_STOP_BYTES} bytes"),
        ));
    }
    if request.stop.iter().any(String::is_empty) {
        return Err(bad("stop", "one of the strings is empty"));
    }
    if request.stop_ids.len() > MAX_STOP_IDS {
        return Err(bad("stop_ids", format!("at most {MAX_STOP_IDS} ids")));
    }
    let settings = block_settings(config, lease.denoiser.config(), lease.tokenizer.end_of_text(), &request)?;
    let block_size = settings.block_size;
    let sampler = BlockSampler::new(settings, &request.prompt, seed).map_err(from_sampler)?;

    // The last block is never written to the cache.
    let written = (request.prompt.len() + request.max_tokens - 1) / block_size * block_size;
    let span = lease.denoiser.config().model_length + prefill_chunk(config, block_size);
    let blocks = request.max_tokens.div_ceil(block_size) + 1;
    let steps = if request.steps_wanted { request.max_tokens } else { 0 };
    let (sender, events) = mpsc::channel(blocks + steps + 2);
    let work = Work::Text(Box::new(Text {
        sampler: Sampler::Block(sampler),
        stream: TextStream::new(lease.tokenizer.clone(), request.stop),
        prompt_tokens: request.prompt.len(),
        delivered: 0,
        steps_wanted: request.steps_wanted,
        events: sender,
    }));
    let pages_needed = pages::needed(written, span, config.page_tokens);
    let sequence = Sequence::new(lease, mix, seed, request.deadline, pages_needed, work);
    Ok((sequence, events))
}

/// A sequence for a score, and the receiving end of its reply.
pub fn score(
    config: &EngineConfig,
    lease: Arc<Generation>,
    request: ScoreRequest,
) -> Result<(Sequence, oneshot::Receiver<Result<Score, Error>>), Error> {
    let mix = lease.mix(&request.mix)?;
    let seed = request.seed.unwrap_or_else(fresh_seed);
    let written = request.tokens.len();
    if written > config.max_prompt + config.max_tokens {
        return Err(Error::PromptTooLong {
            tokens: written,
            limit: config.max_prompt + config.max_tokens,
        });
    }
    let network = lease.denoiser.config();
    let chunk = prefill_chunk(config, network.block().unwrap_or(1));
    let scorer = Scorer::new(network, request.tokens, request.given, request.samples, chunk, seed)?;
    // Clean blocks are written while copies of the chunk before them are still evaluated.
    let span = network.model_length + 2 * chunk;
    let (sender, reply) = oneshot::channel();
    let work = Work::Score(Box::new(Scoring {
        scorer,
        reply: Some(sender),
        nats_per_token: None,
    }));
    let pages_needed = pages::needed(written, span, config.page_tokens);
    let sequence = Sequence::new(lease, mix, seed, request.deadline, pages_needed, work);
    Ok((sequence, reply))
}

/// Refuses what has no time left, and what could never start.
pub fn can_start(sequence: &Sequence, pages_total: usize) -> Result<(), Error> {
    if let Some(error) = sequence.given_up(Instant::now()) {
        return Err(error);
    }
    let needed = sequence.pages_needed;
    if needed > pages_total {
        return Err(Error::OutOfPages {
            needed,
            total: pages_total,
        });
    }
    Ok(())
}

/// Refuses sampling settings that no request to this network could have.
pub fn sampling(network: &DitConfig, sampling: &Sampling) -> Result<(), Error> {
    let request = Request {
        mix: Vec::new(),
        prompt: vec![0],
        max_tokens: 1,
        sampling: sampling.clone(),
        stop: Vec::new(),
        stop_ids: Vec::new(),
        seed: None,
        steps_wanted: false,
        deadline: None,
    };
    let settings = block_settings(&EngineConfig::default(), network, None, &request)?;
    BlockSampler::new(settings, &request.prompt, 0)
        .map(drop)
        .map_err(from_sampler)
}

fn block_settings(
    config: &EngineConfig,
    network: &DitConfig,
    end_of_text: Option<u32>,
    request: &Request,
) -> Result<BlockSettings, Error> {
    let (Process::Absorbing, Some(mask_id)) = (network.process(), network.mask_id()) else {
        return Err(bad("process", "only the absorbing process is served"));
    };
    let total = request.prompt.len() + request.max_tokens;
    let block_size = network.block().unwrap_or(total);
    if network.block().is_none() && total > network.model_length {
        let reason = format!(
            "prompt and new tokens are {total}, and at most {} fit",
            network.model_length
        );
        return Err(bad("max_tokens", reason));
    }
    let asked = request.sampling.block_size.unwrap_or(block_size);
    if asked != block_size {
        return Err(bad(
            "block_size",
            format!("it is {asked}, but this network's is {block_size}"),
        ));
    }
    let mut stop_ids = request.stop_ids.clone();
    stop_ids.extend(end_of_text.filter(|&id| id < mask_id));
    Ok(BlockSettings {
        block_size,
        max_tokens: request.max_tokens,
        predictor: request.sampling.predictor,
        temperature: request.sampling.temperature,
        nucleus_p: request.sampling.nucleus_p,
        top_k: request.sampling.top_k,
        stop_ids,
        mask_id,
        vocab_size: network.vocab_size,
        time_conditioned: network.time_conditioned(),
        prefill_chunk: prefill_chunk(config, block_size),
        last_block: LastBlock::Whole,
    })
}

/// Clean tokens to one evaluation: half a step, in whole blocks, so that rows being denoised always find room beside them.
fn prefill_chunk(config: &EngineConfig, block_size: usize) -> usize {
    (config.step_tokens / 2 / block_size).max(1) * block_size
}

fn bad(field: &'static str, reason: impl Into<String>) -> Error {
    Error::BadField {
        field,
        reason: reason.into(),
    }
}

fn from_sampler(error: sampler::Error) -> Error {
    bad(error.field(), error.to_string())
}

/// 64 bits from the operating system, through the keys of a fresh hasher.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(Instant::now())
}
