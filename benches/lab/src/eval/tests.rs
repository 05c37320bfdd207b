//! A small network, from held-out text to report and picture.

use super::arrangement::{Arrangement, place};
use super::evaluate::{Report, evaluate};
use super::plot;
use super::share::{Reached, Summary, bits, recovered};
use super::table::Tables;
use super::tensors::Group;
use super::trial::{Comparison, DeltaScheme, TrialPlan, same};
use crate::picture::{self, tests::shows};
use choir::catalog::Forms;
use choir::ops::quantized::Quantisation;
use choir::superposition::Scheme;
use clap::ValueEnum;
use small::{config, subjects};

pub mod small;

fn both(form: Quantisation) -> Forms {
    Forms {
        body: form,
        head: form,
    }
}

fn measured() -> Report {
    let subjects = subjects(&[1, 2, 3]);
    let mut plan = TrialPlan::new(
        &[same(1)],
        (&[Quantisation::F32, Quantisation::Q4K], None),
        Comparison::value_variants(),
        3,
    );
    plan.tensors = true;
    let mut ticks = 0;
    let report = evaluate(&subjects, &plan, &mut |_| ticks += 1).expect("report");
    assert_eq!(ticks, 3 * (1 + plan.trials.len() + Group::ALL.len()));
    report
}

#[test]
fn alone_in_a_bank_a_variant_keeps_its_gain() {
    let report = measured();
    let alone = |outcome: &&super::evaluate::Outcome| {
        outcome.trial.capacity == same(1)
            && outcome.trial.scheme == DeltaScheme::Choir
            && outcome.trial.forms == both(Quantisation::F32)
    };
    let outcome = report.outcomes.iter().find(alone).expect("capacity 1");
    for share in &outcome.summary.shares {
        let share = share.expect("a gain");
        assert!((share - 1.0).abs() < 0.01, "{share}");
    }
    for reference in &report.variants {
        let gain = reference.base.nats_per_token - reference.fine_tuned.nats_per_token;
        assert!(gain > 0.2, "{} gained {gain}", reference.name);
    }
    // f32, little that is kept whole in so small a network, and a head of 20 rows in a panel of 32.
    assert!((32.0..42.0).contains(&outcome.bits), "{}", outcome.bits);

    let tables = Tables(&report).to_string();
    for words in [
        "style", "skill", "choir", "RanDeS", "BitDelta", "adaLN", "4/1", "q4k/q2k",
    ] {
        assert!(tables.contains(words), "no {words:?} in\n{tables}");
    }
    assert!(
        serde_json::to_string(&report)
            .expect("json")
            .contains("\"kept_exact\"")
    );
    let chart = plot::chart(&report);
    shows(
        &picture::svg(&chart).expect("picture"),
        chart.series.iter().map(|series| series.points.len()).sum(),
    );
}

#[test]
fn shares_and_bits() {
    assert_eq!(recovered(3.0, 2.0, 2.0), Some(1.0));
    assert_eq!(recovered(3.0, 2.0, 3.0), Some(0.0));
    assert_eq!(recovered(3.0, 2.0, 2.25), Some(0.75));
    assert_eq!(recovered(3.0, 2.0, 3.5), Some(-0.5));
    assert_eq!(recovered(3.0, 3.0, 2.0), None);
    assert_eq!(recovered(3.0, 3.1, 2.0), None);
    assert_eq!(bits(1000, 100, 10), 8.0);
    let reached = |nats_per_token, exact| Reached {
        nats_per_token,
        exact,
    };
    let references = [
        (reached(3.0, None), reached(2.0, None)),
        (reached(4.0, Some(0)), reached(2.0, Some(80))),
        (reached(4.0, Some(0)), reached(4.0, Some(0))),
    ];
    let found = vec![
        reached(2.1, None),
        reached(2.4, Some(60)),
        reached(9.0, Some(1)),
    ];
    let summary = Summary::new(&references, found);
    assert!((summary.mean.expect("mean") - 0.85).abs() < 1e-9);
    assert!((summary.worst.expect("worst") - 0.8).abs() < 1e-9);
    assert_eq!(summary.kept_exact, Some(0.75));
    assert_eq!(summary.shares[2], None);
}

#[test]
fn banks_are_filled_as_a_store_fills_them() {
    assert_eq!(place(&[1, 2, 3, 4, 5], 2), (vec![0, 1, 2, 0, 1], 3));
    assert_eq!(place(&[1, 2, 3, 4, 5, 6], 4), (vec![0, 1, 0, 1, 0, 1], 2));
    // Variants of one seed never share a bank.
    assert_eq!(place(&[7, 7, 7, 8], 2), (vec![0, 1, 2, 0], 3));
    let subjects = subjects(&[1, 2]);
    let shared = |capacity| {
        let arrangement = Arrangement::new(
            &subjects,
            Scheme::default(),
            same(capacity),
            both(Quantisation::F32),
        );
        arrangement.expect("arrangement").bits()
    };
    assert!(shared(2) < 0.6 * shared(1));
}

#[test]
fn every_matrix_is_in_a_group() {
    for (name, _) in config()
        .tensors()
        .iter()
        .filter(|(_, shape)| shape.len() == 2)
    {
        assert!(Group::of(name).is_some(), "{name}");
    }
}
