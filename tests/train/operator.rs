//! The diffusion transformation operator against the papers' own numbers.

use crate::fixtures::folder;
use choir::train::operator::{Operator, upper_quantile, upper_tail};
use serde_json::Value;

fn numbers(value: &Value) -> Vec<f64> {
    let all = value.as_array().expect("numbers").iter();
    all.map(|x| x.as_f64().expect("number")).collect()
}

#[test]
fn the_operator_and_its_slope_are_the_references() {
    let file = std::fs::read(folder("duo-tiny").join("operator_T.json")).expect("operator_T.json");
    let file: Value = serde_json::from_slice(&file).expect("json");
    let gammas = numbers(&file["gammas"]);
    let per_time =
        file["gamma_max"].as_f64().expect("max") - file["gamma_min"].as_f64().expect("min");
    for (vocab, case) in file["vocab"].as_object().expect("cases by vocabulary") {
        let operator = Operator::new(vocab.parse().expect("a number"));
        let (alphas, slopes) = (
            numbers(&case["alpha_reference"]),
            numbers(&case["dalpha_series"]),
        );
        for ((&gamma, &alpha), &slope) in gammas.iter().zip(&alphas).zip(&slopes) {
            let mu = (-gamma / 2.0).exp();
            assert!(
                (operator.alpha(mu) - alpha).abs() < 1e-12,
                "{vocab}, gamma {gamma}"
            );
            // Published series have not converged below.
            if gamma >= -3.5 {
                let ours = operator.noise(mu).1 * mu / 2.0 * per_time;
                assert!(
                    (ours - slope).abs() < 1e-10,
                    "{vocab}, gamma {gamma}: {ours}, not {slope}"
                );
            }
            let (share, back) = (operator.noise(mu).0, operator.signal(operator.noise(mu).0));
            if share > 1e-13 {
                assert!(
                    (back - mu).abs() < 1e-9,
                    "{vocab}, gamma {gamma}: mu {back}, not {mu}"
                );
            }
        }
    }
}

#[test]
fn the_inverse_gives_back_every_share_of_noise() {
    for vocab in [2, 3, 1023, 50258] {
        let operator = Operator::new(vocab);
        assert!(
            (operator.noise(0.0).0 - 1.0).abs() < 1e-12,
            "no signal is all noise"
        );
        for exponent in -20..0 {
            for noise in [f64::from(exponent).exp2(), 1.0 - f64::from(exponent).exp2()] {
                let found = operator.noise(operator.signal(noise)).0;
                assert!(
                    (found - noise).abs() < 1e-9 * noise,
                    "{vocab}: {found}, not {noise}"
                );
            }
        }
    }
}

#[test]
fn tails_and_quantiles_of_the_normal() {
    // From tables of the complementary error function.
    let known = [
        (1.0, 0.158_655_253_931_457_05),
        (2.5, 0.006_209_665_325_776_132),
        (3.0, 0.001_349_898_031_630_094_5),
        (5.0, 2.866_515_718_791_939e-7),
        (-1.0, 0.841_344_746_068_542_9),
    ];
    for (x, tail) in known {
        assert!(
            (upper_tail(x) - tail).abs() < 1e-13 * tail,
            "{x}: {}",
            upper_tail(x)
        );
    }
    for step in 0..120 {
        let x = f64::from(step) / 10.0;
        assert!((upper_quantile(upper_tail(x)) - x).abs() < 1e-9, "{x}");
    }
}
