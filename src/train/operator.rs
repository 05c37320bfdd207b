//! The diffusion transformation operator of Duo (arXiv 2506.10892): from a Gaussian process over one-hot vectors to the
//! uniform process that its argmax is.
//!
//! With z = alpha~ onehot(x_0) + sigma~ noise and the signal mu = alpha~ / sigma~ (alpha~² + sigma~² = 1, mu = exp(-gamma/2)),
//! the argmax is x_0 with probability pt = ∫ φ(x - mu) Φ(x)^(V-1) dx, else any other token alike. So it is uniform-state
//! noise with alpha = (V pt - 1) / (V - 1).

/// Where Φ(x)^(V-1) has become 1 for any V that fits a machine, and φ(x) has become 0.
const RANGE: (f64, f64) = (-9.0, 14.0);
const STEP: f64 = 1.0 / 32.0;
/// No token is noisy any more: V times the chance that a normal exceeds 13 / sqrt(2), below 1e-12.
pub const LARGEST_SIGNAL: f64 = 13.0;

/// The operator for one size of the vocabulary.
///
/// Integrals are sums over a fixed grid (the trapezoid rule, which for smooth integrands that vanish at both ends converges
/// faster than any power of the step): the share of noise 1 - alpha is exact to 1e-12, relatively to 1e-8 where it is small.
#[derive(Clone, Debug)]
pub struct Operator {
    /// (x, STEP / sqrt(2 pi) (1 - Φ(x)^(V-1)) V/(V-1)).
    grid: Vec<(f64, f64)>,
}

impl Operator {
    /// `vocab`: at least 2.
    pub fn new(vocab: usize) -> Self {
        let (others, scale) = (vocab as f64 - 1.0, vocab as f64 / (vocab as f64 - 1.0));
        let points = ((RANGE.1 - RANGE.0) / STEP) as usize;
        let point = |at: usize| {
            let x = RANGE.0 + at as f64 * STEP;
            let any_above = -(others * (-upper_tail(x)).ln_1p()).exp_m1();
            (x, STEP * any_above * scale / std::f64::consts::TAU.sqrt())
        };
        Self {
            grid: (0..=points).map(point).collect(),
        }
    }

    /// The share of noise 1 - alpha at a signal mu >= 0, and its derivative in mu (negative).
    pub fn noise(&self, mu: f64) -> (f64, f64) {
        let (mut share, mut slope) = (0.0, 0.0);
        for &(x, weight) in &self.grid {
            let part = weight * (-(x - mu) * (x - mu) / 2.0).exp();
            share += part;
            slope += (x - mu) * part;
        }
        (share, slope)
    }

    /// alpha of the uniform process for a signal mu of the Gaussian one.
    pub fn alpha(&self, mu: f64) -> f64 {
        1.0 - self.noise(mu).0
    }

    /// The inverse: the signal mu at which the share of noise is 1 - alpha, at most [`LARGEST_SIGNAL`].
    pub fn signal(&self, noise: f64) -> f64 {
        let (mut low, mut high) = (0.0, LARGEST_SIGNAL);
        let mut mu = 3.0;
        // Newton's steps on the logarithm, kept within a bracket that halves where they leave it.
        for _ in 0..64 {
            let (share, slope) = self.noise(mu);
            *(if share > noise { &mut low } else { &mut high }) = mu;
            let next = mu - (share / noise).ln() * share / slope;
            let next = if next > low && next < high {
                next
            } else {
                (low + high) / 2.0
            };
            if (next - mu).abs() < 1e-12 {
                break;
            }
            mu = next;
        }
        mu
    }
}

fn density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

/// 1 - Φ(x), the chance that a standard normal exceeds x; relative error below 1e-13 for x up to 35.
pub fn upper_tail(x: f64) -> f64 {
    if x < 0.0 {
        return 1.0 - upper_tail(-x);
    }
    if x < 2.5 {
        // Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/15 + ...)
        let (mut term, mut sum, mut odd) = (x, x, 1.0);
        while term > 1e-17 * sum {
            odd += 2.0;
            term *= x * x / odd;
            sum += term;
        }
        return 0.5 - density(x) * sum;
    }
    // Laplace's continued fraction φ(x) / (x + 1/(x + 2/(x + 3/(...)))).
    let fraction = (1..=120).rev().fold(x, |below, k| x + f64::from(k) / below);
    density(x) / fraction
}

/// The x that a standard normal exceeds with probability `tail` in (0, 1/2]; error below 1e-9.
pub fn upper_quantile(tail: f64) -> f64 {
    // Hastings' rational approximation (Abramowitz and Stegun 26.2.23), then one of Halley's steps.
    let t = (-2.0 * tail.ln()).sqrt();
    let x = t
        - (2.515517 + t * (0.802853 + t * 0.010328))
            / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    let r = (tail - upper_tail(x)) / density(x);
    x - r / (1.0 + r * x / 2.0)
}
