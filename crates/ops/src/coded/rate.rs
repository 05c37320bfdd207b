//! How many bits a weight a code has.

use std::fmt;
use std::str::FromStr;

use super::{STATES, WINDOW, tables};

/// Bits a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rate {
    Quarter,
    Half,
    One,
    Two,
    Three,
    Four,
}

/// The text names none of the rates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no rate of {0:?} bits a weight; there are 0.25, 0.5, 1, 2, 3 and 4")]
pub struct NoSuchRate(pub String);

impl Rate {
    pub const ALL: [Rate; 6] = [
        Rate::Quarter,
        Rate::Half,
        Rate::One,
        Rate::Two,
        Rate::Three,
        Rate::Four,
    ];

    /// k: the bits that a step adds to the stream.
    pub fn step_bits(self) -> usize {
        match self {
            Rate::Quarter | Rate::Half | Rate::One => 1,
            Rate::Two => 2,
            Rate::Three => 3,
            Rate::Four => 4,
        }
    }

    /// m: the weights that a step gives.
    pub fn step_weights(self) -> usize {
        match self {
            Rate::Quarter => 4,
            Rate::Half => 2,
            Rate::One | Rate::Two | Rate::Three | Rate::Four => 1,
        }
    }

    /// k / m, without the bits that a row begins with.
    pub fn bits(self) -> f64 {
        self.step_bits() as f64 / self.step_weights() as f64
    }

    /// T: the steps of a row of `cols` weights.
    pub fn steps(self, cols: usize) -> usize {
        cols.div_ceil(self.step_weights())
    }

    /// The bits of a row of `cols` weights, at least one, without its padding.
    pub fn row_bits(self, cols: usize) -> usize {
        self.step_bits() * (self.steps(cols) - 1) + WINDOW
    }

    /// The bytes of a row of `cols` weights.
    pub fn row_bytes(self, cols: usize) -> usize {
        self.row_bits(cols).div_ceil(8)
    }

    /// The m tables: weight m t + j is entry `window t` of table j.
    pub fn tables(self) -> &'static [[i8; STATES]] {
        tables::of(self).0
    }

    /// The weights of one row from its stream, as many as there is room for.
    pub fn decode(self, stream: &[u8], weights: &mut [i8]) {
        let (bits, tables) = (self.step_bits(), self.tables());
        let (mut bytes, mut ahead, mut have) = (stream.iter(), 0u32, 0);
        for step in weights.chunks_mut(self.step_weights()) {
            while have < WINDOW {
                ahead |= u32::from(bytes.next().copied().unwrap_or(0)) << have;
                have += 8;
            }
            let window = ahead as usize % STATES;
            for (weight, table) in step.iter_mut().zip(tables) {
                *weight = table[window];
            }
            ahead >>= bits;
            have -= bits;
        }
    }

    /// What a standard deviation of 1 is in the tables' units: the nearest row of N(0, 1) numbers x is that of
    /// `unit · x` among the table's.
    pub fn unit(self) -> f32 {
        tables::of(self).1
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.bits().fmt(f)
    }
}

impl FromStr for Rate {
    type Err = NoSuchRate;

    fn from_str(text: &str) -> Result<Self, NoSuchRate> {
        let rate = Rate::ALL.into_iter().find(|rate| rate.to_string() == text);
        rate.ok_or_else(|| NoSuchRate(text.to_owned()))
    }
}
