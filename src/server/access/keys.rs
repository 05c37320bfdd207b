//! API keys as an operator writes them: a line a key, `NAME ROLE SECRET [requests=N] [tokens-per-minute=N]`.

use super::AccessRole;
use super::spending::{Allowance, Spending};
use crate::server::reload::Watched;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// Bytes of a secret at least: shorter ones can be guessed.
const SHORTEST: usize = 16;
/// What stands before a secret's digest where the secret itself is not kept.
const HASHED: &str = "sha256:";

/// What is wrong with a list of keys. The line is named and never shown: it holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("line {line}: {reason}")]
    Line { line: usize, reason: String },
    #[error("there is no key in it")]
    None,
}

/// One key.
#[derive(Debug)]
pub struct ApiKey {
    pub name: String,
    pub role: AccessRole,
    digest: [u8; 32],
    pub allowance: Allowance,
    pub spending: Arc<Spending>,
}

/// The keys in force, which may be exchanged for others while requests come.
#[derive(Debug)]
pub struct ApiKeys(RwLock<Arc<Vec<Arc<ApiKey>>>>);

impl ApiKeys {
    /// Reads a list of keys.
    ///
    /// # Errors
    /// The first line that is no key, or names one twice.
    pub fn read(text: &str) -> Result<ApiKeys, KeysError> {
        Ok(ApiKeys(RwLock::new(Arc::new(parse(text, &[])?))))
    }

    /// Puts others in force. What a key of the same name has spent stays spent.
    ///
    /// # Errors
    /// As [`read`](Self::read); the old ones stay in force then.
    pub fn replace(&self, text: &str) -> Result<(), KeysError> {
        let keys = parse(text, &self.in_force())?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    fn in_force(&self) -> Arc<Vec<Arc<ApiKey>>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The key with this secret. Every key is compared, and in constant time, so that time says nothing of any.
    pub fn find(&self, secret: &[u8]) -> Option<Arc<ApiKey>> {
        let keys = self.in_force();
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let (mut found, mut at) = (Choice::from(0), 0u64);
        for (index, key) in keys.iter().enumerate() {
            let same = key.digest.ct_eq(&digest);
            at.conditional_assign(&(index as u64), same);
            found |= same;
        }
        bool::from(found).then(|| keys.get(at as usize).cloned())?
    }
}

/// Keys and the file that they are from.
pub struct KeysFile {
    pub keys: Arc<ApiKeys>,
    pub file: PathBuf,
}

impl Watched for KeysFile {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }

    fn reload(&self) -> Result<(), String> {
        let said = |error: &dyn std::fmt::Display| format!("{}: {error}", self.file.display());
        let text = std::fs::read_to_string(&self.file).map_err(|error| said(&error))?;
        self.keys.replace(&text).map_err(|error| said(&error))
    }
}

fn parse(text: &str, before: &[Arc<ApiKey>]) -> Result<Vec<Arc<ApiKey>>, KeysError> {
    let mut keys: Vec<Arc<ApiKey>> = Vec::new();
    let lines = text.split(['\n', ';']).map(str::trim).enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let bad = |reason: String| KeysError::Line {
            line: index + 1,
            reason,
        };
        let key = key(line, before).map_err(bad)?;
        if keys.iter().any(|other| other.name == key.name) {
            return Err(bad(format!("the name {:?} is given twice", key.name)));
        }
        if keys.iter().any(|other| other.digest == key.digest) {
            return Err(bad("another name has the same secret".to_owned()));
        }
        keys.push(Arc::new(key));
    }
    match keys.is_empty() {
        true => Err(KeysError::None),
        false => Ok(keys),
    }
}

