//! SHA-256 digests, written as 64 hexadecimal digits.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of all the bytes of `parts`, one after the other.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let hash = Sha256::new();
        let whole = parts
            .into_iter()
            .fold(hash, |hash, part| hash.chain_update(part));
        Digest(whole.finalize().into())
    }

    /// The number and the digest of all the bytes that `reader` has.
    pub fn of_all(mut reader: impl Read) -> io::Result<(u64, Self)> {
        let (mut hash, mut count, mut piece) = (Sha256::new(), 0, vec![0; 1 << 18]);
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return Ok((count, Digest(hash.finalize().into()))),
                Ok(read) => {
                    count += read as u64;
                    hash.update(&piece[..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads 64 lower-case hexadecimal digits; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 || digits.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Some(Digest(bytes))
    }

    /// The first eight bytes, little-endian: a variant's seed where the operator chose none.
    pub fn seed(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text)
            .ok_or_else(|| de::Error::custom("a digest is 64 lower-case hexadecimal digits"))
    }
}

/// The digest of a model's tensors that are not all there at once: name, shape and values of one after another, in order of name.
pub struct TensorDigest(TensorHash);

impl Default for TensorDigest {
    fn default() -> Self {
        TensorDigest(TensorHash::new("choir/tensors/1"))
    }
}

impl TensorDigest {
    pub fn add(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.0.tensor(name, shape);
        self.0.f32s(values);
    }

    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// Hashes tensors one after another, each with its name and shape, so that no two sets of tensors share a digest.
pub(super) struct TensorHash(Sha256);

impl TensorHash {
    pub fn new(purpose: &str) -> Self {
        TensorHash(Sha256::new_with_prefix(purpose))
    }

    /// Starts a tensor; its bytes follow.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.0.update((name.len() as u64).to_le_bytes());
        self.0.update(name);
        self.0.update((shape.len() as u64).to_le_bytes());
        for size in shape {
            self.0.update((*size as u64).to_le_bytes());
        }
    }

    pub fn f32s(&mut self, values: &[f32]) {
        let mut bytes = [0; 4096];
        for chunk in values.chunks(bytes.len() / 4) {
            for (to, value) in bytes.chunks_exact_mut(4).zip(chunk) {
                to.copy_from_slice(&value.to_le_bytes());
            }
            self.0.update(&bytes[..chunk.len() * 4]);
        }
    }

    pub fn i8s(&mut self, values: &[i8]) {
        let mut bytes = [0; 4096];
        for chunk in values.chunks(bytes.len()) {
            for (to, value) in bytes.iter_mut().zip(chunk) {
                *to = value.cast_unsigned();
            }
            self.0.update(&bytes[..chunk.len()]);
        }
    }

    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}
