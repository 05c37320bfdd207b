//! Pearson's chi-square test, with cells of small expectation pooled.

/// The level of every test, of which a run has about a hundred: with other samples than these, too, a failure is a fault and not chance.
pub const LEVEL: f64 = 1e-5;
/// The least expectation of a cell of its own.
const SMALL: f64 = 5.0;

/// ln Gamma(x) for x > 0, by Lanczos' approximation (g = 7, nine coefficients): relative error below 1e-13.
fn ln_gamma(x: f64) -> f64 {
    const C: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let series = (1..9).map(|i| C[i] / (x + i as f64)).sum::<f64>() + C[0];
    let t = x + 7.5;
    0.5 * std::f64::consts::TAU.ln() + (x + 0.5) * t.ln() - t + series.ln()
}

/// The chance that a chi-square variable with `freedom` degrees of freedom exceeds `statistic`: the upper regularised
/// incomplete gamma function Q(freedom / 2, statistic / 2), by its series below the mean and its continued fraction above.
pub fn survival(statistic: f64, freedom: f64) -> f64 {
    let (a, x) = (freedom / 2.0, statistic / 2.0);
    if x <= 0.0 {
        return 1.0;
    }
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        while term > sum * 1e-16 {
            n += 1.0;
            term *= x / n;
            sum += term;
        }
        return 1.0 - front * sum;
    }
    // Lentz' method.
    let (mut b, mut c) = (x + 1.0 - a, 1e300);
    let mut d = 1.0 / b;
    let mut fraction = d;
    for i in 1..100_000 {
        let numerator = -f64::from(i) * (f64::from(i) - a);
        b += 2.0;
        d = 1.0 / (numerator * d + b);
        c = b + numerator / c;
        fraction *= d * c;
        if (d * c - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * fraction
}

/// The p-value of `counts` under the law `probabilities` (which need not be normalised).
pub fn against_law(counts: &[f64], probabilities: &[f64]) -> f64 {
    assert_eq!(counts.len(), probabilities.len());
    let scale = counts.iter().sum::<f64>() / probabilities.iter().sum::<f64>();
    let (mut statistic, mut cells, mut rest) = (0.0, 0.0, (0.0, 0.0));
    let mut add = |observed: f64, expected: f64| {
        statistic += (observed - expected).powi(2) / expected;
        cells += 1.0;
    };
    for (&observed, probability) in counts.iter().zip(probabilities) {
        let expected = probability * scale;
        if expected >= SMALL {
            add(observed, expected);
        } else {
            rest = (rest.0 + observed, rest.1 + expected);
        }
    }
    if rest.1 >= SMALL {
        add(rest.0, rest.1);
    } else {
        assert!(
            rest.0 < 2.0 + 4.0 * SMALL,
            "{} samples where {} are expected",
            rest.0,
            rest.1
        );
    }
    survival(statistic, cells - 1.0)
}

/// The p-value of two samples' counts being of one law.
pub fn two_samples(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let (n, m) = (ours.iter().sum::<f64>(), theirs.iter().sum::<f64>());
    let (mut statistic, mut cells, mut rest) = (0.0, 0.0, (0.0, 0.0));
    let mut add = |a: f64, b: f64| {
        statistic += (a * (m / n).sqrt() - b * (n / m).sqrt()).powi(2) / (a + b);
        cells += 1.0;
    };
    for (&a, &b) in ours.iter().zip(theirs) {
        // The smaller of the two expectations, under the pooled estimate.
        if (a + b) * n.min(m) / (n + m) >= SMALL {
            add(a, b);
        } else {
            rest = (rest.0 + a, rest.1 + b);
        }
    }
    if rest.0 + rest.1 > 0.0 {
        add(rest.0, rest.1);
    }
    survival(statistic, cells - 1.0)
}

/// How often each token stands at a position, among sequences of equal length.
pub fn marginal(samples: &[Vec<u32>], position: usize, vocab: usize) -> Vec<f64> {
    let mut counts = vec![0.0; vocab];
    samples
        .iter()
        .for_each(|sample| counts[sample[position] as usize] += 1.0);
    counts
}

/// How often each pair of tokens stands at two positions: [vocab, vocab].
pub fn joint(samples: &[Vec<u32>], positions: [usize; 2], vocab: usize) -> Vec<f64> {
    let mut counts = vec![0.0; vocab * vocab];
    for sample in samples {
        counts[sample[positions[0]] as usize * vocab + sample[positions[1]] as usize] += 1.0;
    }
    counts
}

#[test]
fn quantiles_are_those_of_the_tables() {
    for (statistic, freedom, p) in [
        (10.828, 1.0, 1e-3),
        (18.467, 4.0, 1e-3),
        (49.728, 23.0, 1e-3),
        (149.449, 100.0, 1e-3),
        (99.334, 100.0, 0.5),
        (1143.917, 1000.0, 1e-3),
    ] {
        let ours = survival(statistic, freedom);
        assert!(
            (ours / p - 1.0).abs() < 2e-3,
            "{freedom} degrees of freedom: {ours}"
        );
    }
}
