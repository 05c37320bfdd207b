//! From a request to a sequence that may wait: everything a client can get wrong is refused here.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::config::EngineConfig;
use super::error::Error;
use super::generation::{Generation, Resolved};
use super::ledger::{Payer, Tenant};
use super::pages;
use super::request::{Event, Priority, Request, Score, ScoreRequest};
use super::sampling::{Predictor, Sampling};
use super::sequence::Sequence;
use super::stream;
use super::work::{JobKind, ModelJob, ScoreJob, TextJob};
use crate::model::tokenizer::TextStream;
use crate::model::{NetworkFacts, Process, Regime};
use crate::sampler::{
    BlockSampler, BlockSettings, Convention, LastBlock, Sampler, ScoreSettings, Scorer,
    UniformSampler, UniformSettings, choice,
};

/// Most stop strings of a request, and bytes of each.
pub const MAX_STOPS: usize = 16;
pub const MAX_STOP_BYTES: usize = 256;
/// Most stop ids of a request.
pub const MAX_STOP_IDS: usize = 256;

/// A sequence for text, and the receiving end of its events.
pub fn text(
    config: &EngineConfig,
    payer: Arc<Payer>,
    resolved: Resolved,
    request: Request,
    now: Instant,
) -> Result<(Sequence<ModelJob>, mpsc::Receiver<Event>), Error> {
    let (lease, regime) = (&resolved.lease, resolved.regime);
    let parts = resolved.mix.0.len();
    let seed = request.seed.unwrap_or_else(fresh_seed);
    let fixed = request.prompt.len() + request.after.iter().flatten().count();
    if fixed == 0 {
        return Err(match request.after.is_empty() {
            true => Error::bad("prompt", "it is empty"),
            false => Error::bad("template", "it is nothing but holes"),
        });
    }
    if fixed > config.max_prompt {
        return Err(Error::PromptTooLong {
            tokens: fixed,
            limit: config.max_prompt,
        });
    }
    let more = request.after.iter().filter(|token| token.is_none()).count();
    if request.max_tokens == 0 || request.max_tokens.saturating_add(more) > config.max_tokens {
        let holes = request.max_tokens.saturating_add(more);
        let reason = format!("{holes} is not within 1 and {}", config.max_tokens);
        return Err(Error::bad("max_tokens", reason));
    }
    let holes = request.max_tokens + more;
    stops(&request.stop, &request.stop_ids)?;
    let network = &known(lease, regime);
    let total = fixed + holes;
    let ends = resolved.tokenizer().ends();
    let sampler = sampler(config, network, regime, parts, ends, &request, seed)?;
    let block_size = regime.block.unwrap_or(total);

    // The last block is never written to the cache.
    let written = (total - 1) / block_size * block_size;
    let span = network.context + prefill_chunk(config, block_size, parts);
    // A client that says what its text ends at expects it to end before its length.
    let expected = match request.stop.is_empty() && request.stop_ids.is_empty() {
        true => holes,
        false => 1,
    };
    // What a predictor's steps share out.
    let shared_out = match regime.block {
        None if regime.process == Process::Absorbing => {
            request.sampling.block_size.unwrap_or(block_size)
        }
        _ => block_size,
    };
    let predictor = request.sampling.predictor;
    let most_evaluations = predictor.evaluations(holes, shared_out).1;
    affordable(config, "max_tokens", most_evaluations)?;
    let (sender, events) = stream::channel(config.unread);
    let kind = JobKind::Text(Box::new(TextJob {
        sampler,
        stream: TextStream::new(resolved.tokenizer().clone(), request.stop),
        prompt_tokens: request.prompt.len(),
        delivered: 0,
        begun: false,
        steps_wanted: request.steps_wanted,
        evaluations: predictor.evaluations(expected, shared_out).0,
        most_evaluations,
        events: sender,
    }));
    let sequence = Sequence {
        client: request.client,
        deadline: request.deadline,
        ..Sequence::new(
            tenant(payer, request.priority, block_size, &resolved),
            pages::needed(written, span, config.page_tokens),
            now,
            work(resolved, seed, kind),
        )
    };
    Ok((sequence, events))
}

