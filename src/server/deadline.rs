//! How long a gRPC client waits.

use super::status::BadField;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

/// How much earlier than the client's a deadline is at most.
const EARLIER: Duration = Duration::from_millis(100);

/// Metadata in which a call says how long it may take.
const TIMEOUT: &str = "grpc-timeout";
/// Digits of it at most.
const TIMEOUT_DIGITS: usize = 8;

/// When a call's `grpc-timeout` ends, less a sixteenth (at most `EARLIER`): an answer takes time to travel, and tonic,
/// on both sides, calls its own end of that time CANCELLED. `None` where it has none.
///
/// # Errors
/// One that is not one to eight digits and a unit.
pub fn of(metadata: &MetadataMap) -> Result<Option<Instant>, BadField> {
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
        assert_eq!(of(&metadata), Ok(None));
        metadata.insert(TIMEOUT, "soon".parse().expect("ASCII"));
        assert_eq!(of(&metadata).expect_err("refused").field, TIMEOUT);
    }
}
