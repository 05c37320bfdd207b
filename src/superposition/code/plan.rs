//! What each matrix gets of a budget of bits.
//!
//! What is lost of a fine-tune's gain is taken for the sum over the matrices of sensitivity · sqrt(weights · power) · noise: noise in
//! parts of what is left to code, D / (1 - D), D the code's mean squared error over Gaussian numbers (a gain that brings the row's own
//! part back whole makes of an error of D such a noise). The square root stands between two answers that are each wrong for some
//! optimiser: by its power alone, an embedding beside layers with deltas many times as large gets nothing, and matters no less; in
//! parts of its own alone, a matrix that hardly moved gets as much as one that did all the work. Each matrix begins with the least;
//! then the step that saves most for a byte is taken, as long as one fits.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::low_rank::{self, bytes_of, rank_of};
use crate::ops::coded::{Nibbles, Rate};
use crate::superposition::MatrixRole;
use crate::transform::hadamard_block;

/// The smallest block of a Hadamard transform whose sums are near enough to Gaussian, and the smallest matrix that is
/// worth its gains.
const SMALLEST: (usize, usize) = (32, 4096);
/// Bits a weight that the two thin factors may take, to choose from.
const LOW_RANK: [f64; 3] = [0.125, 0.25, 0.5];
/// Up to so many inputs a row's gain and the bits that it begins with are a good part of its code. Up to [`FEW`] directions may stand for
/// such a matrix by themselves, where all others have together [`REST`] of its power at most.
const NARROW: usize = 64;
const FEW: usize = 4;
const REST: f64 = 1e-3;

/// Whether a matrix is kept in a code; any other tensor is kept whole.
pub(super) fn codable(shape: &[usize]) -> Option<[usize; 2]> {
    match *shape {
        [rows, cols] if hadamard_block(cols) >= SMALLEST.0 && rows * cols >= SMALLEST.1 => {
            Some([rows, cols])
        }
        _ => None,
    }
}

/// What noise in a weight costs, by role of the matrix that it is in, in comparison with an MLP's.
///
/// The head's and the embedding's are to be multiplied by inputs / rows, since noise in one of their rows reaches one logit, or one
/// token: how many rows there are beside it does not matter to a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Sensitivities(BTreeMap<MatrixRole, f64>);

/// A file of sensitivities is not one.
#[derive(Debug, thiserror::Error)]
pub enum BadSensitivities {
    #[error("they are a JSON object of a number by role, as choir eval --by-role writes it: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("{0:?} is no role of matrices, or has a sensitivity that is not a number above 0")]
    Number(MatrixRole),
}

impl Default for Sensitivities {
    /// Found by noise in one role at a time, of fine-tunes of the base compiled in; the same order as elsewhere: the logits feel the head
    /// at once, attention more than MLPs. The head's and the embedding's came to 65 and 22 at four rows to an input, where they were
    /// measured; 3.5 and 1.2 of a decoder with 150,000 rows of 2,048.
    fn default() -> Self {
        let numbers = [
            (MatrixRole::Head, 260.0),
            (MatrixRole::Embedding, 88.0),
            (MatrixRole::AttentionOut, 7.0),
            (MatrixRole::Qkv, 4.0),
        ];
        Sensitivities(numbers.into())
    }
}

impl Sensitivities {
    /// Those of these roles; any other's is 1.
    ///
    /// # Errors
    /// A role that no matrix has, and a number that is not above 0.
    pub fn new(numbers: BTreeMap<MatrixRole, f64>) -> Result<Self, BadSensitivities> {
        let odd = |(role, number): &(&MatrixRole, &f64)| {
            let matrix = role.is_matrix() || **role == MatrixRole::Conditioning;
            !(matrix && number.is_finite() && **number > 0.0)
        };
        match numbers.iter().find(odd) {
            Some((role, _)) => Err(BadSensitivities::Number(*role)),
            None => Ok(Sensitivities(numbers)),
        }
    }

