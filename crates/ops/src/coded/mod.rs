//! Matrices in a trellis code: a quarter of a bit to four bits a weight, each row by itself.
//!
//! ```text
//! rate        1/4  1/2  1    2    3    4
//! k bits       1    1   1    2    3    4     a step
//! m weights    4    2   1    1    1    1     a step
//!
//! a row of n weights has T = ceil(n / m) steps and k (T - 1) + 7 bits, the least significant bit of a byte first
//! window t   = bits k t .. k t + 6, a number below 128
//! weight m t + j = table_j[window t]
//! ```
//!
//! A window shares 7 - k bits with the next one: that is the trellis. Of all the rows that have a stream the encoder
//! (the crate `choir`'s `superposition`) finds the nearest. Rows are padded with zeros to whole bytes and stand one after the
//! other. Tables and layout are a file format: what they give may never change, another one has another number.
//!
//! Source: trellis-coded quantisation (Marcellin and Fischer, 1990) over a shift register, whose states need no
//! table of transitions (as in QTIP, arXiv 2406.11235).

mod kept;
mod kernel;
mod own;
mod panels;
mod rate;
mod rows;
mod tables;
#[cfg(test)]
mod tests;
mod thin;

pub use kept::{Kept, KeptError, LowRank, MOST_INPUTS, Nibbles};
pub use own::{OwnMatrix, RowShare, add_own};
pub use rate::{NoSuchRate, Rate};

/// Bits of a window: the states of the trellis are 2^7.
pub const WINDOW: usize = 7;
/// Entries of a table.
pub const STATES: usize = 1 << WINDOW;
/// The tables' number in a file.
pub const TABLE: u32 = 1;
/// The layout's number in a file: rows one after the other, as described above.
pub const LAYOUT: u32 = 1;

/// A matrix [rows, cols] of small integers in a code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    rate: Rate,
    rows: usize,
    cols: usize,
    /// `rows` times [`Rate::row_bytes`].
    stream: Vec<u8>,
}

/// The bytes are no code of that shape and rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    #[error(
        "a code of {rows} by {cols} weights at a rate of {rate} has {expected} bytes, this one {found}"
    )]
    Length {
        rate: Rate,
        rows: usize,
        cols: usize,
        expected: usize,
        found: usize,
    },
    #[error("the bits after the end of row {row} are not zero")]
    Padding { row: usize },
    #[error("a code has at least one weight")]
    Empty,
}

impl Code {
    /// A code of `rows` by `cols` weights. Refuses a stream of another length, and one whose padding is not zero.
    pub fn new(rate: Rate, [rows, cols]: [usize; 2], stream: Vec<u8>) -> Result<Code, CodeError> {
        if rows == 0 || cols == 0 {
            return Err(CodeError::Empty);
        }
        let row_bytes = rate.row_bytes(cols);
        let expected = rows.saturating_mul(row_bytes);
        if stream.len() != expected {
            let found = stream.len();
            return Err(CodeError::Length {
                rate,
                rows,
                cols,
                expected,
                found,
            });
        }
        let used = rate.row_bits(cols) % 8;
        let padded = |row: &[u8]| used > 0 && row[row_bytes - 1] >> used != 0;
        if let Some(row) = stream.chunks_exact(row_bytes).position(padded) {
            return Err(CodeError::Padding { row });
        }
        Ok(Code {
            rate,
            rows,
            cols,
            stream,
        })
    }

    /// A code of what an encoder has made, which [`Code::new`] would not refuse.
    pub fn of(rate: Rate, [rows, cols]: [usize; 2], stream: Vec<u8>) -> Code {
        debug_assert_eq!(stream.len(), rows * rate.row_bytes(cols));
        Code {
            rate,
            rows,
            cols,
            stream,
        }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All rows' bytes.
    pub fn stream(&self) -> &[u8] {
        &self.stream
    }

    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = self.rate.row_bytes(self.cols);
        &self.stream[row * bytes..][..bytes]
    }

    /// The weights of one row, `cols` of them: the definition, one weight at a time.
    pub fn decode_row_slow(&self, row: usize, weights: &mut [i8]) {
        let (bits, per_step) = (self.rate.step_bits(), self.rate.step_weights());
        let (stream, tables) = (self.row(row), self.rate.tables());
        let bit = |at: usize| usize::from(stream[at / 8] >> (at % 8) & 1);
        for (col, weight) in weights.iter_mut().enumerate() {
            let first = bits * (col / per_step);
            let window = (0..WINDOW).fold(0, |window, i| window | bit(first + i) << i);
            *weight = tables[col % per_step][window];
        }
    }

    /// The weights of one row, `cols` of them.
    pub fn decode_row(&self, row: usize, weights: &mut [i8]) {
        self.rate.decode(self.row(row), weights);
    }
}
