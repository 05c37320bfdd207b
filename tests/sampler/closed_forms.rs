//! Schedules, filters and posteriors against the numbers of the papers' own code.

use crate::drive::{evaluate, network};
use crate::fixtures::{self, Case};
use choir::sampler::schedule::{LogLinear, absorbing_sigma, reveal_probability};
use choir::sampler::{Crossing, Filter, FilterWorkspace, Mixture, Psi};
use std::fmt::Debug;
use std::str::FromStr;

/// Asserts that every value agrees within `tolerance` of itself or of 1, whichever is the larger.
fn close(ours: impl IntoIterator<Item = f64>, theirs: &[f64], tolerance: f64, what: &str) {
    let ours: Vec<f64> = ours.into_iter().collect();
    assert_eq!(ours.len(), theirs.len(), "{what}: length");
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let error = (ours - theirs).abs() / theirs.abs().max(1.0);
        assert!(error <= tolerance, "{what} at {index}: {ours} for {theirs}");
    }
}

/// The numbers that follow `prefix` in the names of cases.
fn numbers<T: FromStr<Err: Debug>>(case: &Case, prefix: &str) -> Vec<T> {
    let names = case.names(prefix, "").into_iter();
    let number = |name: String| name[prefix.len()..].parse().expect("a number");
    names.map(number).collect()
}

#[test]
fn absorbing_schedule() {
    let case = Case::load("bd3lm-tiny");
    let golden = |name: &str| case.doubles(&format!("schedule.{name}")).1;
    let times = golden("t");
    let each = |f: &dyn Fn(f64) -> f64| times.iter().map(|&t| f(t)).collect::<Vec<f64>>();
    let (absorbing, noisy) = (LogLinear::ABSORBING, LogLinear::UNIFORM);
    // The golden values are f32, with 1 - (1 - eps) t rounded where it is small.
    close(
        each(&|t| absorbing.loss_scale(t)),
        &golden("loss_scale"),
        1e-6,
        "loss_scale",
    );
    close(
        each(&|t| absorbing.move_chance(t)),
        &golden("move_chance"),
        1e-9,
        "move_chance",
    );
    close(
        each(&|t| noisy.sigma(t)),
        &golden("total_noise"),
        1e-4,
        "total_noise",
    );
    close(
        each(&|t| noisy.sigma_rate(t)),
        &golden("rate_noise"),
        1e-4,
        "rate_noise",
    );
    close(
        each(&absorbing_sigma),
        &golden("sigma_from_p"),
        1e-4,
        "sigma_from_p",
    );
    close(
        [absorbing_sigma(1.0)],
        &golden("sigma_max"),
        1e-5,
        "sigma_max",
    );
}

#[test]
fn uniform_schedule() {
    let case = Case::load("duo-tiny");
    let golden = |name: &str| case.doubles(&format!("schedule.{name}")).1;
    let schedule = LogLinear::UNIFORM;
    let times = golden("t");
    close(
        times.iter().map(|&t| schedule.alpha(t)),
        &golden("alpha"),
        1e-6,
        "alpha",
    );
    close(
        times.iter().map(|_| schedule.alpha_rate()),
        &golden("dalpha"),
        1e-6,
        "dalpha",
    );
    close(
        times.iter().map(|&t| schedule.sigma(t)),
        &golden("sigma"),
        1e-4,
        "sigma",
    );
    for steps in numbers(&case, "schedule.times") {
        close(
            Psi::ANCESTRAL.times(steps, 1e-5),
            &golden(&format!("times{steps}")),
            1e-6,
            "times",
        );
    }
    for steps in numbers(&case, "schedule.alphas") {
        let times = Psi::ANCESTRAL.times(steps, 1e-5).into_iter();
        let alphas = times.map(|t| schedule.alpha(t));
        close(alphas, &golden(&format!("alphas{steps}")), 1e-6, "alphas");
    }
}

/// Rows of probabilities as logits, filtered: [rows, vocab].
fn filtered(filter: Filter, rows: &[f64], vocab: usize) -> Vec<f64> {
    let mut workspace = FilterWorkspace::default();
    let mut all = Vec::with_capacity(rows.len());
    for row in rows.chunks(vocab) {
        let logits: Vec<f32> = row.iter().map(|p| p.ln() as f32).collect();
        let distribution = filter.distribution(&logits, &mut workspace);
        all.extend((0..vocab as u32).map(|token| distribution.probability(token)));
    }
    all
}

fn block_filter(nucleus_p: f32, mask: u32) -> Filter {
    Filter {
        temperature: 1.0,
        top_k: None,
        nucleus_p,
        crossing: Crossing::Dropped,
        forbidden: Some(mask),
    }
}

