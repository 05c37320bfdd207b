//! What a variant keeps of its fine-tune's gain: measured before it is committed, on the instance that would serve it.
//!
//! ```text
//! share = (base − kept) / (base − fine-tune)      each the NELBO of a held-out text, in nats per token
//! ```
//!
//! All three are evaluated under the variant's own process, with the same noise. The fine-tune is read from a bank that it has
//! to itself, in bf16.

use super::{Error, Workshop};
use crate::engine::{
    self, Engine, EngineConfig, EngineHandle, Generation, Score, ScoreReply, ScoreRequest,
};
use crate::store::Share;
use crate::superposition::Digest;

/// The variants of a generation that is made to measure with.
pub(super) const BASE: &str = "none";
pub(super) const KEPT: &str = "kept";
pub(super) const FINE_TUNE: &str = "whole";

/// Noise levels to a block.
const SAMPLES: usize = 4;
/// Network evaluations that an addition may take for this, all three sets of weights together.
const MOST_EVALUATIONS: usize = 1 << 14;
/// Nats per token that a fine-tune must have gained before a share of it means anything.
const LEAST_GAIN: f64 = 1e-3;
/// Bytes of a text, at most.
pub(super) const LONGEST_TEXT: usize = 1 << 16;
const CACHE_BYTES: usize = 32 << 20;

/// Refuses what cannot be asked for.
pub(super) fn check(least: Option<f32>, text: Option<&str>) -> Result<(), Error> {
    let bad = |field, reason: String| Err(Error::BadField { field, reason });
    match (least, text) {
        (Some(least), _) if !(0.0..=1.0).contains(&least) => {
            bad("min_share", format!("it is {least}, not within 0 and 1"))
        }
        (_, Some(text)) if text.trim().is_empty() => bad("check_text", "it is empty".into()),
        (_, Some(text)) if text.len() > LONGEST_TEXT => bad(
            "check_text",
            format!("it has {} bytes, more than {LONGEST_TEXT}", text.len()),
        ),
        _ => Ok(()),
    }
}

/// Refuses a variant that keeps too little, or of which nobody knows.
pub(super) fn enforce(name: &str, least: Option<f32>, share: Option<&Share>) -> Result<(), Error> {
    match (least, share) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(Error::BadField {
            field: "min_share",
            reason: "no file says what the variant keeps; give a check_text to measure it on"
                .into(),
        }),
        (Some(least), Some(found)) if found.share < least => Err(Error::ShareBelow {
            name: name.to_owned(),
            share: found.share,
            least,
        }),
        _ => Ok(()),
    }
}

/// Measures on `generation`, which has the three variants named above.
///
/// # Errors
/// `BadField` for a text that takes too many evaluations, or on which the fine-tune gains nothing; an engine's.
pub(super) fn measure(generation: Generation, text: &str) -> Result<Share, Error> {
    let pieces = pieces(&generation, text)?;
    let engine_config = EngineConfig {
        queue: 3 * pieces.len(),
        kv_bytes: CACHE_BYTES,
        max_prompt: LONGEST_TEXT + 1,
        threads: Workshop::threads(),
        prefix_reuse: false,
        ..EngineConfig::default()
    };
    let unmeasured = |error: engine::Error| Error::Unmeasured {
        reason: error.to_string(),
    };
    let measured = Workshop::aside(|| {
        let engine = Engine::start(engine_config, generation)?;
        let of = |name| nats_per_token(&engine, name, &pieces);
        Ok((of(BASE)?, of(KEPT)?, of(FINE_TUNE)?))
    });
    let (base, kept, fine_tune) = measured.map_err(unmeasured)?;
    let gain = base - fine_tune;
    if gain.is_nan() || gain < LEAST_GAIN {
        return Err(Error::BadField {
            field: "check_text",
            reason: format!(
                "the fine-tune gains {gain:.4} nats per token on it, too little to measure a share of"
            ),
        });
    }
    Ok(Share {
        share: ((base - kept) / gain) as f32,
        method: format!(
            "held-out NELBO as served, {SAMPLES} noise levels to a block; the fine-tune gains {gain:.3} nats per token"
        ),
        text: Digest::of(text.as_bytes()),
    })
}

/// The text in pieces that each fit one request; the first token of each begins a text and is not scored.
fn pieces(generation: &Generation, text: &str) -> Result<Vec<Vec<u32>>, Error> {
    let tokens = generation.tokenizer.encode(text);
    let tokens = tokens.map_err(|error| Error::BadField {
        field: "check_text",
        reason: error.to_string(),
    })?;
    let (network, facts) = (generation.denoiser.facts(), generation.variants.get(KEPT));
    let block = facts.and_then(|facts| facts.regime.block);
    let length = match block {
        Some(_) => tokens.len(),
        None => network.context - 1,
    };
    let begin = generation.tokenizer.begin(); // of a text
    let piece = |tokens: &[u32]| begin.into_iter().chain(tokens.iter().copied()).collect();
    let pieces: Vec<Vec<u32>> = tokens.chunks(length.max(1)).map(piece).collect();
    let blocks = |piece: &Vec<u32>| block.map_or(1, |block| piece.len().div_ceil(block));
    let evaluations = 3 * SAMPLES * pieces.iter().map(blocks).sum::<usize>();
    if evaluations > MOST_EVALUATIONS {
        return Err(Error::BadField {
            field: "check_text",
            reason: format!(
                "it takes {evaluations} evaluations, more than {MOST_EVALUATIONS}: give a shorter one, or measure when the variant is packed"
            ),
        });
    }
    Ok(pieces)
}

fn nats_per_token(
    engine: &EngineHandle,
    variant: &str,
    pieces: &[Vec<u32>],
) -> Result<f64, engine::Error> {
    let given = usize::from(engine.generation().tokenizer.begin().is_some());
    let ask = |tokens: &Vec<u32>| {
        engine.score(ScoreRequest {
            mix: vec![(variant.to_owned(), 1.0)].into(),
            tokens: tokens.clone(),
            given,
            samples: SAMPLES,
            seed: Some(0),
            deadline: None,
            client: None,
        })
    };
    let asked = pieces.iter().map(ask).collect::<Result<Vec<_>, _>>()?;
    let (mut nats, mut count) = (0.0, 0);
    for reply in asked {
        let score = receive(reply)?;
        nats += score.nats_per_token * score.tokens as f64;
        count += score.tokens;
    }
    Ok(nats / count.max(1) as f64)
}

fn receive(reply: ScoreReply) -> Result<Score, engine::Error> {
    reply.blocking_recv().map_err(|_| engine::Error::Stopped)?
}
