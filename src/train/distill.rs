//! Discrete consistency distillation (Duo, arXiv 2506.10892): the student at time t learns what the teacher says at
//! s = t - dt on the same trajectory; dt doubles each round, and each round's teacher is the student's average so far.
//!
//! The trajectory is deterministic in the Gaussian latent space: z_t = alpha~_t onehot(x_0) + sigma~_t noise with the same
//! noise at t and s, of which the network reads the argmax. That is x_0 as long as mu_t + noise(x_0) is above the largest
//! of the others' noise, else always the same other token. So two numbers say it all, and no noise over the vocabulary is
//! drawn: the other token, and u uniform in (0, 1), which is below the chance alpha_t + (1 - alpha_t) / V of x_0 exactly
//! where the Gaussian gap is (both are monotone in t).

use super::Error;
use super::data::Contexts;
use super::noisy::{Loss, Noisy};
use super::objective::Objective;
use crate::ops::Divergence;
use crate::rng::Stream;
use crate::sampler::schedule::LogLinear;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    pub rounds: u32,
    /// 1 / dt of the first round.
    pub first_steps: u32,
    pub divergence: Divergence,
}

impl Distillation {
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |field, reason: String| Err(Error::Setting { field, reason });
        if !(1..=16).contains(&self.rounds) {
            return refuse("rounds", format!("{} are not 1 to 16", self.rounds));
        }
        if self.first_steps == 0 || self.dt(self.rounds - 1) > 1.0 {
            let reason = format!(
                "1/{} doubled {} times exceeds all time",
                self.first_steps,
                self.rounds - 1
            );
            return refuse("first steps", reason);
        }
        Ok(())
    }

    /// The round when `progress` of the run is over, from 0.
    pub fn round(&self, progress: f64) -> u32 {
        ((progress * f64::from(self.rounds)) as u32).min(self.rounds - 1)
    }

    pub fn dt(&self, round: u32) -> f64 {
        f64::from(round).exp2() / f64::from(self.first_steps)
    }
}

impl Objective {
    /// x_t for the student and x_s, dt earlier, for the teacher; t is drawn as in [`corrupt`](Self::corrupt) plus dt.
    pub fn trajectory(
        &self,
        contexts: &Contexts,
        tokens: usize,
        dt: f64,
        divergence: Divergence,
        stream: &mut Stream,
    ) -> Noisy {
        let unit = self.unit(contexts.length);
        let late: Vec<f64> = self
            .times(contexts, stream)
            .iter()
            .map(|t| (t + dt).min(1.0))
            .collect();
        let early: Vec<f64> = late.iter().map(|t| t - dt).collect();
        let states = tokens as f64;
        let (mut xt, mut xs) = (contexts.tokens.clone(), contexts.tokens.clone());
        for (i, &truth) in contexts.tokens.iter().enumerate() {
            let (u, other) = (stream.uniform(), stream.below(tokens - 1) as u32);
            let other = if other < truth { other } else { other + 1 };
            let at = |t: f64| {
                let moved = LogLinear::UNIFORM.move_chance(t);
                let kept = u < 1.0 - moved + moved / states;
                if kept || contexts.importance[i] == 0.0 {
                    truth
                } else {
                    other
                }
            };
            (xt[i], xs[i]) = (at(late[i / unit]), at(early[i / unit]));
        }
        let teacher = self.uniform_noise(contexts, xs, &early, tokens).input;
        Noisy {
            loss: Loss::Consistency { tokens, divergence },
            teacher: Some(teacher),
            ..self.uniform_noise(contexts, xt, &late, tokens)
        }
    }
}
