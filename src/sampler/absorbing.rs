//! When masked positions are revealed in the absorbing process. Where this does not depend on the logits it is drawn
//! first, and the network's head runs on the chosen positions only.

use super::error::{Error, count, share};
use super::schedule::{LogLinear, absorbing_sigma, first_hit, reveal_probability};
use crate::ops::categorical::{Certainty, DrawKind, Drawn, draws};
use crate::rng::Noise;
use serde::{Deserialize, Serialize};

/// Steps to a block that a predictor may have at most.
pub const MAX_STEPS: u32 = 8192;

/// How the masked positions of a block, or of an answer window, become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbsorbingPredictor {
    /// One position a step, at the random times at which the reverse process would reveal them.
    FirstHitting,
    /// A grid of `steps` equal times to a block; a grid step that reveals nothing costs no evaluation.
    Ancestral { steps: u32 },
    /// Every position whose certainty is above `threshold`, and at least as many of the surest as `Static` would reveal; one
    /// without `steps`.
    Confidence {
        threshold: f32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        steps: Option<u32>,
    },
    /// An equal share of the block at each of `steps`: the surest.
    Static { steps: u32 },
    /// The same share: the leftmost.
    Sequential { steps: u32 },
}

impl AbsorbingPredictor {
    pub(super) fn check(&self) -> Result<(), Error> {
        let steps = |steps: u32| count("steps", steps as usize, 1, MAX_STEPS as usize);
        match *self {
            Self::FirstHitting => Ok(()),
            Self::Ancestral { steps: many }
            | Self::Static { steps: many }
            | Self::Sequential { steps: many } => steps(many),
            Self::Confidence {
                threshold,
                steps: many,
            } => share("threshold", threshold).and(many.map_or(Ok(()), steps)),
        }
    }

    /// Whether it reveals by rank or by place, so that answer windows mean something.
    pub fn has_windows(&self) -> bool {
        !matches!(self, Self::FirstHitting | Self::Ancestral { .. })
    }

    /// Evaluations that make `tokens` tokens in `blocks` blocks: at least, and at most.
    pub fn evaluations(&self, tokens: usize, blocks: usize) -> (usize, usize) {
        match *self {
            Self::FirstHitting => (tokens, tokens),
            // A step may reveal any number of tokens, and one that reveals none is left out.
            Self::Ancestral { steps } => (blocks, tokens.min(blocks * steps as usize)),
            Self::Static { steps } | Self::Sequential { steps } => {
                let most = tokens.min(blocks * steps as usize);
                (most.min(blocks), most)
            }
            Self::Confidence { steps, .. } => {
                let steps = steps.map_or(tokens, |steps| blocks * steps as usize);
                (blocks, tokens.min(steps))
            }
        }
    }
}

/// How `steps` share a block out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepSplit {
    /// The block's length by the steps, one more in the first ones where that leaves a rest: SDAR.
    #[default]
    Equal,
    /// What is masked by the steps that are left, rounded; steps that would reveal nothing are left out: dLLM (A2D).
    Rounded,
}

/// The reverse process of one block, going from time 1 to 0.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    predictor: AbsorbingPredictor,
    share: StepSplit,
    certainty: Certainty,
    time: f64,
    /// Steps of `predictor` taken in this block.
    taken: u32,
    /// How many are revealed in this step, at least.
    least: usize,
    /// Steps taken since the sequence began, idle ones included: the step index of the noise.
    pub step: u32,
}

impl Clock {
    pub fn new(predictor: AbsorbingPredictor, share: StepSplit, certainty: Certainty) -> Self {
        Self {
            predictor,
            share,
            certainty,
            time: 1.0,
            taken: 0,
            least: 1,
            step: 0,
        }
    }

    /// Starts another block.
    pub fn restart(&mut self) {
        self.time = 1.0;
        self.taken = 0;
    }

    /// The noise level of the evaluation that was last decided upon, for networks that are told.
    pub fn sigma(&self) -> f32 {
        absorbing_sigma(LogLinear::ABSORBING.move_chance(self.time)) as f32
    }

