//! The bound of the uniform process.

use super::schedule::LogLinear;

/// The rate at time t of the negative evidence lower bound of one token, in nats: its integral over t in (0, 1), in
/// expectation over x_t, bounds -log p(x_0) up to the prior's term (a few thousandths of a nat, left out as published).
///
/// With x̄_j = V alpha x_j + 1 - alpha, for x_0 as it is and as predicted, and z = x_t, it is Duo's form of low variance
/// (arXiv 2506.10892), in which the first two terms and the sum vanish together where the prediction is right:
///
/// ```text
/// -alpha' / (V alpha) · [ V / x̄θ_z - V / x̄_z + sum over j of  x̄_j / x̄_z · log( x̄_j x̄θ_z / (x̄_z x̄θ_j) ) ]
/// ```
///
/// `logits`: [V]; `present`: z; `clean`: x_0; both below V; 0 < t <= 1.
pub fn uniform_rate(logits: &[f32], present: u32, clean: u32, t: f64) -> f64 {
    let schedule = LogLinear::UNIFORM;
    let (vocab, alpha) = (logits.len() as f64, schedule.alpha(t));
    let noise = schedule.move_chance(t);
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, &logit| top.max(logit));
    let weight = |logit: f32| f64::from(logit - top).exp();
    let own = vocab * alpha / logits.iter().map(|&logit| weight(logit)).sum::<f64>();
    let mixed = |logit: f32| own * weight(logit) + noise;
    let at = |token: u32| logits.get(token as usize).map_or(f64::NAN, |&logit| mixed(logit));
    let (present_mixed, clean_mixed) = (at(present), at(clean));
    let logs: f64 = logits.iter().map(|&logit| mixed(logit).ln()).sum();
    // x̄_j is `high` at x_0 and `noise` elsewhere.
    let (high, log_ratio) = (vocab * alpha + noise, (vocab * alpha / noise).ln_1p());
    let log_present = present_mixed.ln();
    let rate = if present == clean {
        let others = vocab * log_present - logs - (vocab - 1.0) * log_ratio;
        vocab / present_mixed - vocab / high + noise / high * others
    } else {
        let log_clean = clean_mixed.ln();
        let others = (vocab - 1.0) * log_present - logs + log_clean;
        vocab / present_mixed - vocab / noise + others + high / noise * (log_ratio + log_present - log_clean)
    };
    -schedule.alpha_rate() / (vocab * alpha) * rate
}
