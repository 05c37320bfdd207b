//! The Gaussian curriculum of Duo (arXiv 2506.10892, its efficient form of 2602.21185): early in a run the network reads, in
//! place of argmax(z), the mixture of tokens softmax(z / tau), z the Gaussian latents that the uniform process is the
//! argmax of. It shows which tokens nearly were the argmax, and so the true one sooner.

use super::Error;
use super::data::Contexts;
use super::noisy::Noisy;
use super::objective::{Objective, early};
use super::operator::{Operator, upper_quantile};
use crate::model::SoftTokens;
use crate::rng::Stream;
use crate::sampler::schedule::LogLinear;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curriculum {
    /// The share of the run, from its beginning, that reads mixtures.
    pub share: f64,
    /// tau at the beginning and at the end of that; it falls by equal factors.
    pub tau: (f64, f64),
    /// Tokens in a mixture: the true one and the largest of the others, up to all of them.
    pub choices: usize,
}

impl Curriculum {
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |field, reason: String| Err(Error::Setting { field, reason });
        if !(0.0..=1.0).contains(&self.share) {
            return refuse("curriculum", format!("{} is no share of a run", self.share));
        }
        let (start, end) = self.tau;
        if !(1e-4..=10.0).contains(&end) || !(end..=10.0).contains(&start) {
            return refuse(
                "tau",
                format!("{start} to {end} does not fall within 10 and 0.0001"),
            );
        }
        if self.choices < 2 {
            return refuse("choices", format!("{} tokens are no mixture", self.choices));
        }
        Ok(())
    }

    /// tau when `progress` of the run is over; `None` when the curriculum is.
    pub fn tau(&self, progress: f64) -> Option<f64> {
        let (start, end) = self.tau;
        (progress < self.share).then(|| start * (end / start).powf(progress / self.share))
    }
}

/// How mixtures are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Mixer<'a> {
    pub operator: &'a Operator,
    /// Tokens of the process.
    pub tokens: usize,
    pub choices: usize,
    pub tau: f64,
}

impl Objective {
    /// As [`corrupt`](Self::corrupt) at the same times, with Gaussian latents: x_t is their argmax, `soft` what is read.
    pub fn soften(&self, contexts: &Contexts, mixer: Mixer, stream: &mut Stream) -> Noisy {
        let (times, unit) = (
            self.early_times(contexts, stream),
            self.unit(contexts.length),
        );
        let signal = |&t: &f64| mixer.operator.signal(LogLinear::UNIFORM.move_chance(t));
        let signals: Vec<f64> = times.iter().map(signal).collect();
        let mut soft = SoftTokens {
            choices: mixer.choices.clamp(1, mixer.tokens),
            ..SoftTokens::default()
        };
        let mut xt = contexts.tokens.clone();
        for (i, token) in xt.iter_mut().enumerate() {
            if contexts.importance[i] > 0.0 {
                *token = mixer.push(&mut soft, *token, signals[i / unit], stream);
            } else {
                soft.push_tokens(&[*token]);
            }
        }
        let mut noisy = self.uniform_noise(contexts, xt, &times, mixer.tokens);
        noisy.input.soft = Some(soft);
        early(noisy)
    }
}

impl Mixer<'_> {
    /// Adds a position's mixture, and returns its likeliest token. z = mu onehot(truth) + noise, scaled to alpha~ and sigma~;
    /// of the others' noise only the largest values are drawn, from above: V-1 independent normals have their order
    /// statistics at the quantiles of those of V-1 uniform numbers.
    fn push(&self, soft: &mut SoftTokens, truth: u32, mu: f64, stream: &mut Stream) -> u32 {
        let sharpness = 1.0 / (self.tau * (1.0 + mu * mu).sqrt());
        let first = soft.tokens.len();
        let mut values = vec![mu + stream.normal()];
        soft.tokens.push(truth);
        // ln of the uniform order statistics, the largest first.
        let mut log_uniform = 0.0;
        for rank in 1..soft.choices {
            log_uniform += stream.uniform().ln() / (self.tokens - rank) as f64;
            let tail = -f64::exp_m1(log_uniform);
            values.push(if tail <= 0.5 {
                upper_quantile(tail)
            } else {
                -upper_quantile(log_uniform.exp())
            });
            let mut token = truth;
            while soft.tokens[first..].contains(&token) {
                token = stream.below(self.tokens) as u32;
            }
            soft.tokens.push(token);
        }
        let best = if soft.choices > 1 && values[1] > values[0] {
            1
        } else {
            0
        };
        let weights = values
            .iter()
            .map(|value| ((value - values[best]) * sharpness).exp());
        let total: f64 = weights.clone().sum();
        soft.weights
            .extend(weights.map(|weight| (weight / total) as f32));
        soft.tokens[first + best]
    }
}
