//! Noise schedules and the closed forms that follow from them. Times run from 1 (all noise) to 0 (data).

/// The log-linear schedule alpha_t = 1 - (1 - eps) t, alpha_t being the chance that a token is still itself at time t.
///
/// Source: MDLM (arXiv 2406.07524), BD3-LM (arXiv 2503.09573) and Duo (arXiv 2506.10892), `LogLinear` in their code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogLinear {
    /// alpha at time 1.
    pub eps: f64,
}

impl LogLinear {
    /// Of the absorbing process: alpha_t = 1 - t, so that the chance of being masked is t itself.
    pub const ABSORBING: Self = Self { eps: 0.0 };
    /// Of the uniform process, and of the sigma that time-conditioned networks are given.
    pub const UNIFORM: Self = Self { eps: 1e-3 };

    pub fn alpha(&self, t: f64) -> f64 {
        1.0 - (1.0 - self.eps) * t
    }

    /// d alpha / d t, the same at every time.
    pub fn alpha_rate(&self) -> f64 {
        self.eps - 1.0
    }

    /// The chance that a token has been corrupted by time t: 1 - alpha_t.
    pub fn move_chance(&self, t: f64) -> f64 {
        (1.0 - self.eps) * t
    }

    /// Total noise, sigma_t = -ln alpha_t in nats; infinite at time 1 where eps is 0.
    pub fn sigma(&self, t: f64) -> f64 {
        -(-self.move_chance(t)).ln_1p()
    }

    /// d sigma / d t.
    pub fn sigma_rate(&self, t: f64) -> f64 {
        -self.alpha_rate() / self.alpha(t)
    }

    /// What ln p(x_0) of a masked token is multiplied by in the absorbing NELBO: alpha' / (1 - alpha) = -1/t.
    pub fn loss_scale(&self, t: f64) -> f64 {
        self.alpha_rate() / self.move_chance(t)
    }
}

/// The sigma a time-conditioned absorbing network is given for a chance of being masked: -ln(1 - p), at most the
/// total noise of [`LogLinear::UNIFORM`] (about 6.9), which keeps p = 1 finite.
pub fn absorbing_sigma(move_chance: f64) -> f64 {
    (-(-move_chance).ln_1p()).min(LogLinear::UNIFORM.sigma(1.0))
}

/// The chance that a position masked at time t is revealed by time s < t: 1 - (1 - alpha_s) / (1 - alpha_t).
///
/// It is exactly 1 for alpha_s = 1, so a grid that ends at s = 0 leaves no mask behind. (The published sampler's grid
/// has a step at t = 0 instead, where it divides by zero.)
pub fn reveal_probability(alpha_t: f64, alpha_s: f64) -> f64 {
    1.0 - (1.0 - alpha_s) / (1.0 - alpha_t)
}

/// The time at which the first of `masked` positions is revealed, going down from time t: t u^(1/n).
///
/// Each of n positions masked at t was masked at an own time uniform in (0, t); the largest of the n has the
/// distribution function (x/t)^n. Source: first-hitting sampler (arXiv 2409.02908), as BD3-LM uses it.
pub fn first_hit(t: f64, masked: usize, uniform: f64) -> f64 {
    t * uniform.powf(1.0 / masked as f64)
}
