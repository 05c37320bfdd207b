//! The uniform sampler's machine, driven by a scripted network, and its closed forms against longer ones.

use proptest::prelude::*;

use crate::sampler::schedule::LogLinear;
use crate::sampler::{
    Kappa, MAX_STEPS, Mixture, NoiseRemoval, Progress, Psi, Reason, Sampler, TimeProfile,
    UniformPredictor, UniformSampler, UniformSettings,
};

const VOCAB: usize = 7;

pub fn settings() -> UniformSettings {
    UniformSettings {
        block_size: None,
        max_tokens: 10,
        predictor: predictor(),
        temperature: 1.0,
        nucleus_p: 1.0,
        top_k: None,
        stop_ids: Vec::new(),
        vocab_size: VOCAB,
        time_conditioned: true,
        prefill_chunk: 8,
    }
}

fn predictor() -> UniformPredictor {
    UniformPredictor {
        steps: 6,
        ..UniformPredictor::default()
    }
}

fn start(settings: UniformSettings, prompt: &[u32], seed: u64) -> Sampler {
    Sampler::Uniform(UniformSampler::new(settings, prompt, seed).unwrap())
}

/// One step under a network that is sure of the token `position mod 7`.
fn step(sampler: &mut Sampler) -> Progress {
    let evaluation = sampler.next().clone();
    let row = |position: &usize| {
        (0..VOCAB)
            .map(|token| if token == position % VOCAB { 30.0 } else { 0.0 })
            .collect()
    };
    let rows: Vec<Vec<f32>> = evaluation.rows.iter().map(row).collect();
    sampler.accept(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn run(sampler: &mut Sampler) -> Reason {
    loop {
        if let Progress::Finished(reason) = step(sampler) {
            return reason;
        }
    }
}

#[test]
fn a_sequence_takes_its_steps_and_one_more() {
    for noise_removal in [NoiseRemoval::Ancestral, NoiseRemoval::Greedy] {
        let mut sampler = start(
            UniformSettings {
                predictor: UniformPredictor {
                    noise_removal,
                    ..predictor()
                },
                ..settings()
            },
            &[6, 6, 6],
            1,
        );
        let mut sigmas = Vec::new();
        while sampler.finished().is_none() {
            let evaluation = sampler.next();
            assert_eq!(
                (
                    evaluation.first_position,
                    evaluation.clean,
                    evaluation.tokens.len()
                ),
                (0, 0, 13)
            );
            assert_eq!(evaluation.tokens[..3], [6, 6, 6]);
            assert_eq!(evaluation.rows, (3..13).collect::<Vec<_>>());
            sigmas.push(evaluation.sigma);
            assert!(sampler.generated().is_empty());
            step(&mut sampler);
        }
        assert_eq!(sampler.finished(), Some(Reason::Length));
        assert_eq!(
            sampler.generated(),
            (3..13).map(|position| position % 7).collect::<Vec<u32>>()
        );
        assert_eq!(sampler.nfe(), 7);
        assert!(
            sigmas.is_sorted_by(|a, b| a > b) && (sigmas[0] - 6.907_755).abs() < 1e-5,
            "{sigmas:?}"
        );
        assert!(matches!(step(&mut sampler), Progress::Finished(_)));
    }
}

#[test]
fn fixed_tokens_stay() {
    let template = [Some(5), None, None, Some(6), None, Some(0)];
    let mut sampler = Sampler::Uniform(UniformSampler::fill(settings(), &template, 3).unwrap());
    assert_eq!(sampler.next().rows, [1, 2, 4]);
    while sampler.finished().is_none() {
        step(&mut sampler);
        assert!(
            sampler
                .revealed()
                .iter()
                .all(|&(position, _)| template[position].is_none())
        );
    }
    assert_eq!(sampler.generated(), [1, 2, 6, 4, 0]);
}

#[test]
fn a_stop_token_ends_the_text() {
    let mut sampler = start(
        UniformSettings {
            stop_ids: vec![5, 6],
            ..settings()
        },
        &[5, 5],
        1,
    );
    assert_eq!(run(&mut sampler), Reason::Stop);
    assert_eq!(sampler.generated(), [2, 3, 4]);
}

#[test]
fn the_prior_is_uniform_and_follows_the_seed() {
    let long = UniformSettings {
        max_tokens: 7000,
        ..settings()
    };
    let prior = |seed| start(long.clone(), &[], seed).next().tokens.clone();
    assert_eq!(prior(1), prior(1));
    assert_ne!(prior(1), prior(2));
    let mut counts = [0.0f64; VOCAB];
    prior(1)
        .iter()
        .for_each(|&token| counts[token as usize] += 1.0);
    let statistic: f64 = counts
        .iter()
        .map(|count| (count - 1000.0).powi(2) / 1000.0)
        .sum();
    assert!(
        statistic < 22.46,
        "chi-square with 6 degrees of freedom, 1e-3 level: {counts:?}"
    );
}

#[test]
fn bad_settings_are_named() {
    let good = settings;
    let refused =
        |settings: UniformSettings| UniformSampler::new(settings, &[], 0).unwrap_err().field();
    let predictor = |predictor: UniformPredictor| {
        refused(UniformSettings {
            predictor,
            ..good()
        })
    };
    let default = UniformPredictor::default;
    let psi = |psi: Psi| predictor(UniformPredictor { psi, ..default() });
    let ancestral = Psi::ANCESTRAL;
    for steps in [0, MAX_STEPS + 1] {
        assert_eq!(predictor(UniformPredictor { steps, ..default() }), "steps");
    }
    for bad in [f64::NAN, -0.1, 1.1] {
        assert_eq!(
            predictor(UniformPredictor {
                eps: bad,
                ..default()
            }),
            "eps"
        );
        assert_eq!(
            refused(UniformSettings {
                temperature: bad as f32 - 1.2,
                ..good()
            }),
            "temperature"
        );
        assert_eq!(
            refused(UniformSettings {
                nucleus_p: bad as f32,
                ..good()
            }),
            "nucleus_p"
        );
        assert_eq!(
            psi(Psi {
                high_fraction: bad,
                ..ancestral
            }),
            "high_fraction"
        );
        assert_eq!(
            psi(Psi {
                high_fraction: 0.5,
                middle_fraction: bad,
                ..ancestral
            }),
            "middle_fraction"
        );
        assert_eq!(
            psi(Psi {
                profile: TimeProfile::Pause { time: bad },
                ..ancestral
            }),
            "profile_time"
        );
        assert_eq!(
            psi(Psi {
                profile: TimeProfile::PauseAtAlpha { alpha: bad },
                ..ancestral
            }),
            "profile_alpha"
        );
        assert_eq!(
            psi(Psi {
                high: Kappa::Constant(bad),
                ..ancestral
            }),
            "kappa_high"
        );
        assert_eq!(
            psi(Psi {
                middle: Kappa::MaxCapped { eta: bad },
                ..ancestral
            }),
            "kappa_middle"
        );
        assert_eq!(
            psi(Psi {
                low: Kappa::MaxRescale { eta: bad },
                ..ancestral
            }),
            "kappa_low"
        );
    }
    assert_eq!(
        refused(UniformSettings {
            max_tokens: 0,
            ..good()
        }),
        "max_tokens"
    );
    assert_eq!(
        refused(UniformSettings {
            top_k: Some(0),
            ..good()
        }),
        "top_k"
    );
    assert_eq!(
        refused(UniformSettings {
            stop_ids: vec![7],
            ..good()
        }),
        "stop_ids"
    );
    assert_eq!(
        UniformSampler::new(good(), &[7], 0).unwrap_err().field(),
        "prompt"
    );
    for template in [&[][..], &[Some(1)], &[Some(7), None]] {
        assert_eq!(
            UniformSampler::fill(good(), template, 0)
                .unwrap_err()
                .field(),
            "template"
        );
    }
}

/// The posterior over the whole vocabulary.
fn spread(mixture: Mixture, predicted: &[f64], present: usize) -> Vec<f64> {
    let each = |token: usize| {
        let kept = if token == present { mixture.keep } else { 0.0 };
        kept + mixture.predicted * predicted[token] + mixture.uniform / predicted.len() as f64
    };
    (0..predicted.len()).map(each).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Bayes' rule, one token at a time: q(x_s | x_t) is proportional to q(x_t | x_s) q(x_s | x̂0).
    #[test]
    fn the_posterior_is_bayes_rule(weights in prop::collection::vec(0.01f64..1.0, 2..9), present: usize, t in 0.01f64..1.0, share in 0.0f64..1.0) {
        let (vocab, total) = (weights.len() as f64, weights.iter().sum::<f64>());
        let present = present % weights.len();
        let x0: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let (alpha_t, alpha_s) = (LogLinear::UNIFORM.alpha(t), LogLinear::UNIFORM.alpha(t * share));
        let ours = spread(Mixture::new(alpha_t, alpha_s, 1.0, x0[present], x0.len()), &x0, present);
        // Duo takes q(x_s | x_t, x_0 = x̂0) with a soft x̂0, which is Bayes' rule on these marginals.
        let (alpha_ts, beta) = (alpha_t / alpha_s, 1.0 - alpha_t / alpha_s);
        let joint: Vec<f64> = (0..x0.len())
            .map(|s| {
                let forward = alpha_ts * f64::from(u8::from(s == present)) + beta / vocab;
                forward * (alpha_s * x0[s] + (1.0 - alpha_s) / vocab)
            })
            .collect();
        let evidence: f64 = joint.iter().sum();
        for (ours, joint) in ours.iter().zip(&joint) {
            prop_assert!((ours - joint / evidence).abs() < 1e-12);
        }
    }

    /// The corrector is the posterior at s = 0, noised to time s again.
    #[test]
    fn a_psi_step_mixes_posterior_and_corrector(
        weights in prop::collection::vec(0.01f64..1.0, 2..9), present: usize, t in 0.01f64..1.0, share in 0.0f64..1.0, kappa in 0.0f64..=1.0,
    ) {
        let total: f64 = weights.iter().sum();
        let present = present % weights.len();
        let x0: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let (alpha_t, alpha_s) = (LogLinear::UNIFORM.alpha(t), LogLinear::UNIFORM.alpha(t * share));
        let mixture = |alpha_s, kappa| Mixture::new(alpha_t, alpha_s, kappa, x0[present], x0.len());
        let (posterior, clean) = (spread(mixture(alpha_s, 1.0), &x0, present), spread(mixture(1.0, 1.0), &x0, present));
        let whole = mixture(alpha_s, kappa);
        prop_assert!((whole.keep + whole.predicted + whole.uniform - 1.0).abs() < 1e-12);
        prop_assert!(whole.keep >= 0.0 && whole.predicted >= 0.0 && whole.uniform >= 0.0);
        for (token, ours) in spread(whole, &x0, present).into_iter().enumerate() {
            let corrected = alpha_s * clean[token] + (1.0 - alpha_s) / x0.len() as f64;
            prop_assert!((ours - kappa * posterior[token] - (1.0 - kappa) * corrected).abs() < 1e-12);
        }
    }

    #[test]
    fn grids_fall_from_one_to_eps(
        steps in 1usize..100, high_fraction in 0.0f64..=1.0, share in 0.0f64..=1.0, time in 1e-3f64..=1.0, eta in 0.0f64..=1.0, kind in 0usize..7,
    ) {
        let kappa = [
            Kappa::PurePosterior, Kappa::PureCorrector, Kappa::Constant(eta), Kappa::ConstantRemdm { eta },
            Kappa::MaxCapped { eta }, Kappa::MaxRescale { eta }, Kappa::MaxRescaleOnce { eta },
        ][kind];
        let profile = TimeProfile::Pause { time };
        let psi = Psi { profile, high_fraction, middle_fraction: (1.0 - high_fraction) * share, high: kappa, middle: kappa, low: kappa };
        let times = psi.times(steps, 1e-5);
        prop_assert_eq!(times.len(), steps + 1);
        prop_assert!(times.is_sorted_by(|a, b| a >= b) && times.iter().all(|&t| (1e-5..=1.0).contains(&t)));
        let kappas = psi.kappas(&times, LogLinear::UNIFORM);
        prop_assert_eq!(kappas.len(), steps + 1);
        prop_assert!(kappas.iter().all(|kappa| (0.0..=1.0).contains(kappa)));
    }
}