#[test]
fn nucleus_of_the_block_sampler() {
    let case = Case::load("bd3lm-tiny");
    let mask = case.config.mask_id().expect("mask");
    let ((_, ids), (shape, plain)) = (case.ids("e.input_ids"), case.doubles("e.p_x0"));
    let (length, block, vocab) = (ids.len() / shape[0], shape[1], shape[2]);
    for name in case.names("e.p_x0_nucleus_", "") {
        let p: f32 = name["e.p_x0_nucleus_".len()..].parse().expect("p");
        let (ours, (_, theirs)) = (
            filtered(block_filter(p, mask), &plain, vocab),
            case.doubles(&name),
        );
        // A row that is not masked has all its mass on its token, which may not be the forbidden one.
        for row in 0..shape[0] * block {
            let at = row * vocab..(row + 1) * vocab;
            assert!(
                ids[row / block * length + length - block + row % block] == mask
                    || plain[at.clone()].contains(&1.0)
            );
            close(ours[at.clone()].iter().copied(), &theirs[at], 1e-6, &name);
        }
    }
}

#[test]
fn posteriors_of_the_absorbing_process() {
    let case = Case::load("bd3lm-tiny");
    let mask = case.config.mask_id().expect("mask");
    let facts =
        std::fs::read(fixtures::folder("bd3lm-tiny").join("cases.json")).expect("cases.json");
    let facts: serde_json::Value = serde_json::from_slice(&facts).expect("json");
    let ((of_ids, ids), (shape, x0)) = (
        case.ids("f.input_ids"),
        case.doubles("f.first_hitting.p_x0_row0"),
    );
    let (length, block, vocab) = (of_ids[1], shape[1], shape[2]);
    for (index, pair) in facts["f_pairs"]
        .as_array()
        .expect("pairs")
        .iter()
        .enumerate()
    {
        let [t, s] = ["t", "s"].map(|name| pair[name].as_f64().expect("time"));
        let chance =
            reveal_probability(LogLinear::ABSORBING.alpha(t), LogLinear::ABSORBING.alpha(s));
        let prefix = format!("f.q_xs.{index}.nucleus");
        for name in case.names(&prefix, "") {
            let p: f32 = name[prefix.len()..].parse().expect("p");
            let theirs = case.doubles(&name).1;
            let tokens = filtered(block_filter(p, mask), &x0, vocab);
            for row in (0..block).filter(|row| ids[length - block + row] == mask) {
                let at = row * vocab..(row + 1) * vocab;
                let mut ours: Vec<f64> = tokens[at.clone()]
                    .iter()
                    .map(|token| token * chance)
                    .collect();
                ours[mask as usize] = 1.0 - chance;
                close(ours, &theirs[at], 1e-6, &name);
            }
        }
    }
}

/// A step's distribution at every row: [rows, vocab].
fn posterior(
    x0: &[f64],
    present: &[u32],
    alpha: impl Fn(usize) -> (f64, f64),
    kappa: f64,
) -> Vec<f64> {
    let vocab = x0.len() / present.len();
    let mut all = Vec::with_capacity(x0.len());
    for (row, (x0, &present)) in x0.chunks(vocab).zip(present).enumerate() {
        let (alpha_t, alpha_s) = alpha(row);
        let mixture = Mixture::new(alpha_t, alpha_s, kappa, x0[present as usize], vocab);
        let uniform = mixture.uniform / vocab as f64;
        let first = all.len();
        all.extend(x0.iter().map(|p| mixture.predicted * p + uniform));
        all[first + present as usize] += mixture.keep;
    }
    all
}

#[test]
fn posteriors_of_the_uniform_process() {
    let case = Case::load("duo-tiny");
    let ((_, x0), (shape, xt)) = (case.doubles("b.x0_probs"), case.ids("b.xt"));
    // f32 alphas are combined in f32 there: their rounding is all that may differ.
    for (kind, tolerance) in [("b.f64.", 1e-10), ("b.f32.", 1e-5)] {
        for name in case.names(kind, ".posterior") {
            let alpha = |which: &str| case.doubles(&format!("{name}.{which}")).1;
            let (alpha_t, alpha_s) = (alpha("alpha_t"), alpha("alpha_s"));
            let ours = posterior(
                &x0,
                &xt,
                |row| (alpha_t[row / shape[1]], alpha_s[row / shape[1]]),
                1.0,
            );
            close(
                ours,
                &case.doubles(&format!("{name}.posterior")).1,
                tolerance,
                &name,
            );
        }
    }
}

