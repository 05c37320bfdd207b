//! Draws as data: all that is needed to make a row's token of its logits.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Filter, FilterWorkspace, Mixture, draws};
use crate::rng::Noise;

/// How one row's token is drawn. Known before the network runs, so that a device can draw in the same go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    pub filter: Filter,
    /// Leading logits that are looked at.
    pub tokens: usize,
    pub noise: Noise,
    /// Step and absolute position: which of the noise is this row's.
    pub step: u32,
    pub position: u32,
    pub kind: DrawKind,
}

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DrawKind {
    /// A token of the filtered x̂0.
    Predicted,
    /// The best token that is not forbidden.
    Best,
    /// As `Predicted`, and how sure it is beside it.
    Sure(Certainty),
    /// A step of the uniform process, see [`Mixture::new`]. `present`: the row's token at time t.
    Mixture {
        present: u32,
        alpha_t: f64,
        alpha_s: f64,
        kappa: f64,
    },
}

/// What is told beside a drawn token: a probability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// The best token's, at temperature 1 and before top-k and nucleus: how sure the network is of anything there.
    Best,
    /// The drawn token's, likewise.
    Drawn,
    /// The drawn token's in the distribution that it was drawn from; where that is the best token alone, as `Drawn`.
    Filtered,
}

/// What became of a [`Draw`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    pub token: u32,
    /// Under [`DrawKind::Sure`]; 0 otherwise.
    pub certainty: f64,
}

impl Drawn {
    /// Of a row that is no distribution, for whoever looks: see [`drawable`].
    pub const NOTHING: Drawn = Drawn {
        token: 0,
        certainty: f64::NAN,
    };

    /// Whether there was something to draw from.
    pub fn is_something(&self) -> bool {
        !self.certainty.is_nan()
    }
}

/// Whether logits are a distribution: none is infinite, but for those of what cannot be, or no number.
pub fn drawable(logits: &[f32]) -> bool {
    // Without a branch, so that many are looked at at once; nothing is less than NaN or NaN less than anything.
    let all = |so_far: bool, logit: &f32| so_far & (*logit < f32::INFINITY);
    logits.iter().fold(true, all)
}

impl Draw {
    /// Draws from one row of logits, [at least `tokens`].
    pub fn apply(&self, logits: &[f32], workspace: &mut FilterWorkspace) -> Drawn {
        let logits = logits.get(..self.tokens).unwrap_or(logits);
        let DrawKind::Sure(certainty) = self.kind else {
            return Drawn {
                token: self.token(logits, workspace),
                certainty: 0.0,
            };
        };
        let distribution = self.filter.distribution(logits, workspace);
        let token = distribution.draw(self.noise.uniform(self.step, self.position, draws::TOKEN));
        let certainty = match certainty {
            Certainty::Filtered if self.filter.temperature != 0.0 => {
                distribution.probability(token)
            }
            Certainty::Best => self.filter.plain(logits, workspace, None),
            _ => self.filter.plain(logits, workspace, Some(token)),
        };
        Drawn { token, certainty }
    }

    fn token(&self, logits: &[f32], workspace: &mut FilterWorkspace) -> u32 {
        let uniform = |draw| self.noise.uniform(self.step, self.position, draw);
        match self.kind {
            DrawKind::Best => self.filter.best(logits),
            DrawKind::Predicted | DrawKind::Sure(_) => {
                let predicted = self.filter.distribution(logits, workspace);
                predicted.draw(uniform(draws::TOKEN))
            }
            DrawKind::Mixture {
                present,
                alpha_t,
                alpha_s,
                kappa,
            } => {
                let predicted = self.filter.distribution(logits, workspace);
                let p = predicted.probability(present);
                let mixture = Mixture::new(alpha_t, alpha_s, kappa, p, self.tokens);
                let branch = uniform(draws::BRANCH);
                if branch < mixture.keep {
                    present
                } else if branch < mixture.keep + mixture.uniform {
                    anything(uniform(draws::TOKEN), self.tokens)
                } else {
                    predicted.draw(uniform(draws::TOKEN))
                }
            }
        }
    }
}

/// Draws from many rows, side by side.
pub fn draw_all<'a>(
    rows: impl IndexedParallelIterator<Item = (&'a Draw, &'a [f32])>,
) -> Vec<Drawn> {
    rows.map_init(FilterWorkspace::default, |workspace, (draw, logits)| {
        draw.apply(logits, workspace)
    })
    .collect()
}

/// Any of `tokens` tokens, all alike.
pub fn anything(uniform: f64, tokens: usize) -> u32 {
    (uniform * tokens as f64) as u32
}
