//! The names a variant may have.

use super::Error;

/// The name of the base itself; no variant has it.
pub const BASE: &str = "base";

const LONGEST: usize = 64;

/// A name has 1 to 64 letters (a–z, A–Z), digits, underscores and hyphens, the first a letter or a digit; it is not
/// "base". So it is a safe file name everywhere.
pub fn check_name(name: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let reason = match name.as_bytes() {
        [] => "it is empty",
        bytes if bytes.len() > LONGEST => "it is longer than 64 bytes",
        bytes if !bytes.iter().copied().all(allowed) => {
            "only letters a-z, digits, underscores and hyphens are allowed"
        }
        [first, ..] if !first.is_ascii_alphanumeric() => {
            "the first character must be a letter or a digit"
        }
        _ if name.eq_ignore_ascii_case(BASE) => "it is the name of the base",
        _ => return Ok(()),
    };
    Err(Error::BadName {
        name: shown(name),
        reason,
    })
}

/// What an error shows of a name that may be anything.
pub fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(LONGEST).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
}
