//! How many requests of a variant and of a client may be in the engine, waiting and running together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Capped;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Variant(Arc<str>),
    Client(Arc<str>),
}

/// The counts. A variant or client that has nothing in the engine takes no room.
#[derive(Debug, Default)]
pub struct Caps {
    per_variant: Option<usize>,
    per_client: Option<usize>,
    counts: Mutex<BTreeMap<Key, usize>>,
}

/// Counts for one request until it is dropped.
#[derive(Debug)]
pub struct Permit {
    caps: Arc<Caps>,
    keys: Vec<Key>,
}

/// What is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    pub capped: Capped,
    pub count: usize,
    pub limit: usize,
}

impl Caps {
    pub fn new(per_variant: Option<usize>, per_client: Option<usize>) -> Arc<Self> {
        Arc::new(Caps {
            per_variant,
            per_client,
            ..Caps::default()
        })
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<Key, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one more in, of a client where it is known.
    pub fn permit(
        self: &Arc<Self>,
        variant: &Arc<str>,
        client: Option<Arc<str>>,
    ) -> Result<Permit, Full> {
        let variant = self
            .per_variant
            .map(|limit| (Key::Variant(variant.clone()), limit));
        let client = self
            .per_client
            .and_then(|limit| Some((Key::Client(client?), limit)));
        let mut counts = self.counts();
        for (key, limit) in [&variant, &client].into_iter().flatten() {
            let count = counts.get(key).copied().unwrap_or(0);
            if count >= *limit {
                let capped = match key {
                    Key::Variant(name) => Capped::Variant(name.to_string()),
                    Key::Client(_) => Capped::Client,
                };
                let limit = *limit;
                return Err(Full {
                    capped,
                    count,
                    limit,
                });
            }
        }
        let keys: Vec<Key> = [variant, client]
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .collect();
        for key in &keys {
            *counts.entry(key.clone()).or_default() += 1;
        }
        drop(counts);
        let caps = self.clone();
        Ok(Permit { caps, keys })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.caps.counts();
        for key in &self.keys {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_count_until_they_are_dropped() {
        let caps = Caps::new(Some(2), Some(3));
        let (a, b, one): (Arc<str>, Arc<str>, Arc<str>) = ("a".into(), "b".into(), "one".into());
        let full = |capped, count| Full {
            capped,
            count,
            limit: count,
        };
        let mut held = vec![
            caps.permit(&a, Some(one.clone())).unwrap(),
            caps.permit(&a, None).unwrap(),
        ];
        assert_eq!(
            caps.permit(&a, None).unwrap_err(),
            full(Capped::Variant("a".into()), 2)
        );
        held.extend([1, 2].map(|_| caps.permit(&b, Some(one.clone())).unwrap()));
        let c: Arc<str> = "c".into();
        assert_eq!(
            caps.permit(&c, Some(one.clone())).unwrap_err(),
            full(Capped::Client, 3)
        );
        held.remove(0);
        held.push(caps.permit(&c, Some(one)).unwrap());
        drop(held);
        assert!(caps.counts().is_empty());
        assert!(
            Caps::new(None, None)
                .permit(&a, Some(b))
                .unwrap()
                .keys
                .is_empty()
        );
    }
}
