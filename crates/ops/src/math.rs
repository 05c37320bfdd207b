//! Scalar functions that the compiler turns into vector code: no branches, no calls.

const ROUNDING: f32 = 12_582_912.0;

/// e^x for f32: 2^n times a polynomial on the rest (Cephes' coefficients); relative error below 2e-7.
/// Below -87 it gives about 1e-38 and above 88 about 1e38 instead of 0 and infinity.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the lowest bits.
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING;
    let n = shifted - ROUNDING;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 5.000_000_3e-1);
    p = p.mul_add(r * r, r + 1.0);
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// Hyperbolic tangent through [`exp`].
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

const GELU_SCALE: f32 = 0.797_884_6; // sqrt(2 / pi)
const GELU_CUBE: f32 = 0.044_715;

/// GELU in its tanh form, as PyTorch's `approximate="tanh"`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x)))
}

/// Derivative of [`gelu`].
#[inline(always)]
pub fn gelu_derivative(x: f32) -> f32 {
    let t = tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x)
}

/// The highest number; -infinity where there is none. A NaN is none.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 32];
    let (groups, rest) = x.as_chunks::<32>();
    for group in groups {
        for (lane, &value) in lanes.iter_mut().zip(group) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let higher = |max: f32, &value: &f32| if value > max { value } else { max };
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, higher)
}

/// Sum in eight lanes: vectorised, and the same for every caller.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let chunks = x.chunks_exact(8);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Dot product in eight lanes.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (a, b) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest: f32 = a
        .remainder()
        .iter()
        .zip(b.remainder())
        .map(|(p, q)| p * q)
        .sum();
    for (p, q) in a.zip(b) {
        for lane in 0..8 {
            lanes[lane] = p[lane].mul_add(q[lane], lanes[lane]);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Replaces scores by their softmax; returns the log of the sum of exponentials.
#[inline(always)]
pub fn softmax(x: &mut [f32]) -> f32 {
    let max = max(x);
    for value in x.iter_mut() {
        *value = exp(*value - max);
    }
    let total = sum(x);
    let inverse = 1.0 / total;
    for value in x.iter_mut() {
        *value *= inverse;
    }
    max + total.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_gelu_match_libm() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let (ours, theirs) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (ours - theirs).abs() <= 3e-7 * theirs,
                "exp({x}) = {ours}, not {theirs}"
            );
            let wide = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            assert!(
                (f64::from(gelu(x)) - 0.5 * wide * (1.0 + u.tanh())).abs()
                    <= 1e-6 * (1.0 + wide.abs())
            );
            let step = 1e-3f32;
            let slope = (gelu(x + step) - gelu(x - step)) / (2.0 * step);
            assert!(
                (slope - gelu_derivative(x)).abs() < 2e-3 * (1.0 + x.abs()),
                "slope at {x}"
            );
        }
    }

    #[test]
    fn the_highest_is_found_anywhere() {
        for count in [1, 31, 32, 33, 100] {
            for place in 0..count {
                let mut x: Vec<f32> = (0..count).map(|i| -(i as f32) - 1.0).collect();
                x[(place + 1) % count] = f32::NAN;
                x[place] = 0.5;
                assert_eq!(max(&x), 0.5);
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn softmax_sums_to_one_and_returns_logsumexp() {
        let mut x: Vec<f32> = (0..19).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
        let expected = x.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
        assert!((f64::from(softmax(&mut x)) - expected).abs() < 1e-5);
        assert!((x.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
