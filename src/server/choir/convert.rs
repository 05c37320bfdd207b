//! Between the wire and the domain, both ways. Ranges are the engine's to check; here is only what the wire can say
//! and the domain cannot.

mod sampling;

pub use sampling::{choice, kappa_to_wire, path, process, profile_to_wire, sampling_to_wire};

use crate::catalog::{Stage, VariantInfo};
use crate::engine::{self, Event, Priority, Reason};
use crate::model::Process;
use crate::model::tokenizer::{Message, Role};
use crate::pb;
use crate::server::status::BadField;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

/// `GenerateRequest.max_tokens` where it is unset.
pub const DEFAULT_MAX_TOKENS: u32 = 128;
/// `ScoreRequest.samples` where it is unset.
pub const DEFAULT_SAMPLES: u32 = 4;

/// How much earlier than the client's a deadline is at most.
const EARLIER: Duration = Duration::from_millis(100);

/// Names and weights; a weight that is unset is 1.
pub fn mix(parts: Vec<pb::VariantWeight>) -> Vec<(String, f32)> {
    parts
        .into_iter()
        .map(|part| (part.name, part.weight.unwrap_or(1.0)))
        .collect()
}

/// Messages of a conversation at most.
const MOST_MESSAGES: usize = 1024;

/// A conversation that somebody is to answer.
///
/// # Errors
/// A message without content or of a role that there is not, none to answer, or too many.
pub fn messages(wire: Vec<pb::Message>) -> Result<Vec<Message>, BadField> {
    let bad = |reason: String| BadField::new("messages", reason);
    if wire.len() > MOST_MESSAGES {
        return Err(bad(format!("there are more than {MOST_MESSAGES}")));
    }
    if wire.last().map(|message| message.role()) == Some(pb::Role::Assistant) {
        return Err(bad(
            "the last one is the assistant's: there is nothing to answer".into(),
        ));
    }
    let message = |(at, message): (usize, pb::Message)| {
        if message.content.is_empty() {
            return Err(bad(format!("message {at} is empty")));
        }
        let role = match pb::Role::try_from(message.role) {
            Ok(pb::Role::System) => Role::System,
            Ok(pb::Role::User) => Role::User,
            Ok(pb::Role::Assistant) => Role::Assistant,
            _ => return Err(bad(format!("message {at} has no role that is known here"))),
        };
        let content = message.content;
        Ok(Message { role, content })
    };
    wire.into_iter().enumerate().map(message).collect()
}

/// Metadata in which a proxy in front of the server says who asks.
pub const CLIENT_ID: &str = "choir-client-id";
/// Bytes of it at most.
const LONGEST_CLIENT_ID: usize = 128;

/// Who asks: where `trusted`, what the metadata say, if anything; else the address of the other end of the connection, which
/// nobody can make up. Of an IPv6 address that is its first half: whoever has one has all that begin so.
///
/// # Errors
/// A client id that is empty, too long or not printable ASCII.
pub fn client<T>(request: &tonic::Request<T>, trusted: bool) -> Result<Option<Arc<str>>, BadField> {
    let address = || Some(of_address(request.remote_addr()?.ip()).into());
    let Some(id) = request.metadata().get(CLIENT_ID).filter(|_| trusted) else {
        return Ok(address());
    };
    match id.to_str() {
        Ok(id) if (1..=LONGEST_CLIENT_ID).contains(&id.len()) => {
            Ok(Some(format!("id {id}").into()))
        }
        _ => {
            let reason = format!("it is not 1 to {LONGEST_CLIENT_ID} bytes of printable ASCII");
            Err(BadField::new(CLIENT_ID, reason))
        }
    }
}

fn of_address(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            format!("{}/64", Ipv6Addr::from_bits(network))
        }
    }
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

/// Metadata in which a call says how long it may take.
const TIMEOUT: &str = "grpc-timeout";
/// Digits of it at most.
const TIMEOUT_DIGITS: usize = 8;

/// When a call's `grpc-timeout` ends, less a sixteenth (at most `EARLIER`): an answer takes time to travel, and tonic,
/// on both sides, calls its own end of that time CANCELLED. `None` where it has none.
///
/// # Errors
/// One that is not one to eight digits and a unit.
pub fn deadline(metadata: &MetadataMap) -> Result<Option<Instant>, BadField> {
    let Some(value) = metadata.get(TIMEOUT) else {
        return Ok(None);
    };
    let duration = value.to_str().ok().and_then(timeout).ok_or_else(|| {
        let reason = "it is not one to eight digits and one of H, M, S, m, u and n";
        BadField::new(TIMEOUT, reason)
    })?;
    Ok(Instant::now().checked_add(duration - (duration / 16).min(EARLIER)))
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let all = digits.bytes().all(|byte| byte.is_ascii_digit());
    if !all || !(1..=TIMEOUT_DIGITS).contains(&digits.len()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
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
        cosine: info.cosine,
        relative_error: info.relative_error,
        source: info.source,
        delta_digest: info.delta_digest,
        archived: info.archived,
        added_unix: info.added,
    }
}

/// Refusals on the wire.
pub fn refused(refused: engine::Refused) -> pb::Refused {
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
pub fn stage(stage: Stage) -> pb::AddStage {
    match stage {
        Stage::Reading => pb::AddStage::Reading,
        Stage::Comparing => pb::AddStage::Comparing,
        Stage::Accumulating => pb::AddStage::Accumulating,
        Stage::Measuring => pb::AddStage::Measuring,
        Stage::Writing => pb::AddStage::Writing,
        Stage::Publishing => pb::AddStage::Publishing,
    }
}

/// A count that fits 32 bits by the engine's limits.
pub fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_is_digits_and_a_unit_or_refused() {
        for (text, expected) in [
            ("20S", Some(Duration::from_secs(20))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("5m", Some(Duration::from_millis(5))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("20", None),
            ("+2S", None),
            ("-2S", None),
            ("2.5S", None),
            ("123456789S", None),
            ("20s", None),
            ("20 S", None),
            ("2\u{fc}", None),
        ] {
            assert_eq!(timeout(text), expected, "{text:?}");
        }
        let mut metadata = MetadataMap::new();
        assert_eq!(deadline(&metadata), Ok(None));
        metadata.insert(TIMEOUT, "soon".parse().expect("ASCII"));
        assert_eq!(deadline(&metadata).expect_err("refused").field, TIMEOUT);
    }

    #[test]
    fn client_is_its_address_and_of_ipv6_the_network() {
        for (address, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ] {
            assert_eq!(of_address(address.parse().expect("address")), expected);
        }
    }
}
