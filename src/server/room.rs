//! Room for what clients send, in bytes, and for their connections, each of which counts as one: bounded over all of them, and for each
//! one, so that nobody keeps it from the others.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// As [`Caller`](super::access::Caller) has it.
pub type ClientName = Option<Arc<str>>;

/// So many bytes for all clients together. Clones share them.
#[derive(Clone, Debug)]
pub struct Room {
    bytes: u64,
    /// Bytes of one client at most.
    share: u64,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: u64,
    /// By client; those that have some.
    by: BTreeMap<ClientName, u64>,
}

/// What one message or file of a client has of the room, given back when this is dropped.
#[derive(Debug)]
pub struct Held {
    room: Room,
    client: ClientName,
    bytes: u64,
}

/// Whose messages or files leave no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowded {
    /// The client's own.
    Own,
    /// Those of all together.
    All,
}

impl fmt::Display for Crowded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Crowded::Own => "this client's other",
            Crowded::All => "other",
        })
    }
}

impl Taken {
    fn add(&mut self, client: &ClientName, bytes: u64) {
        if bytes > 0 {
            self.bytes += bytes;
            *self.by.entry(client.clone()).or_default() += bytes;
        }
    }
}

impl Room {
    /// One client may have one part in `shares`.
    pub fn new(bytes: u64, shares: u64) -> Self {
        Room {
            bytes,
            share: (bytes / shares).max(1),
            taken: Arc::default(),
        }
    }

    /// Nothing is left half done under this lock, so a poisoned one is as good.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all clients together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of one client at most.
    pub fn share(&self) -> u64 {
        self.share
    }

    /// Nothing yet, for something of this client.
    pub fn of(&self, client: ClientName) -> Held {
        Held {
            room: self.clone(),
            client,
            bytes: 0,
        }
    }
}

impl Held {
    /// Bytes that it has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more.
    ///
    /// # Errors
    /// There is no room for that now; what it has stays as it is.
    pub fn take(&mut self, bytes: u64) -> Result<(), Crowded> {
        let mut taken = self.room.taken();
        let own = taken.by.get(&self.client).copied().unwrap_or(0);
        if own.saturating_add(bytes) > self.room.share {
            return Err(Crowded::Own);
        }
        if taken.bytes.saturating_add(bytes) > self.room.bytes {
            return Err(Crowded::All);
        }
        taken.add(&self.client, bytes);
        self.bytes += bytes;
        Ok(())
    }

    /// Takes more whether or not there is room: from another that is about to give back as much.
    pub fn take_over(&mut self, bytes: u64) {
        self.room.taken().add(&self.client, bytes);
        self.bytes += bytes;
    }

    /// Gives back all but so many bytes.
    pub fn keep(&mut self, bytes: u64) {
        let over = self.bytes.saturating_sub(bytes);
        if over == 0 {
            return;
        }
        self.bytes -= over;
        let mut taken = self.room.taken();
        taken.bytes -= over;
        match taken.by.get(&self.client).map_or(0, |own| own - over) {
            0 => taken.by.remove(&self.client),
            left => taken.by.insert(self.client.clone(), left),
        };
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn clients_have_a_share_each_and_no_more_than_there_is() {
        let room = Room::new(1000, 2);
        let [mut ann, mut also_ann, mut ben, mut eve] =
            ["ann", "ann", "ben", "eve"].map(|name| room.of(Some(name.into())));
        assert_eq!(ann.take(400), Ok(()));
        assert_eq!(also_ann.take(200), Err(Crowded::Own));
        assert_eq!(also_ann.take(100), Ok(()));
        assert_eq!(ben.take(500), Ok(()));
        assert_eq!(eve.take(1), Err(Crowded::All));
        ann.keep(399);
        assert_eq!(eve.take(1), Ok(()));
        drop((ann, also_ann, ben, eve));
        assert!(room.taken().by.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_is_held(steps in prop::collection::vec((0..6_usize, any::<bool>(), 0..400_u64), 0..60)) {
            let room = Room::new(1000, 3);
            let mut all: Vec<Held> = (0..6).map(|one| room.of((one > 1).then(|| format!("{}", one / 2).into()))).collect();
            for (one, takes, bytes) in steps {
                match takes {
                    true => drop(all[one].take(bytes)),
                    false => all[one].keep(bytes),
                }
                let taken = room.taken();
                for pair in all.chunks(2) {
                    let own: u64 = pair.iter().map(Held::bytes).sum();
                    prop_assert!(own <= room.share());
                    prop_assert_eq!(taken.by.get(&pair[0].client).copied().unwrap_or(0), own);
                }
                prop_assert_eq!(taken.by.values().sum::<u64>(), taken.bytes);
                prop_assert!(taken.bytes <= room.bytes());
            }
            drop(all);
            prop_assert_eq!(room.taken().bytes, 0);
        }
    }
}
