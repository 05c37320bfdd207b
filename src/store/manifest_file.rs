//! `manifest.json`: the manifest as readable JSON whose first field is the SHA-256 of all the others as they stand
//! in the file, so that no flipped bit goes unnoticed.

use std::io;

use serde::Deserialize;

use super::former::{self, FORMER};
use super::manifest::FORMAT;
use super::{Error, Manifest, Operation, files};
use crate::superposition::Digest;

const START: &[u8] = b"{\n  \"sha256\": \"";
const DIGITS: usize = 64;

pub(super) fn encode(manifest: &Manifest) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec_pretty(manifest).map_err(|error| Error::Io {
        operation: Operation::Write,
        path: files::MANIFEST.into(),
        source: io::Error::from(error),
    })?;
    let fields = json.strip_prefix(b"{").unwrap_or(&json);
    let digest = Digest::of(fields).to_string();
    Ok([START, digest.as_bytes(), b"\",", fields, b"\n"].concat())
}

/// The manifest in such a file, and the format that it was written in.
///
/// # Errors
/// `Corrupt` for what is none or contradicts itself, `Format` for a format that is not known.
pub fn decode(file: &[u8]) -> Result<(Manifest, u32), Error> {
    let corrupt = |detail: String| Error::Corrupt {
        path: files::MANIFEST.into(),
        detail,
    };
    let fields = verified(file).ok_or_else(|| corrupt("its checksum does not fit".to_owned()))?;
    let json = [b"{", fields].concat();
    // The version first: another format has other fields.
    let Version { format } =
        serde_json::from_slice(&json).map_err(|error| corrupt(error.to_string()))?;
    let manifest = match format {
        FORMAT => serde_json::from_slice(&json),
        FORMER => former::decode(&json),
        found => return Err(Error::Format { found }),
    };
    let manifest: Manifest = manifest.map_err(|error| corrupt(error.to_string()))?;
    match manifest.contradiction() {
        Some(detail) => Err(corrupt(detail)),
        None => Ok((manifest, format)),
    }
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// The fields after the checksum, where it is theirs.
fn verified(file: &[u8]) -> Option<&[u8]> {
    let (digits, rest) = file.strip_prefix(START)?.split_at_checked(DIGITS)?;
    let fields = rest.strip_prefix(b"\",")?.strip_suffix(b"\n")?;
    let digest = Digest::parse(std::str::from_utf8(digits).ok()?)?;
    (Digest::of(fields) == digest).then_some(fields)
}