/// Refuses what no request may give to stop at.
pub fn stops(stop: &[String], stop_ids: &[u32]) -> Result<(), Error> {
    if stop.len() > MAX_STOPS || stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        return Err(Error::bad(
            "stop",
            format!("at most {MAX_STOPS} strings of at most {MAX_STOP_BYTES} bytes"),
        ));
    }
    if stop.iter().any(String::is_empty) {
        return Err(Error::bad("stop", "one of the strings is empty"));
    }
    if stop_ids.len() > MAX_STOP_IDS {
        return Err(Error::bad(
            "stop_ids",
            format!("at most {MAX_STOP_IDS} ids"),
        ));
    }
    Ok(())
}

/// Refuses what would take more of the engine than one request may ask for.
fn affordable(config: &EngineConfig, field: &'static str, evaluations: u32) -> Result<(), Error> {
    let limit = config.max_evaluations;
    match evaluations <= limit {
        true => Ok(()),
        false => Err(Error::bad(
            field,
            format!(
                "that may take {evaluations} evaluations of the network, and one request may ask for {limit}"
            ),
        )),
    }
}

/// What a score is heard from.
type Reply = oneshot::Receiver<Result<Score, Error>>;

/// A sequence for a score, and the receiving end of its reply.
pub fn score(
    config: &EngineConfig,
    payer: Arc<Payer>,
    resolved: Resolved,
    request: ScoreRequest,
    now: Instant,
) -> Result<(Sequence<ModelJob>, Reply), Error> {
    let regime = resolved.regime;
    let network = &known(&resolved.lease, regime);
    let seed = request.seed.unwrap_or_else(fresh_seed);
    let written = request.tokens.len();
    let limit = config.max_prompt.saturating_add(config.max_tokens);
    if written > limit {
        return Err(Error::PromptTooLong {
            tokens: written,
            limit,
        });
    }
    let parts = resolved.mix.0.len();
    let chunk = prefill_chunk(config, regime.block.unwrap_or(1), parts);
    let settings = ScoreSettings {
        mask: match regime.process {
            Process::Absorbing => Some(network.mask.ok_or_else(no_mask)?),
            Process::Uniform => None,
        },
        tokens: network.tokens,
        block: regime.block,
        context: network.context,
        time_conditioned: regime.time_conditioned,
        given: request.given,
        samples: request.samples,
        chunk,
    };
    let scorer = Scorer::new(settings, request.tokens, seed)?;
    affordable(config, "samples", scorer.most_evaluations())?;
    // Clean blocks are written while copies of the chunk before them are still evaluated.
    let span = network.context + 2 * chunk;
    let tokens = regime.block.unwrap_or(written);
    let (sender, reply) = oneshot::channel();
    let kind = JobKind::Score(Box::new(ScoreJob {
        scorer,
        step_tokens: config.step_tokens,
        reply: Some(sender),
    }));
    let sequence = Sequence {
        client: request.client,
        deadline: request.deadline,
        ..Sequence::new(
            tenant(payer, Priority::Batch, tokens, &resolved),
            pages::needed(written, span, config.page_tokens),
            now,
            work(resolved, seed, kind),
        )
    };
    Ok((sequence, reply))
}

/// The network as texts know it: of the absorbing process, rows that the tokenizer does not know stand for none.
fn known(lease: &Generation, regime: Regime) -> NetworkFacts {
    let mut network = lease.denoiser.facts().clone();
    if regime.process == Process::Absorbing {
        network.tokens = network.tokens.min(lease.tokenizer.pieces()).max(2);
    }
    network
}

fn work(resolved: Resolved, seed: u64, kind: JobKind) -> ModelJob {
    ModelJob {
        lease: resolved.lease,
        mix: resolved.mix,
        regime: resolved.regime,
        seed,
        kind,
    }
}

/// `tokens`: those of a usual evaluation.
/// Who a request belongs to; a usual evaluation of it takes so many tokens.
pub fn tenant(payer: Arc<Payer>, priority: Priority, tokens: usize, resolved: &Resolved) -> Tenant {
    let parts = resolved.mix.0.len();
    Tenant {
        payer,
        priority,
        parts,
        cost: tokens * parts.max(1),
    }
}

