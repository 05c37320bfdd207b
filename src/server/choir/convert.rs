//! Between the wire and the domain, both ways. Ranges are the engine's to check; here is only what the wire can say
//! and the domain cannot.

mod sampling;

pub use sampling::{choice, kappa_to_wire, path, process, profile_to_wire, sampling_to_wire};

use crate::catalog::{Added, AdditionStage, Beside, VariantInfo};
use crate::engine::{self, Event, Priority, Reason};
use crate::model::Process;
use crate::model::tokenizer::{ChatRole, Message};
use crate::pb;
use crate::pb::piece::Piece as WirePiece;
use crate::server::requests::{InputText, Piece, RequestInput};
use crate::server::status::BadField;
use crate::store::{Keep, Share};
use crate::superposition::Digest;
use std::time::Duration;

/// Names and weights; a weight that is unset is 1.
pub fn mix(parts: Vec<pb::VariantWeight>) -> Vec<(String, f32)> {
    parts
        .into_iter()
        .map(|part| (part.name, part.weight.unwrap_or(1.0)))
        .collect()
}

/// A conversation that somebody is to answer.
///
/// # Errors
/// A message of a role that there is not.
fn messages(wire: Vec<pb::Message>) -> Result<Vec<Message>, BadField> {
    let message = |(at, message): (usize, pb::Message)| {
        let role = match pb::Role::try_from(message.role) {
            Ok(pb::Role::System) => ChatRole::System,
            Ok(pb::Role::User) => ChatRole::User,
            Ok(pb::Role::Assistant) => ChatRole::Assistant,
            _ => {
                let reason = format!("message {at} has no role that is known here");
                return Err(BadField::new("messages", reason));
            }
        };
        let content = message.content;
        Ok(Message { role, content })
    };
    wire.into_iter().enumerate().map(message).collect()
}

/// What is given: a prompt and perhaps a suffix, or a conversation or a template instead of both.
pub fn given(request: pb::GenerateRequest) -> Result<RequestInput, BadField> {
    if !request.messages.is_empty() {
        let bad = |reason| Err(BadField::new("messages", reason));
        if !request.prompt.is_empty() || request.suffix.is_some() || !request.template.is_empty() {
            return bad("they stand instead of prompt, suffix and template");
        }
        if request.control_tokens {
            return bad("control tokens are the chat template's");
        }
        return Ok(RequestInput::Conversation {
            messages: messages(request.messages)?,
            enable_thinking: request.enable_thinking,
            max_tokens: request.max_tokens,
        });
    }
    if request.enable_thinking.is_some() {
        return Err(BadField::new("enable_thinking", "there are no messages"));
    }
    if request.template.is_empty() {
        return Ok(RequestInput::Prompt {
            prompt: InputText::Written(request.prompt),
            suffix: request.suffix,
            max_tokens: request.max_tokens,
        });
    }
    let bad = |reason| BadField::new("template", reason);
    if !request.prompt.is_empty() || request.suffix.is_some() || request.max_tokens.is_some() {
        return Err(bad("it stands instead of prompt, suffix and max_tokens"));
    }
    let pieces = request.template.into_iter().map(|piece| match piece.piece {
        Some(WirePiece::Text(text)) => Some(Piece::Text(text)),
        Some(WirePiece::Hole(length)) => Some(Piece::Hole(length)),
        None => None,
    });
    let pieces: Option<Vec<Piece>> = pieces.collect();
    let pieces = pieces.ok_or_else(|| bad("one of its pieces is neither text nor hole"))?;
    Ok(RequestInput::Template(pieces))
}

/// The priority of a request.
pub fn priority(wire: i32) -> Result<Priority, BadField> {
    match pb::Priority::try_from(wire) {
        Ok(pb::Priority::Unspecified | pb::Priority::Interactive) => Ok(Priority::Interactive),
        Ok(pb::Priority::Batch) => Ok(Priority::Batch),
        Err(_) => Err(BadField::new(
            "priority",
            format!("there is no number {wire}"),
        )),
    }
}

/// An engine's event on the wire; `mix` is what the request asked for. A failure is an error of the stream.
pub fn event(event: Event, mix: &[(String, f32)]) -> Result<pb::GenerateResponse, engine::Error> {
    use pb::generate_response::Event as Wire;
    let wire = match event {
        Event::Started {
            request_id,
            generation,
            seed,
        } => {
            let part = |(name, weight): &(String, f32)| pb::VariantWeight {
                name: name.clone(),
                weight: Some(*weight),
            };
            Wire::Started(pb::Started {
                request_id,
                mix: mix.iter().map(part).collect(),
                generation,
                seed,
            })
        }
        Event::Step { positions } => {
            let revealed = positions
                .into_iter()
                .map(|one| pb::Revealed {
                    position: small(one.position),
                    token: one.token,
                    text: one.text,
                })
                .collect();
            Wire::Step(pb::Step { revealed })
        }
        Event::Block { text, tokens } => Wire::Block(pb::Block { text, tokens }),
        Event::Finished(summary) => Wire::Finished(pb::Finished {
            reason: match summary.reason {
                Reason::Length => pb::FinishReason::Length,
                Reason::Stop => pb::FinishReason::Stop,
            }
            .into(),
            prompt_tokens: small(summary.prompt_tokens),
            generated_tokens: small(summary.generated_tokens),
            nfe: summary.nfe,
            queue_us: micros(summary.queued),
            compute_us: micros(summary.computed),
        }),
        Event::Failed(error) => return Err(error),
    };
    Ok(pb::GenerateResponse { event: Some(wire) })
}

