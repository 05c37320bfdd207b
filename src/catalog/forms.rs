//! The forms that banks are served in.

use crate::ops::quantized::Quantisation;
use std::fmt;

/// Of the banks of every matrix but the output head, and of the head's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forms {
    pub body: Quantisation,
    pub head: Quantisation,
}

impl Forms {
    /// Where no form of the head is asked for, heads that share no bank take two bits: without interference a delta needs
    /// no more. Others are as the body.
    pub fn new(body: Quantisation, head: Option<Quantisation>, head_capacity: usize) -> Self {
        let usual = if head_capacity == 1 {
            Quantisation::Q2K
        } else {
            body
        };
        Forms {
            body,
            head: head.unwrap_or(usual),
        }
    }
}

impl fmt::Display for Forms {
    /// `BODY/HEAD`, or one name for both.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.body == self.head {
            true => write!(f, "{}", self.body),
            false => write!(f, "{}/{}", self.body, self.head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_share_no_bank_take_two_bits_unless_told() {
        let of = |head, capacity| Forms::new(Quantisation::Q4K, head, capacity).to_string();
        assert_eq!(of(None, 1), "q4k/q2k");
        assert_eq!(of(None, 2), "q4k");
        assert_eq!(of(Some(Quantisation::Q8_0), 1), "q4k/q8_0");
        assert_eq!(of(Some(Quantisation::Q2K), 2), "q4k/q2k");
    }
}