/// Refuses what has no time left, and what could never start.
pub fn can_start(
    sequence: &Sequence<ModelJob>,
    pages_total: usize,
    now: Instant,
) -> Result<(), Error> {
    if sequence.deadline.is_some_and(|deadline| deadline <= now) {
        let waited = std::time::Duration::ZERO;
        return Err(Error::DeadlinePassed { waited });
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

/// Refuses sampling settings that no request to a variant of this network could have.
pub fn sampling(network: &NetworkFacts, regime: Regime, sampling: &Sampling) -> Result<(), Error> {
    let request = Request::new(vec![0], 1, sampling.clone());
    sampler(
        &EngineConfig::default(),
        network,
        regime,
        0,
        &[],
        &request,
        0,
    )
    .map(drop)
}

fn sampler(
    config: &EngineConfig,
    network: &NetworkFacts,
    regime: Regime,
    parts: usize,
    ends: &[u32],
    request: &Request,
    seed: u64,
) -> Result<Sampler, Error> {
    let (prompt, after) = (&request.prompt, &request.after);
    let total = prompt.len() + request.max_tokens + after.len();
    let convention = Convention::of(network.family);
    let whole = match (regime.block, convention.last_block) {
        (Some(block), LastBlock::Whole) => total.next_multiple_of(block),
        _ => total,
    };
    let bounded = regime.block.is_none() || !network.slides;
    if bounded && whole > network.context {
        let field = if after.is_empty() {
            "max_tokens"
        } else {
            "template"
        };
        let reason = format!(
            "given and new tokens are {total}, and at most {} fit",
            network.context
        );
        return Err(Error::bad(field, reason));
    }
    let block_size = regime.block.unwrap_or(total);
    let Sampling {
        predictor,
        block_size: asked,
        temperature,
        nucleus_p,
        top_k,
        certainty,
    } = request.sampling;
    // Where whole texts are denoised by certainty or in order, blocks are the answer's windows.
    let windows = match predictor {
        Predictor::Absorbing(predictor) => regime.block.is_none() && predictor.has_windows(),
        Predictor::Uniform(_) => false,
    };
    let window = asked.filter(|_| windows);
    if let Some(asked) = asked.filter(|asked| !windows && *asked != block_size) {
        return Err(Error::bad(
            "block_size",
            format!("it is {asked}, but this variant's is {block_size}"),
        ));
    }
    let prefill_chunk = prefill_chunk(config, block_size, parts);
    let mut stop_ids = request.stop_ids.clone();
    let known = |id: &&u32| (**id as usize) < network.tokens;
    stop_ids.extend(ends.iter().filter(known));
    let holes = std::iter::repeat_n(None, request.max_tokens);
    let template = || -> Vec<Option<u32>> {
        let prompt = prompt.iter().copied().map(Some);
        prompt.chain(holes).chain(after.iter().copied()).collect()
    };
    let sampler = match (predictor, regime.process, network.mask) {
        (Predictor::Absorbing(predictor), Process::Absorbing, Some(mask_id)) => {
            let rows = network.rows;
            let settings = BlockSettings {
                first_block: regime
                    .block
                    .map_or(0, |block| regime.grid.phase(prompt.len(), block)),
                convention,
                tokens: network.tokens,
                window,
                certainty,
                temperature,
                nucleus_p,
                top_k,
                stop_ids,
                time_conditioned: regime.time_conditioned,
                prefill_chunk,
                ..BlockSettings::new(block_size, request.max_tokens, predictor, mask_id, rows)
            };
            let sampler = match after.is_empty() {
                true => BlockSampler::new(settings, prompt, seed),
                false => BlockSampler::fill(settings, &template(), seed),
            };
            sampler.map(Sampler::Block)
        }
        (Predictor::Uniform(predictor), Process::Uniform, _) => {
            let settings = UniformSettings {
                block_size: regime.block,
                max_tokens: request.max_tokens,
                predictor,
                temperature,
                nucleus_p,
                top_k,
                stop_ids,
                vocab_size: network.tokens,
                time_conditioned: regime.time_conditioned,
                prefill_chunk,
            };
            let sampler = match after.is_empty() {
                true => UniformSampler::new(settings, prompt, seed),
                false => UniformSampler::fill(settings, &template(), seed),
            };
            sampler.map(Sampler::Uniform)
        }
        (_, Process::Absorbing, None) => return Err(no_mask()),
        (_, Process::Absorbing, _) => Err(choice::of_uniform("it")),
        (_, Process::Uniform, _) => Err(choice::of_absorbing("it")),
    };
    Ok(sampler?)
}

fn no_mask() -> Error {
    Error::bad("process", "the network has no mask")
}

/// Clean tokens to one evaluation: half a step, in whole blocks, so that rows being denoised always find room beside them. A row
/// counts once for each part of its mix.
fn prefill_chunk(config: &EngineConfig, block_size: usize, parts: usize) -> usize {
    (config.step_tokens / 2 / parts.max(1) / block_size).max(1) * block_size
}

/// 64 bits from the operating system, through the keys of a fresh hasher.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(Instant::now())
}
