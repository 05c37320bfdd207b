//! A step of the uniform process at one position (Duo, arXiv 2506.10892; Psi-samplers, arXiv 2602.21185).

/// A step's distribution at one position, as a mixture of three: keep the token, draw from x̂0, draw from all tokens alike.
/// So no posterior over the vocabulary is ever written down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    pub keep: f64,
    pub predicted: f64,
    pub uniform: f64,
}

impl Mixture {
    /// kappa q(x_s | x_t, x̂0) + (1 - kappa) q(x_s | x_0 ~ q(x_0 | x_t, x̂0)): the posterior of Duo (its equation for
    /// `_posterior_from_x0`) and the corrector of the Psi-samplers.
    ///
    /// `p`: what x̂0 gives the present token; `vocab`: size of the vocabulary; 0 < alpha_t <= alpha_s <= 1.
    pub fn new(alpha_t: f64, alpha_s: f64, kappa: f64, p: f64, vocab: usize) -> Self {
        let own = alpha_t * vocab as f64 * p;
        let z = own + 1.0 - alpha_t;
        if z <= 0.0 {
            // alpha_t = 1 and p = 0: no noise, and a token that the network rules out.
            return Self {
                keep: 0.0,
                predicted: alpha_s,
                uniform: 1.0 - alpha_s,
            };
        }
        let alpha_ts = alpha_t / alpha_s;
        let corrector = 1.0 - kappa;
        Self {
            keep: (kappa * (own + alpha_ts - alpha_t) + corrector * alpha_s * own) / z,
            predicted: (kappa * (alpha_s - alpha_t) + corrector * alpha_s * (1.0 - alpha_t)) / z,
            uniform: kappa * (1.0 - alpha_ts) * (1.0 - alpha_s) / z + corrector * (1.0 - alpha_s),
        }
    }
}