fn key(line: &str, before: &[Arc<ApiKey>]) -> Result<ApiKey, String> {
    let mut words = line.split_whitespace();
    let (Some(name), Some(role), Some(secret)) = (words.next(), words.next(), words.next()) else {
        return Err("a key is NAME ROLE SECRET".to_owned());
    };
    let role = match role {
        "infer" => AccessRole::Infer,
        "admin" => AccessRole::Admin,
        _ => return Err("the role is infer or admin".to_owned()),
    };
    let digest = match secret.strip_prefix(HASHED) {
        Some(digits) => from_hex(digits).ok_or("a SHA-256 is 64 hexadecimal digits")?,
        None if secret.len() < SHORTEST => {
            return Err(format!("a secret has at least {SHORTEST} bytes"));
        }
        None => Sha256::digest(secret).into(),
    };
    let mut allowance = Allowance::default();
    for word in words {
        let (limit, count) = word.split_once('=').ok_or("a limit is NAME=NUMBER")?;
        let count: u32 = count
            .parse()
            .ok()
            .filter(|&count| count > 0)
            .ok_or_else(|| format!("{limit} is a number above 0"))?;
        match limit {
            "requests" => allowance.requests = Some(count as usize),
            "tokens-per-minute" => allowance.tokens_per_minute = Some(count),
            _ => return Err("the limits are requests and tokens-per-minute".to_owned()),
        }
    }
    let old = before.iter().find(|key| key.name == name);
    Ok(ApiKey {
        name: name.to_owned(),
        role,
        digest,
        allowance,
        spending: old.map_or_else(Arc::default, |key| key.spending.clone()),
    })
}

fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn keys_are_found_by_their_secrets_however_they_are_written() {
        let digest = Sha256::digest("another-secret-of-mine");
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            "# who  role  secret\n\nann infer {SECRET} requests=2 tokens-per-minute=600\nops admin sha256:{hex}\n"
        );
        let keys = ApiKeys::read(&text).expect("keys");
        let ann = keys.find(SECRET.as_bytes()).expect("ann");
        assert_eq!((ann.name.as_str(), ann.role), ("ann", AccessRole::Infer));
        let allowance = Allowance {
            requests: Some(2),
            tokens_per_minute: Some(600),
        };
        assert_eq!(ann.allowance, allowance);
        let ops = keys.find(b"another-secret-of-mine").expect("ops");
        assert_eq!((ops.name.as_str(), ops.role), ("ops", AccessRole::Admin));
        for wrong in ["", "0123456789abcdeF", "ann", &hex] {
            assert!(keys.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn keys_that_are_replaced_are_no_keys_any_more() {
        let keys = ApiKeys::read(&format!("a infer {SECRET}")).expect("keys");
        let old = keys.find(SECRET.as_bytes()).expect("a");
        keys.replace("a admin fedcba9876543210; b infer 00000000000000000")
            .expect("others");
        assert!(keys.find(SECRET.as_bytes()).is_none());
        let new = keys.find(b"fedcba9876543210").expect("a");
        assert!(Arc::ptr_eq(&old.spending, &new.spending), "what it spent");
        keys.replace("").expect_err("none");
        assert!(keys.find(b"fedcba9876543210").is_some(), "the last stay");
    }

    #[test]
    fn keys_that_are_none_are_refused_by_line_and_without_their_secret() {
        for bad in [
            "a",
            "a infer",
            "a root 0123456789abcdef",
            "a infer short",
            "a infer sha256:12",
            "a infer 0123456789abcdef requests",
            "a infer 0123456789abcdef requests=0",
            "a infer 0123456789abcdef tokens-per-minute=-1",
            "a infer 0123456789abcdef words=3",
            "a infer 0123456789abcdef\na infer 1123456789abcdef",
            "a infer 0123456789abcdef\nb infer 0123456789abcdef",
        ] {
            let error = ApiKeys::read(bad).expect_err(bad).to_string();
            assert!(error.starts_with("line "), "{bad}: {error}");
            assert!(!error.contains(SECRET), "{bad}: {error}");
        }
        for none in ["", "\n\n", "# nobody"] {
            assert_eq!(ApiKeys::read(none).err(), Some(KeysError::None), "{none:?}");
        }
    }
}
