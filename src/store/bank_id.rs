//! The names of banks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Which matrices a bank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BankKind {
    /// Every matrix but the output head.
    Body,
    /// The output head.
    Head,
}

/// A bank's name: `body-0`, `head-3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BankId {
    pub kind: BankKind,
    pub number: u32,
}

impl fmt::Display for BankId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kind = match self.kind {
            BankKind::Body => "body",
            BankKind::Head => "head",
        };
        write!(f, "{kind}-{}", self.number)
    }
}

impl FromStr for BankId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, number) = match (text.strip_prefix("body-"), text.strip_prefix("head-")) {
            (Some(number), _) => (BankKind::Body, number),
            (_, Some(number)) => (BankKind::Head, number),
            _ => return Err(format!("no bank is called {text:?}")),
        };
        let number = number
            .parse()
            .map_err(|_| format!("no bank is called {text:?}"))?;
        Ok(BankId { kind, number })
    }
}

impl Serialize for BankId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BankId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}
