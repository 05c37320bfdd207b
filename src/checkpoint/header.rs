//! What a safetensors file says that it holds: eight bytes of length, then JSON, then the tensors side by side.
//!
//! Checked here and not by the library: a header of any length would be parsed before anything is known of it, a name that is there
//! twice is taken once, and it needs the whole file.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::{Unreadable, foreign};

/// Bytes of the length that a file begins with.
const LENGTH: usize = 8;
/// Bytes of a header at most, and tensors in it: ten times what the largest published shards have.
const LONGEST: usize = 16 << 20;
const MOST_TENSORS: usize = 100_000;
/// What a file is begun to be read with: enough to tell what else it may be.
pub(super) const FIRST: usize = 512;

/// One tensor as the header has it: where it begins and ends, counted from the header's end.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Info {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    #[serde(rename = "data_offsets")]
    pub at: (usize, usize),
}

#[derive(Debug)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, String>,
    /// No name twice.
    pub tensors: Vec<(String, Info)>,
}

/// Bytes of the header of a file that is `length` bytes long and begins with `first`, its length counted.
///
/// # Errors
/// What the file is, where it begins like something else; no room for the header that it says it has.
pub(super) fn header_length(first: &[u8], length: u64) -> Result<usize, Unreadable> {
    foreign(first)?;
    let Some((count, rest)) = first.split_first_chunk::<LENGTH>() else {
        return Err(Unreadable::WrongLength);
    };
    if rest.first().is_some_and(|&byte| byte != b'{') {
        let detail = "it does not begin with a header".to_owned();
        return Err(Unreadable::Malformed { detail });
    }
    match u64::from_le_bytes(*count) {
        count if count.saturating_add(LENGTH as u64) > length => Err(Unreadable::WrongLength),
        count if count > LONGEST as u64 => Err(Unreadable::Malformed {
            detail: format!("a header of {count} bytes is no model's"),
        }),
        count => Ok(count as usize + LENGTH),
    }
}

impl Header {
    /// Reads a header, its eight bytes of length before it, of a file that is `length` bytes long.
    ///
    /// # Errors
    /// Names the tensor that is there twice, does not fit its own bytes, overlaps another, or leaves a hole; and says where the file ends
    /// before the tensors or after them.
    pub fn parse(bytes: &[u8], length: u64) -> Result<Header, Unreadable> {
        let json = bytes.get(LENGTH..).unwrap_or_default();
        let header: Header =
            serde_json::from_slice(json).map_err(|error| Unreadable::Malformed {
                detail: error.to_string(),
            })?;
        header.check(length.saturating_sub(bytes.len() as u64))?;
        Ok(header)
    }

    /// Refuses tensors that are not `data` bytes side by side.
    fn check(&self, data: u64) -> Result<(), Unreadable> {
        let mut names: Vec<&str> = self.tensors.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let tensor = twice[0].to_owned();
            return Err(Unreadable::Twice { tensor });
        }
        let mut placed: Vec<&(String, Info)> = self.tensors.iter().collect();
        placed.sort_unstable_by_key(|(_, info)| info.at);
        let mut end = 0;
        for (tensor, info) in placed {
            let tensor = tensor.clone();
            let (begin, next) = info.at;
            if info
                .bytes()
                .is_none_or(|bytes| begin.checked_add(bytes) != Some(next))
            {
                return Err(Unreadable::Bytes { tensor });
            }
            if begin < end {
                return Err(Unreadable::Overlap { tensor });
            }
            if begin > end {
                return Err(Unreadable::Hole { tensor });
            }
            end = next;
        }
        match (end as u64).cmp(&data) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(Unreadable::WrongLength),
            std::cmp::Ordering::Less => Err(Unreadable::Trailing {
                bytes: data - end as u64,
            }),
        }
    }
}

impl Info {
    /// Bytes of so many elements of this type, where they are whole bytes that can be counted.
    fn bytes(&self) -> Option<usize> {
        let mut sizes = self.shape.iter();
        let elements = sizes.try_fold(1usize, |all, &size| all.checked_mul(size));
        let bits = elements?.checked_mul(self.dtype.bitsize())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Header, A::Error> {
                let (mut metadata, mut tensors) = (None, Vec::new());
                while let Some(name) = entries.next_key::<String>()? {
                    if name == "__metadata__" {
                        if metadata.replace(entries.next_value()?).is_some() {
                            return Err(A::Error::custom("its metadata is there twice"));
                        }
                        continue;
                    }
                    if tensors.len() == MOST_TENSORS {
                        return Err(A::Error::custom("more tensors than any model has"));
                    }
                    // They are shown to people, on terminals.
                    if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                        let error = format!("a tensor is named {name:?}");
                        return Err(A::Error::custom(error));
                    }
                    tensors.push((name, entries.next_value()?));
                }
                Ok(Header {
                    metadata: metadata.unwrap_or_default(),
                    tensors,
                })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
