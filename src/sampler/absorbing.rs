//! When masked positions are revealed in the absorbing process. Except under a confidence threshold this does not
//! depend on the logits, so it is drawn first and the network's head runs on the chosen positions only.

use super::error::{Error, count, share};
use super::schedule::{LogLinear, absorbing_sigma, first_hit, reveal_probability};
use crate::ops::categorical::{Drawn, Kind, draws};
use crate::rng::Noise;

/// Steps to a block that an ancestral grid may have at most.
pub const MAX_STEPS: u32 = 8192;

/// How the masked positions of a block become tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Predictor {
    /// One position a step, at the random times at which the reverse process would reveal them.
    FirstHitting,
    /// A grid of `steps` equal times to a block; a grid step that reveals nothing costs no evaluation.
    Ancestral { steps: u32 },
    /// Every position whose most probable token is more probable than `threshold`, and always the surest one.
    Confidence { threshold: f32 },
}

impl Predictor {
    pub(super) fn check(&self) -> Result<(), Error> {
        match *self {
            Self::FirstHitting => Ok(()),
            Self::Ancestral { steps } => count("steps", steps as usize, 1, MAX_STEPS as usize),
            Self::Confidence { threshold } => share("threshold", threshold),
        }
    }
}

/// The reverse process of one block, going from time 1 to 0.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    predictor: Predictor,
    time: f64,
    /// Ancestral grid steps taken in this block.
    taken: u32,
    /// Steps taken since the sequence began, idle ones included: the step index of the noise.
    pub step: u32,
}

impl Clock {
    pub fn new(predictor: Predictor) -> Self {
        Self {
            predictor,
            time: 1.0,
            taken: 0,
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

    /// Goes on to the next step that reveals anything and fills `chosen` with the positions it reveals; under a
    /// confidence threshold, with every candidate.
    ///
    /// `masked`: the block's masked positions, ascending, at least one. `block`: its first and last position.
    pub fn advance(
        &mut self,
        masked: &[usize],
        block: std::ops::Range<usize>,
        noise: &Noise,
        chosen: &mut Vec<usize>,
    ) {
        chosen.clear();
        match self.predictor {
            Predictor::FirstHitting => {
                self.step = self.step.wrapping_add(1);
                let drawn = noise.at(self.step, block.start as u32);
                self.time = first_hit(self.time, masked.len(), drawn.uniform(draws::TIME));
                let place = drawn.uniform(draws::PLACE) * masked.len() as f64;
                chosen.extend(masked.get(place as usize));
            }
            Predictor::Ancestral { steps } => {
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
            Predictor::Confidence { .. } => {
                self.step = self.step.wrapping_add(1);
                self.time = masked.len() as f64 / block.len().max(1) as f64;
                chosen.extend(masked);
            }
        }
    }

    /// Of what was drawn for the candidates, the indices of those to be revealed.
    pub fn sure(&self, drawn: &[Drawn]) -> Vec<usize> {
        let Predictor::Confidence { threshold } = self.predictor else {
            return (0..drawn.len()).collect();
        };
        let above = (0..drawn.len()).filter(|&index| drawn[index].certainty > f64::from(threshold));
        let above: Vec<usize> = above.collect();
        if !above.is_empty() {
            return above;
        }
        // `max_by` takes the last of equals; reversed, the first.
        (0..drawn.len())
            .rev()
            .max_by(|&a, &b| drawn[a].certainty.total_cmp(&drawn[b].certainty))
            .into_iter()
            .collect()
    }

    /// What is drawn at a position that is revealed, or may be.
    pub fn kind(&self) -> Kind {
        match self.predictor {
            Predictor::Confidence { .. } => Kind::Sure,
            _ => Kind::Predicted,
        }
    }
}
