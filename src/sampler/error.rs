//! Why settings or a prompt are refused.

use super::block::MAX_TEMPERATURE;
use crate::ops::categorical::Filter;
use std::fmt;

/// A fact about the offending field.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// Not a number, or outside `low ..= high`.
    OutOfRange {
        field: &'static str,
        value: f64,
        low: f64,
        high: f64,
    },
    /// Not above 0 and at most 1 (or not a number).
    NotAShare {
        field: &'static str,
        value: f64,
    },
    UnknownToken {
        field: &'static str,
        index: usize,
        token: u32,
        vocab_size: usize,
    },
    Mask {
        field: &'static str,
        index: usize,
    },
    TooLong {
        field: &'static str,
        end: usize,
        limit: usize,
    },
    /// There is nothing to score.
    Nothing {
        field: &'static str,
    },
    /// The predictor, or the variant's process, has no such setting, or lacks one.
    Unfit {
        field: &'static str,
        reason: String,
    },
}

impl Error {
    /// The setting at fault, by its name in the settings (`prompt` for the prompt).
    pub fn field(&self) -> &'static str {
        match self {
            Self::OutOfRange { field, .. }
            | Self::NotAShare { field, .. }
            | Self::UnknownToken { field, .. }
            | Self::Mask { field, .. }
            | Self::TooLong { field, .. }
            | Self::Nothing { field }
            | Self::Unfit { field, .. } => field,
        }
    }

    /// What is wrong with it.
    pub fn reason(&self) -> String {
        match self {
            Self::OutOfRange {
                value, low, high, ..
            } if high.is_infinite() => {
                format!("it is {value}, but must be at least {low}")
            }
            Self::OutOfRange {
                value, low, high, ..
            } => format!("it is {value}, but must be within {low} and {high}"),
            Self::NotAShare { value, .. } => {
                format!("it is {value}, but must be above 0 and at most 1")
            }
            Self::UnknownToken {
                index,
                token,
                vocab_size,
                ..
            } => format!("it has token {token} at {index}, outside the vocabulary of {vocab_size}"),
            Self::Mask { index, .. } => format!("it has the mask token at {index}"),
            Self::TooLong { end, limit, .. } => {
                format!("it would reach position {end}, past the last one, {limit}")
            }
            Self::Nothing { .. } => "there are none".to_owned(),
            Self::Unfit { reason, .. } => reason.clone(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field(), self.reason())
    }
}

impl std::error::Error for Error {}

/// Positions are `u32` where noise is drawn, and stay well inside it.
const LAST_POSITION: usize = 1 << 30;

pub(super) fn within(field: &'static str, value: f64, low: f64, high: f64) -> Result<(), Error> {
    let inside = (low..=high).contains(&value); // false for NaN
    if inside {
        Ok(())
    } else {
        Err(Error::OutOfRange {
            field,
            value,
            low,
            high,
        })
    }
}

pub(super) fn count(
    field: &'static str,
    value: usize,
    low: usize,
    high: usize,
) -> Result<(), Error> {
    within(field, value as f64, low as f64, high as f64)
}

pub(super) fn at_least_one(field: &'static str, value: usize) -> Result<(), Error> {
    within(field, value as f64, 1.0, f64::INFINITY)
}

pub(super) fn share(field: &'static str, value: f32) -> Result<(), Error> {
    let inside = value > 0.0 && value <= 1.0;
    if inside {
        Ok(())
    } else {
        Err(Error::NotAShare {
            field,
            value: f64::from(value),
        })
    }
}

pub(super) fn filter(filter: &Filter) -> Result<(), Error> {
    let highest = f64::from(MAX_TEMPERATURE);
    within("temperature", f64::from(filter.temperature), 0.0, highest)?;
    share("nucleus_p", filter.nucleus_p)?;
    at_least_one("top_k", filter.top_k.unwrap_or(1))
}

pub(super) fn tokens(field: &'static str, tokens: &[u32], vocab_size: usize) -> Result<(), Error> {
    match tokens
        .iter()
        .position(|&token| token as usize >= vocab_size)
    {
        Some(index) => Err(Error::UnknownToken {
            field,
            index,
            token: tokens[index],
            vocab_size,
        }),
        None => Ok(()),
    }
}

/// Refuses sequences that would end past the last position.
pub(super) fn length(field: &'static str, prompt: usize, more: usize) -> Result<(), Error> {
    match prompt.checked_add(more) {
        Some(end) if end <= LAST_POSITION => Ok(()),
        end => Err(Error::TooLong {
            field,
            end: end.unwrap_or(usize::MAX),
            limit: LAST_POSITION,
        }),
    }
}
