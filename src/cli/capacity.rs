//! Variants to a bank, as options give them.

use crate::train::settings::Members;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Variants to a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    pub body: usize,
    pub head: usize,
}

impl Capacity {
    /// As training has them.
    pub fn members(self) -> Members {
        let Self { body, head } = self;
        Members { body, head }
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.body == self.head {
            true => write!(f, "{}", self.body),
            false => write!(f, "{}/{}", self.body, self.head),
        }
    }
}

impl FromStr for Capacity {
    type Err = String;

    /// `BODY/HEAD`, or one number for both.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (body, head) = text.split_once('/').unwrap_or((text, text));
        let number = |text: &str| {
            text.parse()
                .ok()
                .filter(|number| (1..=10_000).contains(number))
        };
        match (number(body), number(head)) {
            (Some(body), Some(head)) => Ok(Self { body, head }),
            _ => Err("it is a number from 1 to 10000, or two of them, as in 4/2".to_owned()),
        }
    }
}
