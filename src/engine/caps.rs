//! How many requests of a variant and of a client are in the engine, waiting and running together.

use std::collections::BTreeMap;
use std::sync::Arc;

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
    counts: BTreeMap<Key, usize>,
}

/// What is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    pub capped: Capped,
    pub count: usize,
    pub limit: usize,
}

impl Caps {
    pub fn new(per_variant: Option<usize>, per_client: Option<usize>) -> Self {
        Caps {
            per_variant,
            per_client,
            counts: BTreeMap::new(),
        }
    }

    /// What is counted of a request, and how many there may be.
    fn limits(
        &self,
        variant: &Arc<str>,
        client: Option<&Arc<str>>,
    ) -> impl Iterator<Item = (Key, usize)> + use<> {
        let variant = self
            .per_variant
            .map(|limit| (Key::Variant(variant.clone()), limit));
        let client = client.and_then(|name| Some((Key::Client(name.clone()), self.per_client?)));
        variant.into_iter().chain(client)
    }

    /// Whether there may be one more of this variant, and of this client where it is known.
    pub fn check(&self, variant: &Arc<str>, client: Option<&Arc<str>>) -> Result<(), Full> {
        for (key, limit) in self.limits(variant, client) {
            let count = self.counts.get(&key).copied().unwrap_or(0);
            if count >= limit {
                let capped = match key {
                    Key::Variant(name) => Capped::Variant(name.to_string()),
                    Key::Client(_) => Capped::Client,
                };
                return Err(Full {
                    capped,
                    count,
                    limit,
                });
            }
        }
        Ok(())
    }

    /// One more has come.
    pub fn enter(&mut self, variant: &Arc<str>, client: Option<&Arc<str>>) {
        for (key, _) in self.limits(variant, client) {
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// One that came has left.
    pub fn leave(&mut self, variant: &Arc<str>, client: Option<&Arc<str>>) {
        for (key, _) in self.limits(variant, client) {
            if let Some(count) = self.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&key);
                }
            }
        }
    }

    /// Nobody is counted.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_count_who_came_until_they_leave() {
        let mut caps = Caps::new(Some(2), Some(3));
        let [a, b, c, one] = ["a", "b", "c", "one"].map(Arc::<str>::from);
        let full = |capped, count| {
            Err(Full {
                capped,
                count,
                limit: count,
            })
        };
        caps.enter(&a, Some(&one));
        caps.enter(&a, None);
        assert_eq!(caps.check(&a, None), full(Capped::Variant("a".into()), 2));
        (0..2).for_each(|_| caps.enter(&b, Some(&one)));
        assert_eq!(caps.check(&c, Some(&one)), full(Capped::Client, 3));
        caps.leave(&a, Some(&one));
        assert_eq!(caps.check(&c, Some(&one)), Ok(()));
        caps.leave(&a, None);
        (0..2).for_each(|_| caps.leave(&b, Some(&one)));
        assert!(caps.is_empty());
        let mut none = Caps::new(None, None);
        none.enter(&a, Some(&one));
        assert!(none.is_empty());
    }
}
