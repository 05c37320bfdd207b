//! What a variant keeps of one matrix for itself, as it comes from a file.

use half::bf16;

use super::Code;

/// The most inputs of a matrix in a code: sums of products of bytes stay in 32 bits.
pub const MOST_INPUTS: usize = 1 << 17;

/// A delta d [out, in], up to the scale of its variant.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// d = g ⊙ (q R) + low, with R the [`Rotation`](crate::transform::Rotation) of the matrix under its variant's seed.
    Coded {
        code: Code,
        /// g: the rows' sizes times what makes the code unbiased, [out].
        gains: Vec<bf16>,
        low_rank: Option<LowRank>,
    },
    LowRank(LowRank),
    /// Every number, [out, in] by rows.
    Whole(Vec<bf16>),
}

/// Two thin factors.
#[derive(Clone, Debug, PartialEq)]
pub enum LowRank {
    /// Those of an adapter: d = b a, as it is.
    Exact {
        rank: usize,
        /// [rank, in]
        a: Vec<f32>,
        /// [out, rank]
        b: Vec<f32>,
    },
    Nibbles(Nibbles),
}

/// Factors of the *rotated* delta in four bits, so that what a code reads of x serves them, too, and no factor has outliers:
///
/// ```text
/// d = (sum over r of  scale_r · b_r ⊗ a_r) R
/// ```
///
/// A number n of four bits is worth 2 n - 15; two are in a byte, the first one low.
#[derive(Clone, Debug, PartialEq)]
pub struct Nibbles {
    /// [rank]
    pub scales: Vec<f32>,
    /// [rank, in], each row padded to whole bytes.
    pub a: Vec<u8>,
    /// [rank, out], likewise.
    pub b: Vec<u8>,
}

/// What does not fit a matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeptError {
    #[error("a code of {found:?} for a matrix of {expected:?}")]
    Shape {
        found: [usize; 2],
        expected: [usize; 2],
    },
    #[error("{found} {what} where a matrix of {shape:?} has {expected}")]
    Count {
        what: &'static str,
        found: usize,
        expected: usize,
        shape: [usize; 2],
    },
    #[error("{0} inputs are more than a code is served with, {MOST_INPUTS}")]
    TooWide(usize),
    #[error("a {0} is no finite number")]
    NotFinite(&'static str),
}

/// Refuses another number of things than expected.
fn count(
    what: &'static str,
    found: usize,
    expected: usize,
    shape: [usize; 2],
) -> Result<(), KeptError> {
    match found == expected {
        true => Ok(()),
        false => Err(KeptError::Count {
            what,
            found,
            expected,
            shape,
        }),
    }
}

fn finite(what: &'static str, mut numbers: impl Iterator<Item = f32>) -> Result<(), KeptError> {
    match numbers.all(f32::is_finite) {
        true => Ok(()),
        false => Err(KeptError::NotFinite(what)),
    }
}

impl Kept {
    /// Refuses what is no delta of a matrix of `shape` [out, in].
    pub fn check(&self, shape: [usize; 2]) -> Result<(), KeptError> {
        let [out, input] = shape;
        match self {
            Kept::Coded {
                code,
                gains,
                low_rank,
            } => {
                let found = [code.rows(), code.cols()];
                if found != shape {
                    return Err(KeptError::Shape {
                        found,
                        expected: shape,
                    });
                }
                if input > MOST_INPUTS {
                    return Err(KeptError::TooWide(input));
                }
                count("gains", gains.len(), out, shape)?;
                finite("gain", gains.iter().map(|gain| gain.to_f32()))?;
                low_rank.iter().try_for_each(|part| part.check(shape))
            }
            Kept::LowRank(part) => part.check(shape),
            Kept::Whole(numbers) => {
                count("numbers", numbers.len(), out * input, shape)?;
                finite("number", numbers.iter().map(|number| number.to_f32()))
            }
        }
    }

    /// Bytes as in a file.
    pub fn bytes(&self) -> usize {
        match self {
            Kept::Coded {
                code,
                gains,
                low_rank,
            } => {
                let low_rank = low_rank.as_ref().map_or(0, LowRank::bytes);
                code.stream().len() + size_of_val(&gains[..]) + low_rank
            }
            Kept::LowRank(part) => part.bytes(),
            Kept::Whole(numbers) => size_of_val(&numbers[..]),
        }
    }
}

impl LowRank {
    pub fn rank(&self) -> usize {
        match self {
            LowRank::Exact { rank, .. } => *rank,
            LowRank::Nibbles(nibbles) => nibbles.scales.len(),
        }
    }

    fn check(&self, shape: [usize; 2]) -> Result<(), KeptError> {
        let ([out, input], rank) = (shape, self.rank());
        match self {
            LowRank::Exact { a, b, .. } => {
                count("numbers of the first factor", a.len(), rank * input, shape)?;
                count("numbers of the second factor", b.len(), out * rank, shape)?;
                finite("number of a factor", a.iter().chain(b).copied())
            }
            LowRank::Nibbles(Nibbles { scales, a, b }) => {
                if input > MOST_INPUTS {
                    return Err(KeptError::TooWide(input));
                }
                let [rows, columns] = [out, input].map(|count| rank * count.div_ceil(2));
                count("bytes of the first factor", a.len(), columns, shape)?;
                count("bytes of the second factor", b.len(), rows, shape)?;
                finite("scale", scales.iter().copied())
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            LowRank::Exact { a, b, .. } => size_of_val(&a[..]) + size_of_val(&b[..]),
            LowRank::Nibbles(Nibbles { scales, a, b }) => {
                size_of_val(&scales[..]) + a.len() + b.len()
            }
        }
    }
}

impl Nibbles {
    /// Number `index` of row `rank` of a factor whose rows have `width` numbers: odd, -15 to 15.
    pub fn number(factor: &[u8], width: usize, rank: usize, index: usize) -> i8 {
        let byte = factor[rank * width.div_ceil(2) + index / 2];
        2 * (byte >> (4 * (index % 2)) & 15).cast_signed() - 15
    }
}
