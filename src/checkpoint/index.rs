//! `model.safetensors.index.json`: which shard each tensor is in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::Unreadable;

#[derive(Debug, Deserialize)]
pub(super) struct Index {
    weight_map: Map,
}

/// Names to files, no name twice.
#[derive(Debug)]
struct Map(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Map;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tensors and the files that they are in")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Map, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((name, file)) = entries.next_entry::<String, String>()? {
                    if let Some(before) = map.insert(name, file) {
                        let error =
                            format!("a tensor is named twice, the first time in {before:?}");
                        return Err(A::Error::custom(error));
                    }
                }
                Ok(Map(map))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Index {
    /// Refuses files outside the index's folder.
    pub fn parse(text: &[u8]) -> Result<Self, Unreadable> {
        super::foreign::pointer_or_page(text)?;
        let index: Index = serde_json::from_slice(text).map_err(|error| Unreadable::Index {
            detail: error.to_string(),
        })?;
        if index.weight_map.0.is_empty() {
            let detail = "it names no tensor".to_owned();
            return Err(Unreadable::Index { detail });
        }
        let outside = |shard: &&str| {
            let mut parts = Path::new(shard).components();
            // On every system, whatever it separates folders with.
            let plain =
                matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
            !plain || shard.contains(['/', '\\']) || shard.chars().any(char::is_control)
        };
        let found = index.shards().into_iter().find(outside).map(str::to_owned);
        match found {
            Some(shard) => Err(Unreadable::Outside { shard }),
            None => Ok(index),
        }
    }

    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.0.values().map(String::as_str).collect()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weight_map.0.keys().map(String::as_str)
    }

    pub fn shard_of(&self, tensor: &str) -> Option<&str> {
        self.weight_map.0.get(tensor).map(String::as_str)
    }
}

/// Whether a file is called one of several: `model-00001-of-00004.safetensors`.
pub(super) fn is_shard(name: &str) -> bool {
    let numbers = name.strip_suffix(".safetensors").and_then(|name| {
        let (first, count) = name.rsplit_once("-of-")?;
        let (_, number) = first.rsplit_once('-')?;
        Some((number.parse::<usize>().ok()?, count.parse::<usize>().ok()?))
    });
    numbers.is_some_and(|(_, count)| count > 1)
}