/// What an addition would have come to, on the wire.
pub fn dry_run(added: Added) -> pb::DryRun {
    pb::DryRun {
        variant: Some(variant(added.variant)),
        disk_bytes: added.disk_bytes,
        memory_bytes: added.memory_bytes,
    }
}

/// How a variant is kept; nothing where the client does not say.
pub fn keep(wire: i32) -> Result<Option<Keep>, BadField> {
    match pb::Keep::try_from(wire) {
        Ok(pb::Keep::Unspecified) => Ok(None),
        Ok(pb::Keep::Coded) => Ok(Some(Keep::Coded)),
        Ok(pb::Keep::Superposed) => Ok(Some(Keep::Superposed)),
        Ok(pb::Keep::LowRank) => Ok(Some(Keep::LowRank)),
        Err(_) => Err(BadField::new(
            "header.keep",
            format!("there is no number {wire}"),
        )),
    }
}

/// The digest of the delta that is to be replaced.
pub fn replaces(text: &str) -> Result<Digest, BadField> {
    let reason = "it is not 64 lower-case hexadecimal digits";
    Digest::parse(text).ok_or_else(|| BadField::new("header.replaces", reason))
}

fn keep_to_wire(keep: Keep) -> pb::Keep {
    match keep {
        Keep::Coded => pb::Keep::Coded,
        Keep::Superposed => pb::Keep::Superposed,
        Keep::LowRank => pb::Keep::LowRank,
    }
}

fn share(share: Share) -> pb::Share {
    pb::Share {
        share: share.share.into(),
        method: share.method,
        text_digest: share.text.to_string(),
    }
}

/// A variant on the wire.
pub fn variant(info: VariantInfo) -> pb::Variant {
    pb::Variant {
        defaults: Some(sampling_to_wire(&info.defaults)),
        process: match info.regime.process {
            Process::Absorbing => pb::Process::Absorbing,
            Process::Uniform => pb::Process::Uniform,
        }
        .into(),
        block_size: info.regime.block.map(small),
        time_conditioning: info.regime.time_conditioned,
        name: info.name,
        seed: info.seed,
        scale: info.scale,
        banks: info.banks,
        keep: keep_to_wire(info.keep).into(),
        bits: info.bits.map(f64::from),
        rates: info.rates,
        bytes: info.bytes,
        share: info.share.map(share),
        cosine: info.cosine.map_or(f64::NAN, f64::from),
        relative_error: info.relative_error.map_or(f64::NAN, f64::from),
        source: info.source,
        delta_digest: info.delta_digest,
        archived: info.archived,
        added_unix: info.added,
        moved: info.moved.map(f64::from),
        same_as: info.same_as,
    }
}

/// What stands beside an upload.
///
/// # Errors
/// A file that is not expected, and a digest that is none.
pub fn beside(wire: Option<pb::Beside>) -> Result<Beside, BadField> {
    let wire = wire.unwrap_or_default();
    let digest = wire.pieces_digest.map(<[u8; 32]>::try_from).transpose();
    let digest = digest.map_err(|_| {
        let reason = "a SHA-256 has 32 bytes";
        BadField::new("header.beside.pieces_digest", reason)
    })?;
    Beside::sent(wire.files, digest.map(Digest::from))
        .map_err(|reason| BadField::new("header.beside", reason))
}

/// Refusals on the wire.
pub fn refused(refused: engine::RefusalCounts) -> pb::Refused {
    pb::Refused {
        queue: refused.queue,
        variant: refused.variant,
        client: refused.client,
        deadline: refused.deadline,
    }
}

/// What a variant has of the engine, on the wire.
pub fn load((name, load): (String, engine::VariantLoad)) -> pb::VariantLoad {
    pb::VariantLoad {
        name,
        weight: load.weight,
        waiting: small(load.waiting),
        running: small(load.running),
        tokens_evaluated: load.service.evaluated,
        tokens_generated: load.service.generated,
    }
}

/// A stage of an addition on the wire.
pub fn stage(stage: AdditionStage) -> pb::AddStage {
    match stage {
        AdditionStage::Reading => pb::AddStage::Reading,
        AdditionStage::Comparing => pb::AddStage::Comparing,
        AdditionStage::Accumulating => pb::AddStage::Accumulating,
        AdditionStage::Measuring => pb::AddStage::Measuring,
        AdditionStage::Writing => pb::AddStage::Writing,
        AdditionStage::Publishing => pb::AddStage::Publishing,
    }
}

/// A count that fits 32 bits by the engine's limits.
pub fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
