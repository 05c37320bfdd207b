//! Time profiles and kappa schedules of the Psi-samplers against the papers' own code.

use crate::fixtures::Case;
use choir::sampler::schedule::LogLinear;
use choir::sampler::{Kappa, Psi, TimeProfile};

fn profile(name: &str) -> TimeProfile {
    let Some(rest) = name.strip_prefix("linear-constant-linear-") else {
        return TimeProfile::Linear;
    };
    match rest.strip_suffix("-inv") {
        Some(alpha) => TimeProfile::PauseAtAlpha {
            alpha: alpha.parse().expect("alpha"),
        },
        None => TimeProfile::Pause {
            time: rest.parse().expect("time"),
        },
    }
}

fn kappa(name: &str) -> Kappa {
    let (kind, value) = name.rsplit_once('-').expect("mode");
    let eta = value.parse().unwrap_or(f64::NAN);
    match kind {
        "constant" => Kappa::Constant(eta),
        "constant-remdm" => Kappa::ConstantRemdm { eta },
        "max-capped" => Kappa::MaxCapped { eta },
        "max-rescale" => Kappa::MaxRescale { eta },
        _ if name == "pure-pc" => Kappa::PureCorrector,
        _ => Kappa::PurePosterior,
    }
}

fn close(ours: &[f64], theirs: &[f64], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: length");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() <= 2e-5, "{what}: {ours} for {theirs}");
    }
}

#[test]
fn grids_are_those_of_the_published_code() {
    let case = Case::load("duo-tiny");
    // psi.<profile>.<steps>.<mode>; profiles and modes have dots of their own.
    let grids = case.names("psi.", ".times");
    for name in case.names("psi.", ".kappas") {
        let begins = |grid: &&String| name.starts_with(&format!("{grid}."));
        let grid = grids.iter().find(begins).expect("a grid");
        let mode = &name[grid.len() + 1..];
        let (left, steps) = grid["psi.".len()..].rsplit_once('.').expect("steps");
        let (mode, steps) = (kappa(mode), steps.parse().expect("a number"));
        let (high_fraction, middle_fraction, high) = (0.2, 0.6, Kappa::PurePosterior);
        let psi = Psi {
            profile: profile(left),
            high_fraction,
            middle_fraction,
            high,
            middle: mode,
            low: mode,
        };
        let times = psi.times(steps, 1e-5);
        close(&times, &case.doubles(&format!("{grid}.times")).1, &name);
        close(
            &psi.kappas(&times, LogLinear::UNIFORM),
            &case.doubles(&format!("{name}.kappas")).1,
            &name,
        );
    }
}

#[test]
fn one_mode_for_all_parts() {
    let case = Case::load("duo-tiny");
    for (name, mode) in [
        ("constant", Kappa::Constant(0.5)),
        ("max-rescale", Kappa::MaxRescale { eta: 0.04 }),
    ] {
        let all = Psi {
            high: mode,
            middle: mode,
            low: mode,
            high_fraction: 0.2,
            middle_fraction: 0.6,
            ..Psi::ANCESTRAL
        };
        for golden in case.names(&format!("e.{name}.kappas"), "") {
            let (_, golden) = case.doubles(&golden);
            let times = all.times(golden.len() - 1, 1e-5);
            close(&all.kappas(&times, LogLinear::UNIFORM), &golden, name);
        }
    }
}

#[test]
fn eta_once_is_remdms_rescaling() {
    let schedule = LogLinear::UNIFORM;
    let mode = Kappa::MaxRescaleOnce { eta: 0.3 };
    let psi = Psi {
        high: mode,
        middle: mode,
        low: mode,
        ..Psi::ANCESTRAL
    };
    let times = psi.times(16, 1e-5);
    for (step, kappa) in psi
        .kappas(&times, schedule)
        .into_iter()
        .take(16)
        .enumerate()
    {
        let (alpha_t, alpha_s) = (schedule.alpha(times[step]), schedule.alpha(times[step + 1]));
        let sigma = 0.3 * ((1.0 - alpha_s) / alpha_t).min(1.0);
        assert!((kappa - (1.0 - sigma / (1.0 - alpha_s)).max(0.0)).abs() < 1e-12);
    }
}
