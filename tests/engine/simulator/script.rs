//! What can happen, and scripts of it.

use choir::rng::{Key, Stream};
use serde::{Deserialize, Serialize};

use super::{CLIENTS, VARIANTS};

/// One event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Happens {
    Arrives {
        variant: u32,
        parts: usize,
        batch: bool,
        client: u32,
        /// Which of a few prompts, and how much of it.
        prompt: (u32, usize),
        blocks: usize,
        steps: u32,
        within: Option<u64>,
    },
    /// One of those that are there, by number modulo how many.
    Leaves(usize),
    StopsReading(usize),
    ReadsAgain(usize),
    Publishes,
    Removes(u32),
    /// The next evaluation fails.
    Fails,
    /// Milliseconds.
    Passes(u64),
    Steps,
}

/// Everything that can happen, from a seed.
pub fn everything(seed: u64, length: usize) -> Vec<Happens> {
    let mut chance = Stream::new(Key::derive(&[b"script", &seed.to_le_bytes()]));
    let event = |_| match chance.below(100) {
        0..20 => Happens::Arrives {
            variant: chance.below(VARIANTS as usize) as u32,
            parts: [1, 1, 1, 3][chance.below(4)],
            batch: chance.below(4) == 0,
            client: chance.below(CLIENTS as usize) as u32,
            prompt: (chance.below(3) as u32, 1 + chance.below(40)),
            blocks: 1 + chance.below(8),
            steps: 1 + chance.below(5) as u32,
            within: (chance.below(3) == 0).then(|| 1 + chance.below(300) as u64),
        },
        20..28 => Happens::Leaves(chance.below(64)),
        28..36 => Happens::StopsReading(chance.below(64)),
        36..48 => Happens::ReadsAgain(chance.below(64)),
        48..50 => Happens::Publishes,
        50 => Happens::Removes(chance.below(VARIANTS as usize) as u32),
        51..53 => Happens::Fails,
        53..55 => Happens::Passes(chance.below(100) as u64),
        _ => Happens::Steps,
    };
    (0..length).map(event).collect()
}

/// Interactive requests of all variants for more than there is, which nobody leaves.
pub fn greed(seed: u64, length: usize) -> Vec<Happens> {
    let mut chance = Stream::new(Key::derive(&[b"greed", &seed.to_le_bytes()]));
    let event = |_| match chance.below(5) {
        0..3 => Happens::Arrives {
            variant: chance.below(VARIANTS as usize) as u32,
            parts: 1,
            batch: false,
            client: chance.below(CLIENTS as usize) as u32,
            prompt: (chance.below(3) as u32, 1 + chance.below(40)),
            blocks: 1 + chance.below(8),
            steps: 1 + chance.below(5) as u32,
            within: None,
        },
        _ => Happens::Steps,
    };
    (0..length).map(event).collect()
}