    /// A file of them.
    ///
    /// # Errors
    /// As [`new`](Self::new)'s, and where it is none.
    pub fn from_json(file: &[u8]) -> Result<Self, BadSensitivities> {
        Sensitivities::new(serde_json::from_slice(file)?)
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = (MatrixRole, f64)> {
        self.0.iter().map(|(role, number)| (*role, *number))
    }

    /// That of a role.
    pub fn of(&self, role: MatrixRole) -> f64 {
        self.0.get(&role).copied().unwrap_or(1.0)
    }
}

/// Whether a matrix has a row for each token.
pub fn is_by_token(role: MatrixRole) -> bool {
    matches!(role, MatrixRole::Head | MatrixRole::Embedding)
}

/// A budget, and what the network feels.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// For each weight of the base's matrices, everything counted: codes, factors, gains and what is kept whole.
    pub bits: f64,
    /// By name, what noise in a weight costs in comparison with the same part of noise in a matrix that is not here.
    pub sensitivities: BTreeMap<String, f64>,
    /// Matrices that have a row for each token. Their sensitivities are multiplied by inputs / rows. What one of them has changed is no
    /// few directions: they get no factors.
    pub by_token: BTreeSet<String>,
    /// Matrices whose rate is given, and not chosen.
    pub rates: BTreeMap<String, Rate>,
    /// Whether a budget below the smallest plan stands for that plan, and is not refused.
    pub at_least: bool,
    /// Whether thin factors may be used. What they take of a delta's power does not tell what they keep of its gain: only a
    /// measurement does.
    pub low_rank: bool,
}

/// The budget does not hold the smallest plan.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{bits} bits a weight are too few: the least is {least:.3}")]
pub struct TooFewBits {
    pub bits: f64,
    pub least: f64,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            bits: Plan::BITS,
            sensitivities: BTreeMap::new(),
            by_token: BTreeSet::new(),
            rates: BTreeMap::new(),
            at_least: false,
            low_rank: false,
        }
    }
}

/// What one matrix gets.
pub(super) enum MatrixRate {
    /// A code of what the factors leave, where there are any.
    Code(Rate, Option<Nibbles>),
    /// Factors alone.
    Factors(Nibbles),
}

/// One way to keep a matrix: its bytes and its noise, weighed.
#[derive(Clone, Copy)]
struct Way {
    rate: Option<Rate>,
    rank: usize,
    bytes: usize,
    cost: f64,
}

struct Surveyed {
    name: String,
    shape: [usize; 2],
    ways: Vec<Way>,
    low_rank: Option<Nibbles>,
}

/// What is known of the tensors before anything is coded.
pub(super) struct Survey<'a> {
    plan: &'a Plan,
    matrices: Vec<Surveyed>,
    whole: usize,
    weights: usize,
}

impl Plan {
    /// Bits a weight where nobody asks for others. In memory narrow matrices take a little more.
    pub const BITS: f64 = 0.98;

    /// A budget for a network whose tensors have these roles.
    pub fn of<'a>(bits: f64, tensors: impl Iterator<Item = (&'a str, MatrixRole)> + Clone) -> Self {
        Plan::by(bits, tensors, &Sensitivities::default())
    }

    /// The same by sensitivities that were measured. A tied head is the embedding, and is felt as a head.
    pub fn by<'a>(
        bits: f64,
        tensors: impl Iterator<Item = (&'a str, MatrixRole)> + Clone,
        sensitivities: &Sensitivities,
    ) -> Self {
        let tied = !tensors.clone().any(|(_, role)| role == MatrixRole::Head);
        let cost = |role| match role {
            MatrixRole::Embedding if tied => sensitivities.of(MatrixRole::Head),
            role => sensitivities.of(role),
        };
        let by_token = tensors.clone().filter(|&(_, role)| is_by_token(role));
        let by_token = by_token.map(|(name, _)| name.to_owned()).collect();
        let costs = tensors.map(|(name, role)| (name.to_owned(), cost(role)));
        Plan {
            bits,
            sensitivities: costs.collect(),
            by_token,
            ..Plan::default()
        }
    }

    pub(super) fn survey(&self) -> Survey<'_> {
        Survey {
            plan: self,
            matrices: Vec::new(),
            whole: 0,
            weights: 0,
        }
    }
}

