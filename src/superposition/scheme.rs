//! What is done to a delta before it is added. A store has the default scheme only; the others are there to be
//! compared with it.

use serde::{Deserialize, Serialize};

use crate::transform::{Side, Signs, Transform};

/// Which parts of `l ⊙ (d / a) ⊙ r` are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheme {
    /// r, the signs on the input side.
    pub input_signs: bool,
    /// l, the signs on the output side.
    pub output_signs: bool,
    /// a, the RMS of each row. Without gains a delta is added as it is.
    pub gains: bool,
}

impl Default for Scheme {
    fn default() -> Self {
        Scheme {
            input_signs: true,
            output_signs: true,
            gains: true,
        }
    }
}

impl Scheme {
    /// The plain sum of deltas.
    pub const PLAIN_SUM: Scheme = Scheme {
        input_signs: false,
        output_signs: false,
        gains: false,
    };

    /// RanDeS (arXiv 2505.11204): random signs on the input side only.
    pub const RANDES: Scheme = Scheme {
        input_signs: true,
        ..Scheme::PLAIN_SUM
    };

    /// The signs of the matrix `tensor` [rows, cols] under `seed`; +1 on a side that is not in use.
    pub fn transform(&self, seed: u64, tensor: &str, [rows, cols]: [usize; 2]) -> Transform {
        let signs = |used, side, len| {
            if used {
                Signs::new(seed, tensor, side, len)
            } else {
                Signs::ones(len)
            }
        };
        Transform {
            input: signs(self.input_signs, Side::Input, cols),
            output: signs(self.output_signs, Side::Output, rows),
        }
    }
}
