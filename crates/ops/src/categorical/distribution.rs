//! A row of logits as a distribution over tokens: its probabilities, and draws by inverse CDF.
//!
//! Nothing of the vocabulary's length is stored in f64. Weights are computed from the logits when they are needed, their
//! sums kept per chunk of tokens; a draw finds its chunk among the sums and only then looks into it. Every sum
//! runs in one fixed order, so a draw depends on the logits and the uniform number and on nothing else.

use crate::math;

/// Exponents below this one give no weight at all: e^-87 is the least normal f32.
const UNDERFLOW: f32 = -87.0;
/// Tokens to a sum.
const CHUNK: usize = 256;
/// Partial sums that run side by side within a chunk: what the compiler turns into vectors.
const LANES: usize = 16;

/// How a token's weight follows from its logit: exp((logit - top) / temperature), or 0 where it is cut off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    /// The highest logit that counts, finite.
    pub top: f32,
    /// 1 / temperature.
    pub sharpness: f32,
    /// The token that may not be drawn.
    pub forbidden: Option<u32>,
    /// Tokens whose [`rank`] is not below this are cut off; `u64::MAX` cuts off none.
    pub limit: u64,
}

/// What is cut off, in a form that vectors can compare: logits below `logit`, those equal to it from `token` on, and the
/// forbidden token.
#[derive(Clone, Copy)]
struct Cut {
    logit: f32,
    token: u32,
    forbidden: u32,
}

/// A token's place in the order "highest logit first, equal logits by ascending id", as a number: lower is better.
/// Below `u64::MAX` for every finite or infinite logit; a NaN comes last.
pub(super) fn rank(token: u32, logit: f32) -> u64 {
    if logit.is_nan() {
        return u64::MAX;
    }
    let bits = (logit + 0.0).to_bits(); // + 0.0 makes -0 and 0 equal
    let ascending = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    u64::from(!ascending) << 32 | u64::from(token)
}

/// The logit of a [`rank`].
pub(super) fn logit_of(rank: u64) -> f32 {
    let ascending = !((rank >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 {
        ascending & !(1 << 31)
    } else {
        !ascending
    })
}

impl Weights {
    /// Weights of a whole row, and the best token (the lowest id among equals): `top_k`, nucleus and greedy choice only
    /// lower `limit` afterwards. Rows of NaN or -inf alone have no weight anywhere.
    pub fn new(logits: &[f32], temperature: f32, forbidden: Option<u32>) -> (Self, u32) {
        let hole = forbidden.map_or(logits.len(), |token| (token as usize).min(logits.len()));
        let after = (hole + 1).min(logits.len());
        let top = math::max(&logits[..hole]).max(math::max(&logits[after..]));
        let allowed = |token: usize| token != hole;
        let best = (0..logits.len()).find(|&token| allowed(token) && logits[token] == top);
        let best = best
            .or_else(|| (0..logits.len()).find(|&token| allowed(token)))
            .unwrap_or(0);
        let weights = Self {
            top: top.clamp(f32::MIN, f32::MAX),
            sharpness: (1.0 / temperature).min(f32::MAX),
            forbidden,
            limit: u64::MAX,
        };
        (weights, best as u32)
    }

    /// The weight of a token that is neither forbidden nor cut off. Without branches, as all of these: a row is summed in
    /// vectors.
    #[inline(always)]
    pub fn of_logit(&self, logit: f32) -> f32 {
        let below = (logit - self.top) * self.sharpness;
        // Infinite logits are as good as the top one.
        let weight = math::exp(below.min(0.0));
        // A NaN fails the comparison, as does what is too small to matter.
        if below >= UNDERFLOW { weight } else { 0.0 }
    }

    #[inline(always)]
    fn of(&self, token: u32, logit: f32, cut: Cut) -> f64 {
        let better = (logit > cut.logit) | ((logit == cut.logit) & (token < cut.token));
        let weight = self.of_logit(logit);
        f64::from(if better & (token != cut.forbidden) {
            weight
        } else {
            0.0
        })
    }

    fn cut(&self) -> Cut {
        let forbidden = self.forbidden.unwrap_or(u32::MAX); // no token has this id
        let (logit, token) = match self.limit {
            u64::MAX => (f32::NEG_INFINITY, u32::MAX),
            limit => (logit_of(limit), limit as u32),
        };
        Cut {
            logit,
            token,
            forbidden,
        }
    }

    /// Sum over one chunk, `first` being its first token.
    fn chunk_sum(&self, first: usize, chunk: &[f32], cut: Cut) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (groups, rest) = chunk.as_chunks::<LANES>();
        let mut token = first as u32;
        for logits in groups {
            for lane in 0..LANES {
                lanes[lane] += self.of(token + lane as u32, logits[lane], cut);
            }
            token += LANES as u32;
        }
        for ((lane, &logit), token) in lanes.iter_mut().zip(rest).zip(token..) {
            *lane += self.of(token, logit, cut);
        }
        lanes.iter().sum()
    }

    /// Writes the sum of every chunk to `sums` and returns their sum.
    pub fn sum(&self, logits: &[f32], sums: &mut Vec<f64>) -> f64 {
        let (cut, chunks) = (self.cut(), logits.chunks(CHUNK).enumerate());
        sums.clear();
        sums.extend(chunks.map(|(index, chunk)| self.chunk_sum(index * CHUNK, chunk, cut)));
        sums.iter().sum()
    }
}

/// A distribution over tokens, made by [`Filter::distribution`](super::Filter::distribution).
#[derive(Debug)]
pub struct Distribution<'a> {
    pub(super) logits: &'a [f32],
    pub(super) weights: Weights,
    pub(super) best: u32,
    pub(super) sums: &'a [f64],
    pub(super) total: f64,
}

impl Distribution<'_> {
    /// The most probable token, the lowest id among equals.
    pub fn best(&self) -> u32 {
        self.best
    }

    /// The probability of a token; 0 for one outside the vocabulary.
    pub fn probability(&self, token: u32) -> f64 {
        match self.logits.get(token as usize) {
            Some(&logit) if self.total > 0.0 => {
                self.weights.of(token, logit, self.weights.cut()) / self.total
            }
            _ => f64::from(u8::from(token == self.best)),
        }
    }

    /// The token at `uniform` (in the open interval (0, 1)) of the cumulative distribution over ascending ids.
    /// A row without any weight (NaN or -inf alone) gives the lowest id that is not forbidden.
    pub fn draw(&self, uniform: f64) -> u32 {
        if self.total <= 0.0 {
            return self.best;
        }
        let (chunk, target) = pick(self.sums.iter().copied(), uniform * self.total);
        let (first, cut) = (chunk * CHUNK, self.weights.cut());
        let tokens = self.logits.iter().enumerate().skip(first).take(CHUNK);
        let weights = tokens.map(|(token, &logit)| self.weights.of(token as u32, logit, cut));
        let (offset, _) = pick(weights, target);
        (first + offset) as u32
    }
}

/// The first index at which the running sum of weights exceeds `target`, and what is left of `target` there. Where
/// rounding leaves none, the last index with any weight, and all of it.
fn pick(weights: impl Iterator<Item = f64>, mut target: f64) -> (usize, f64) {
    let mut last = (0, 0.0);
    for (index, weight) in weights.enumerate() {
        if target < weight {
            return (index, target);
        }
        target -= weight;
        if weight > 0.0 {
            last = (index, weight);
        }
    }
    last
}