impl Survey<'_> {
    /// Takes note of a tensor that is kept whole, whose delta has this power.
    pub fn whole(&mut self, shape: &[usize], power: f64) {
        let elements: usize = shape.iter().product();
        if shape.len() == 2 {
            self.weights += elements;
        }
        if power > 0.0 {
            self.whole += 2 * elements;
        }
    }

    /// Takes note of a matrix whose delta has this power; asks for it, rotated, where thin factors are thought of. Nothing is kept of
    /// one that is all zeros.
    pub fn matrix<E>(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        power: f64,
        rotated: impl FnOnce() -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        let elements = rows * cols;
        self.weights += elements;
        if power == 0.0 {
            return Ok(());
        }
        let mut sensitivity = self.plan.sensitivities.get(name).copied().unwrap_or(1.0);
        if self.plan.by_token.contains(name) {
            sensitivity *= cols as f64 / rows as f64;
        }
        let each = sensitivity * (elements as f64 / power).sqrt();
        let (mut thin, mut alone) = (vec![(0, 0, power)], Vec::new());
        let mut low_rank = None;
        let given = self.plan.rates.get(name).copied();
        if given.is_some() {
            // Nothing is to be chosen.
        } else if cols <= NARROW {
            let (found, directions) = low_rank::encode(&rotated()?, [rows, cols], FEW);
            let (mut left, mut missing) = (power, power);
            for (rank, direction) in (1..).zip(directions) {
                left -= direction.saved;
                missing -= direction.power;
                if missing <= REST * power {
                    alone.push(Way {
                        rate: None,
                        rank,
                        bytes: bytes_of(rank, [rows, cols]),
                        cost: each * left.max(0.0),
                    });
                }
            }
            low_rank = Some(found);
        } else if self.plan.low_rank && !self.plan.by_token.contains(name) {
            let most = rank_of(LOW_RANK[LOW_RANK.len() - 1], [rows, cols]);
            let (found, directions) = low_rank::encode(&rotated()?, [rows, cols], most);
            for bits in LOW_RANK {
                let rank = rank_of(bits, [rows, cols]).min(directions.len());
                let saved = directions[..rank].iter().map(|direction| direction.saved);
                let bytes = bytes_of(rank, [rows, cols]);
                thin.push((rank, bytes, (power - saved.sum::<f64>()).max(0.0)));
            }
            low_rank = Some(found);
        }
        let coded = thin.iter().flat_map(|&(rank, bytes, power)| {
            let rates = Rate::ALL.into_iter();
            let rates = rates.filter(move |rate| given.is_none_or(|given| given == *rate));
            rates.map(move |rate| Way {
                rate: Some(rate),
                rank,
                bytes: bytes + rows * (rate.row_bytes(cols) + 2),
                cost: each * power * noise(rate),
            })
        });
        let (name, ways) = (name.to_owned(), coded.chain(alone).collect());
        self.matrices.push(Surveyed {
            name,
            shape: [rows, cols],
            ways,
            low_rank,
        });
        Ok(())
    }

    /// What each matrix gets.
    pub fn choose(self) -> Result<BTreeMap<String, MatrixRate>, TooFewBits> {
        let budget = self.plan.bits * self.weights as f64 / 8.0;
        let cheapest = |ways: &[Way]| ways.iter().copied().min_by_key(|way| way.bytes);
        let mut chosen: Vec<Way> = self
            .matrices
            .iter()
            .filter_map(|m| cheapest(&m.ways))
            .collect();
        let mut bytes = self.whole + chosen.iter().map(|way| way.bytes).sum::<usize>();
        if budget.is_nan() || (bytes as f64 > budget && !self.plan.at_least) {
            let least = 8.0 * bytes as f64 / self.weights.max(1) as f64;
            return Err(TooFewBits {
                bits: self.plan.bits,
                least,
            });
        }
        loop {
            let mut best: Option<(f64, usize, Way)> = None;
            for (index, (matrix, now)) in self.matrices.iter().zip(&chosen).enumerate() {
                for way in matrix.ways.iter().filter(|way| way.bytes > now.bytes) {
                    let more = way.bytes - now.bytes;
                    let saved = (now.cost - way.cost) / more as f64;
                    let fits = (bytes + more) as f64 <= budget;
                    if fits && saved > best.map_or(0.0, |(most, ..)| most) {
                        best = Some((saved, index, *way));
                    }
                }
            }
            let Some((_, index, way)) = best else { break };
            bytes += way.bytes - chosen[index].bytes;
            chosen[index] = way;
        }
        let choice = |(matrix, way): (Surveyed, Way)| {
            let first = |found| low_rank::first(found, way.rank, matrix.shape);
            let factors = matrix.low_rank.and_then(first);
            let choice = match way.rate {
                Some(rate) => MatrixRate::Code(rate, factors),
                None => MatrixRate::Factors(factors?),
            };
            Some((matrix.name, choice))
        };
        let matrices = self.matrices.into_iter().zip(chosen);
        Ok(matrices.filter_map(choice).collect())
    }
}

/// D / (1 - D) of a rate's code: the power of its noise in parts of the delta's own.
pub fn noise(rate: Rate) -> f64 {
    let error = match rate {
        Rate::Quarter => 0.735,
        Rate::Half => 0.537,
        Rate::One => 0.282,
        Rate::Two => 0.0759,
        Rate::Three => 0.0204,
        Rate::Four => 0.00617,
    };
    error / (1.0 - error)
}
