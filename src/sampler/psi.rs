//! Psi-samplers (arXiv 2602.21185): at which times a uniform-state sample is refined, and how much of each step is the
//! posterior's and how much a corrector's.
//!
//! A step from t to s draws from kappa q(x_s | x_t) + (1 - kappa) q_s(x̂0), the second being a guess at the clean token noised
//! to time s again. kappa = 1 is ancestral sampling; below 1 tokens that were settled may change once more.

use super::error::{Error, within};
use super::schedule::LogLinear;
use serde::{Deserialize, Serialize};

/// How time runs over the steps, from 1 to eps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeProfile {
    Linear,
    /// Linear down to `time`, then constant, then linear down to eps; the parts as long as [`Psi`]'s fractions say.
    /// (`linear-constant-linear-<time>` in the published code.)
    Pause {
        time: f64,
    },
    /// The same, paused where alpha_t is about `alpha`: at t = 1 - alpha, as published, although the schedule's eps moves
    /// alpha by a thousandth. (`linear-constant-linear-<alpha>-inv`.)
    PauseAtAlpha {
        alpha: f64,
    },
}

/// The share of the posterior, over one part of the steps. Where sigma is given, as in ReMDM (arXiv 2503.00307), it is the
/// chance that a settled token is unsettled again, and kappa = 1 - sigma / (1 - alpha_s), clipped to [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kappa {
    /// 1: ancestral.
    PurePosterior,
    /// 0: predictor-corrector.
    PureCorrector,
    Constant(f64),
    /// sigma = eta.
    ConstantRemdm {
        eta: f64,
    },
    /// sigma = min(eta, (1 - alpha_s) / alpha_t).
    MaxCapped {
        eta: f64,
    },
    /// sigma = eta min(eta, (1 - alpha_s) / alpha_t), as in the published code, which applies eta twice.
    MaxRescale {
        eta: f64,
    },
    /// sigma = eta min(1, (1 - alpha_s) / alpha_t), as in ReMDM's paper.
    MaxRescaleOnce {
        eta: f64,
    },
}

/// A Psi-sampler: a time profile, and a kappa for each of three parts of the steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Psi {
    pub profile: TimeProfile,
    /// Share of the grid that is the first part, rounded to whole points (half to even).
    pub high_fraction: f64,
    /// Share of the grid that is the second part.
    pub middle_fraction: f64,
    pub high: Kappa,
    pub middle: Kappa,
    pub low: Kappa,
}

impl Psi {
    /// Plain ancestral sampling.
    pub const ANCESTRAL: Self = Self {
        profile: TimeProfile::Linear,
        high_fraction: 0.0,
        middle_fraction: 0.0,
        high: Kappa::PurePosterior,
        middle: Kappa::PurePosterior,
        low: Kappa::PurePosterior,
    };

    pub(super) fn check(&self, eps: f64) -> Result<(), Error> {
        match self.profile {
            TimeProfile::Linear => {}
            TimeProfile::Pause { time } => within("profile_time", time, eps, 1.0)?,
            TimeProfile::PauseAtAlpha { alpha } => within("profile_alpha", alpha, 0.0, 1.0 - eps)?,
        }
        within("high_fraction", self.high_fraction, 0.0, 1.0)?;
        let (value, rest) = (self.middle_fraction, 1.0 - self.high_fraction);
        // 0.9 and 0.1 make 1, whatever their binary digits say.
        if !(0.0..=rest + 1e-9).contains(&value) {
            return Err(Error::OutOfRange {
                field: "middle_fraction",
                value,
                low: 0.0,
                high: rest,
            });
        }
        [
            ("kappa_high", self.high),
            ("kappa_middle", self.middle),
            ("kappa_low", self.low),
        ]
        .into_iter()
        .try_for_each(|(field, kappa)| kappa.check(field))
    }

    /// The grid of `steps` + 1 times, falling from 1 to `eps`.
    pub fn times(&self, steps: usize, eps: f64) -> Vec<f64> {
        let pause = match self.profile {
            TimeProfile::Linear => return spaced(1.0, eps, steps + 1).collect(),
            TimeProfile::Pause { time } => time,
            TimeProfile::PauseAtAlpha { alpha } => 1.0 - alpha,
        };
        let [high, middle, low] = self.parts(steps + 1);
        let constant = std::iter::repeat_n(pause, middle);
        spaced(1.0, pause, high)
            .chain(constant)
            .chain(spaced(pause, eps, low))
            .collect()
    }

    /// kappa for the step that leaves each of `times`; the last one, that of noise removal, is not used.
    pub fn kappas(&self, times: &[f64], schedule: LogLinear) -> Vec<f64> {
        let [high, middle, _] = self.parts(times.len());
        let (first, rest) = times.split_at(high);
        let (second, third) = rest.split_at(middle);
        [(self.high, first), (self.middle, second), (self.low, third)]
            .into_iter()
            .flat_map(|(kappa, times)| {
                (0..times.len()).map(move |at| kappa.at(times, at, schedule))
            })
            .collect()
    }

    /// Points of the grid in each part.
    fn parts(&self, points: usize) -> [usize; 3] {
        let rounded = |fraction: f64| (fraction * points as f64).round_ties_even() as usize;
        let high = rounded(self.high_fraction).min(points);
        let middle = rounded(self.middle_fraction).min(points - high);
        [high, middle, points - high - middle]
    }
}

impl Kappa {
    fn check(&self, field: &'static str) -> Result<(), Error> {
        match *self {
            Self::PurePosterior | Self::PureCorrector => Ok(()),
            Self::Constant(value)
            | Self::ConstantRemdm { eta: value }
            | Self::MaxCapped { eta: value }
            | Self::MaxRescale { eta: value }
            | Self::MaxRescaleOnce { eta: value } => within(field, value, 0.0, 1.0),
        }
    }

    /// kappa at one of a part's times. What depends on the next time is 1 at the part's last one, as published.
    fn at(&self, times: &[f64], at: usize, schedule: LogLinear) -> f64 {
        let (eta, next) = match *self {
            Self::PurePosterior => return 1.0,
            Self::PureCorrector => return 0.0,
            Self::Constant(kappa) => return kappa,
            Self::ConstantRemdm { eta }
            | Self::MaxCapped { eta }
            | Self::MaxRescale { eta }
            | Self::MaxRescaleOnce { eta } => (eta, times.get(at + 1)),
        };
        let Some(&next) = next else { return 1.0 };
        let (alpha_t, alpha_s) = (schedule.alpha(times[at]), schedule.alpha(next));
        let most = (1.0 - alpha_s) / alpha_t;
        let sigma = match self {
            Self::MaxCapped { .. } => eta.min(most),
            Self::MaxRescale { .. } => eta * eta.min(most),
            Self::MaxRescaleOnce { .. } => eta * most.min(1.0),
            _ => eta,
        };
        (1.0 - sigma / (1.0 - alpha_s)).clamp(0.0, 1.0)
    }
}

/// `count` equally spaced numbers from `first` to `last`; `first` alone if one.
fn spaced(first: f64, last: f64, count: usize) -> impl Iterator<Item = f64> {
    let gap = (last - first) / count.saturating_sub(1).max(1) as f64;
    (0..count).map(move |at| {
        if at > 0 && at + 1 == count {
            last
        } else {
            first + gap * at as f64
        }
    })
}