    /// Goes on to the next step that reveals anything and fills `chosen` with the positions it reveals; where that depends
    /// on the logits, with every candidate.
    ///
    /// `masked`: the block's masked positions, ascending, at least one. `start`: the block's first position. `size`: the length
    /// of a whole block.
    pub fn advance(
        &mut self,
        masked: &[usize],
        start: usize,
        size: usize,
        noise: &Noise,
        chosen: &mut Vec<usize>,
    ) {
        chosen.clear();
        match self.predictor {
            AbsorbingPredictor::FirstHitting => {
                self.step = self.step.wrapping_add(1);
                let drawn = noise.at(self.step, start as u32);
                self.time = first_hit(self.time, masked.len(), drawn.uniform(draws::TIME));
                let place = drawn.uniform(draws::PLACE) * masked.len() as f64;
                chosen.extend(masked.get(place as usize));
            }
            AbsorbingPredictor::Ancestral { steps } => {
                while chosen.is_empty() && self.taken < steps {
                    self.step = self.step.wrapping_add(1);
                    let at = |taken: u32| 1.0 - f64::from(taken) / f64::from(steps);
                    let (t, s) = (at(self.taken), at(self.taken + 1));
                    self.time = t;
                    self.taken += 1;
                    // 1 at the last step, where s = 0: nothing stays masked.
                    let chance = reveal_probability(
                        LogLinear::ABSORBING.alpha(t),
                        LogLinear::ABSORBING.alpha(s),
                    );
                    let drawn =
                        |position: usize| noise.uniform(self.step, position as u32, draws::REVEAL);
                    chosen.extend(
                        masked
                            .iter()
                            .copied()
                            .filter(|&position| drawn(position) < chance),
                    );
                }
            }
            AbsorbingPredictor::Confidence { steps, .. } => {
                self.begin(steps, masked.len(), size);
                chosen.extend(masked);
            }
            AbsorbingPredictor::Static { steps } => {
                self.begin(Some(steps), masked.len(), size);
                chosen.extend(masked);
            }
            AbsorbingPredictor::Sequential { steps } => {
                self.begin(Some(steps), masked.len(), size);
                chosen.extend(masked.iter().take(self.least));
            }
        }
    }

    /// Begins a step of a predictor that shares the block out.
    fn begin(&mut self, steps: Option<u32>, masked: usize, size: usize) {
        self.step = self.step.wrapping_add(1);
        self.time = masked as f64 / size.max(1) as f64;
        let Some(steps) = steps else {
            self.least = 1;
            return;
        };
        self.least = match self.share {
            StepSplit::Equal => {
                let (steps, taken) = (steps as usize, self.taken as usize);
                size / steps + usize::from(taken < size % steps)
            }
            StepSplit::Rounded => loop {
                let share = rounded_share(masked, self.taken, steps);
                if share > 0 || self.taken + 1 >= steps {
                    break share;
                }
                self.taken += 1;
            },
        };
        self.least = self.least.clamp(1, masked);
        self.taken += 1;
    }

    /// Of what was drawn for the candidates, the indices of those to be revealed, ascending.
    pub fn sure(&self, drawn: &[Drawn]) -> Vec<usize> {
        let threshold = match self.predictor {
            AbsorbingPredictor::Confidence { threshold, .. } => f64::from(threshold),
            AbsorbingPredictor::Static { .. } => f64::INFINITY,
            _ => return (0..drawn.len()).collect(),
        };
        let above = (0..drawn.len()).filter(|&index| drawn[index].certainty > threshold);
        let above: Vec<usize> = above.collect();
        if above.len() >= self.least {
            return above;
        }
        let mut surest: Vec<usize> = (0..drawn.len()).collect();
        // Stable: the first of equals comes first.
        surest.sort_by(|&a, &b| drawn[b].certainty.total_cmp(&drawn[a].certainty));
        surest.truncate(self.least);
        surest.sort_unstable();
        surest
    }

    /// What is drawn at a position that is revealed, or may be.
    pub fn kind(&self) -> DrawKind {
        match self.predictor {
            AbsorbingPredictor::Confidence { .. } | AbsorbingPredictor::Static { .. } => {
                DrawKind::Sure(self.certainty)
            }
            _ => DrawKind::Predicted,
        }
    }
}

/// How many of `masked` positions step `taken` of `steps` reveals: `masked` (1 - (1 - alpha_s) / (1 - alpha_t)) with alpha = 1 - t,
/// rounded half to even. The chances are f32, as in dLLM's scheduler: halves fall as they do there.
fn rounded_share(masked: usize, taken: u32, steps: u32) -> usize {
    let noise = |left: u32| {
        let time = (f64::from(left) / f64::from(steps)) as f32;
        1.0 - (1.0 - time)
    };
    let left = steps.saturating_sub(taken).max(1);
    let chance = 1.0 - noise(left - 1) / noise(left);
    (masked as f64 * f64::from(chance)).round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounded_shares_are_the_published_ones() {
        let shares = |masks: usize, steps: u32| {
            let mut left = masks;
            let mut shares = Vec::new();
            for taken in 0..steps {
                let share = rounded_share(left, taken, steps).min(left);
                left -= share;
                shares.extend((share > 0).then_some(share));
            }
            shares
        };
        assert_eq!(shares(8, 3), [3, 2, 3]);
        assert_eq!(shares(5, 8), [1; 5]);
        assert_eq!(shares(32, 10), [3, 3, 3, 3, 3, 3, 3, 4, 3, 4]);
        assert_eq!(shares(24, 10), [2, 2, 2, 3, 3, 2, 2, 3, 2, 3]);
        assert_eq!(shares(32, 32), [1; 32]);
    }
}
