//! Counter-based random words: a pure function of (key, index), never a stream with hidden state.
//!
//! A [`Key`] is 32 bytes; word `i` of a key is the `i`-th little-endian `u32` of the ChaCha8
//! key stream (nonce 0, counter from 0), so that any word can be had without the ones before it
//! and a GPU thread computes the same one from the same key.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// A 256-bit ChaCha8 key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// SHA-256 of the concatenated `parts`; the first one names the purpose.
    pub fn derive(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        Key(hash.finalize().into())
    }

    /// Writes words `first .. first + out.len()` of this key's stream.
    pub fn words(&self, first: u64, out: &mut [u32]) {
        let mut stream = ChaCha8Rng::from_seed(self.0);
        stream.set_word_pos(u128::from(first));
        for word in out {
            *word = stream.next_u32();
        }
    }
}

/// Sampling noise of one request: a function of (request seed, step, position, draw).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise(Key);

/// Draws available to one (step, position): a ChaCha block holds sixteen words, two to a draw.
pub const DRAWS: u32 = 8;

impl Noise {
    pub fn new(request_seed: u64) -> Self {
        Noise(Key::derive(&[
            b"choir/noise/1",
            &request_seed.to_le_bytes(),
        ]))
    }

    /// The key whose words the noise is made of, for devices that make it themselves.
    pub fn key(&self) -> Key {
        self.0
    }

    /// The draws of a step and a position: the ChaCha block `step * 2^32 + position`, which belongs to them alone.
    pub fn at(&self, step: u32, position: u32) -> Draws {
        let (block, mut words) = ((u64::from(step) << 32) | u64::from(position), [0; 16]);
        let mut stream = ChaCha8Rng::from_seed(self.0.0);
        stream.set_word_pos(u128::from(block) * 16);
        words.fill_with(|| stream.next_u32());
        Draws(words)
    }

    /// One of those draws.
    pub fn uniform(&self, step: u32, position: u32, draw: u32) -> f64 {
        self.at(step, position).uniform(draw)
    }
}

/// The draws of one step and position.
#[derive(Clone, Copy, Debug)]
pub struct Draws([u32; 2 * DRAWS as usize]);

impl Draws {
    /// A uniform number in the open interval (0, 1), with 52 random bits; `draw < DRAWS` picks two words.
    pub fn uniform(&self, draw: u32) -> f64 {
        let [low, high] = [0, 1].map(|half| u64::from(self.0[2 * draw as usize + half]));
        open_unit(high << 32 | low)
    }
}

/// The top 52 bits of `word` as the middle of one of 2^52 equal parts of (0, 1). With 53 bits the half that
/// keeps 0 away would round, and the largest word would give 1.
fn open_unit(word: u64) -> f64 {
    ((word >> 12) as f64 + 0.5) * (-52f64).exp2()
}

/// A plain sequential generator for training and tests (never for serving): the stream of one key.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    pub fn new(key: Key) -> Self {
        Stream(ChaCha8Rng::from_seed(key.0))
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in the open interval (0, 1).
    pub fn uniform(&mut self) -> f64 {
        open_unit(self.next_u64())
    }

    /// Uniform in `0 .. n`; `n` must not be 0. The bias, below n / 2^52, does not matter here.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// Standard normal, by Box and Muller's transform.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with a separate implementation of ChaCha8, written from its definition.
    #[test]
    fn golden_words() {
        let mut words = [0; 4];
        Key([0; 32]).words(0, &mut words);
        assert_eq!(words, [0x2fef003e, 0xd6405f89, 0xe8b85b7f, 0xa1a5091f]);

        let key = Key::derive(&[b"choir/", b"test"]);
        assert_eq!(key, Key::derive(&[b"choir/test"]));
        let at = |first| {
            let mut words = [0; 2];
            key.words(first, &mut words);
            words
        };
        assert_eq!(at(0), [0x18ef629c, 0x465e2054]);
        assert_eq!(at(15), [0xf8b55575, 0xd565e781]);
        assert_eq!(at((1 << 36) + 5), [0xe48823ae, 0x2442ed8a]);
    }

    #[test]
    fn golden_noise() {
        let noise = Noise::new(42);
        for (step, position, draw, expected) in GOLDEN_NOISE {
            assert_eq!(noise.uniform(step, position, draw), expected);
        }
    }

    const GOLDEN_NOISE: [(u32, u32, u32, f64); 3] = [
        (0, 0, 0, 0.5649795425157237),
        (3, 17, 2, 0.25860377987763983),
        (u32::MAX, u32::MAX, 7, 0.32056333415313454),
    ];

    #[test]
    fn the_unit_interval_is_open() {
        assert_eq!(open_unit(0), (-53f64).exp2());
        assert_eq!(open_unit(u64::MAX), 1.0 - (-53f64).exp2());
    }

    #[test]
    fn random_access_equals_sequential() {
        let key = Key::derive(&[b"any"]);
        let mut all = [0; 200];
        key.words(0, &mut all);
        for first in [0usize, 1, 15, 16, 17, 63, 64, 65, 130] {
            let mut some = [0; 40];
            key.words(first as u64, &mut some);
            assert_eq!(some, all[first..first + 40]);
        }
    }
}