#[test]
fn forward_process_of_the_uniform_process() {
    // From time t at which nothing is left of the token (alpha_t = 0), the corrector alone noises x̂0 to time s.
    let case = Case::load("duo-tiny");
    let ((shape, x0), alpha_s) = (case.doubles("fwd.x0_probs"), case.doubles("fwd.alpha_s").1);
    let ours = posterior(
        &x0,
        &vec![0; shape[0] * shape[1]],
        |row| (0.0, alpha_s[row / shape[1]]),
        0.0,
    );
    close(ours, &case.doubles("fwd.out").1, 1e-7, "fwd"); // (1 - alpha_s) is f32 there
}

#[test]
fn steps_of_the_uniform_process() {
    let case = Case::load("duo-tiny");
    let network = network(&case);
    let ((shape, ids), vocab) = (case.ids("d.input_ids"), case.config.vocab_size);
    let sequences: Vec<_> = ids
        .chunks(shape[1])
        .map(|ids| (ids.to_vec(), (0..shape[1]).collect()))
        .collect();
    let schedule = LogLinear::UNIFORM;
    let steps = numbers(&case, "e.constant.kappas")[0];
    let times = Psi::ANCESTRAL.times(steps, 1e-5);
    let predicted = |step: usize, nucleus_p: f32| {
        let filter = Filter {
            temperature: 1.0,
            top_k: None,
            nucleus_p,
            crossing: Crossing::Kept,
            forbidden: None,
        };
        let logits = evaluate(&network, &sequences, schedule.sigma(times[step]) as f32);
        let mut workspace = FilterWorkspace::default();
        let mut all = Vec::with_capacity(logits.data.len());
        for row in logits.data.chunks(vocab) {
            let distribution = filter.distribution(row, &mut workspace);
            all.extend((0..vocab as u32).map(|token| distribution.probability(token)));
        }
        let best: Vec<u32> = logits
            .data
            .chunks(vocab)
            .map(|row| filter.best(row))
            .collect();
        (all, best)
    };
    // Theirs are f32: near the end of the noise 1 - alpha_t is rounded by more than what is compared.
    let single = |t: f64| f64::from(schedule.alpha(t) as f32);
    let alphas = |step: usize| {
        (
            single(times[step]),
            times.get(step + 1).map_or(1.0, |&s| single(s)),
        )
    };
    // The network is f32: its logits agree within 2e-4.
    const TOLERANCE: f64 = 5e-5;
    let number = |name: &str, prefix: &str| {
        name.trim_start_matches(prefix)
            .parse::<usize>()
            .expect("step")
    };
    for name in case.names("d.step", ".q_xs") {
        let step = number(&name, "d.step");
        let ours = posterior(&predicted(step, 1.0).0, &ids, |_| alphas(step), 1.0);
        close(
            ours,
            &case.doubles(&format!("{name}.q_xs")).1,
            TOLERANCE,
            &name,
        );
    }
    let (x0, best) = predicted(steps, 1.0);
    let removed = posterior(&x0, &ids, |_| alphas(steps), 1.0);
    close(
        removed,
        &case.doubles("d.noise_removal.q").1,
        TOLERANCE,
        "noise removal",
    );
    assert_eq!(best, case.ids("d.greedy.ids").1, "greedy noise removal");
    for mode in ["constant", "max-rescale"] {
        let kappas = case.doubles(&format!("e.{mode}.kappas{steps}")).1;
        let prefix = format!("e.{mode}.step");
        for name in case.names(&prefix, ".q_sample") {
            let step = number(&name, &prefix);
            let ours = posterior(
                &predicted(step, 1.0).0,
                &ids,
                |_| alphas(step),
                kappas[step],
            );
            close(
                ours,
                &case.doubles(&format!("{name}.q_sample")).1,
                TOLERANCE,
                &name,
            );
        }
    }
    let worst = |ours: &[f64], theirs: &[f64]| {
        ours.iter()
            .zip(theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max)
    };
    // Their step is not recorded; one of those above fits.
    for name in case.names("d.nucleus", ".p_x0") {
        let p = name["d.nucleus".len()..].parse().expect("p");
        let golden = ["p_x0", "q_xs"].map(|part| case.doubles(&format!("{name}.{part}")).1);
        let fits = (0..steps).any(|step| {
            let (x0, _) = predicted(step, p);
            let ours = posterior(&x0, &ids, |_| alphas(step), 1.0);
            worst(&x0, &golden[0]) < TOLERANCE && worst(&ours, &golden[1]) < TOLERANCE
        });
        assert!(fits, "{name}");
    }
}
