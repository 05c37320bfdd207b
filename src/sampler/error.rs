//! Why settings or a prompt are refused.

use super::block::MAX_TEMPERATURE;
use crate::ops::categorical::Filter;

/// A fact about the offending field; [`Error::field`] names it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Not a number, or outside `low ..= high`.
    #[error("{field} is {value}, but must be within {low} and {high}")]
    OutOfRange {
        field: &'static str,
        value: f64,
        low: f64,
        high: f64,
    },
    /// Not above 0 and at most 1 (or not a number).
    #[error("{field} is {value}, but must be above 0 and at most 1")]
    NotAShare { field: &'static str, value: f64 },
    #[error("{field} has token {token} at {index}, outside the vocabulary of {vocab_size}")]
    UnknownToken {
        field: &'static str,
        index: usize,
        token: u32,
        vocab_size: usize,
    },
    #[error("{field} has the mask token at {index}")]
    Mask { field: &'static str, index: usize },
    #[error("{field} would reach position {end}, past the last one, {limit}")]
    TooLong {
        field: &'static str,
        end: usize,
        limit: usize,
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
            | Self::TooLong { field, .. } => field,
        }
    }
}

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

pub(super) fn count(field: &'static str, value: usize, low: usize, high: usize) -> Result<(), Error> {
    within(field, value as f64, low as f64, high as f64)
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
    count("top_k", filter.top_k.unwrap_or(1), 1, usize::MAX)
}

pub(super) fn tokens(field: &'static str, tokens: &[u32], vocab_size: usize) -> Result<(), Error> {
    match tokens.iter().position(|&token| token as usize >= vocab_size) {
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
