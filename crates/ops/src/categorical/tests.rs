//! The filters against the slow version (everything in f64, the whole vocabulary sorted), and draws of many rows.

use proptest::prelude::*;
use rayon::prelude::*;

use super::distribution::{logit_of, rank};
use super::{Certainty, Crossing, Draw, DrawKind, Drawn, Filter, FilterWorkspace, draw_all};
use crate::rng::{Key, Noise, Stream};

/// The distribution, and how near the nucleus' running sum comes to p where tokens are cut off (within rounding of it
/// the two versions may differ by a token).
fn slow(filter: &Filter, logits: &[f32]) -> (Vec<f64>, f64) {
    let mut order: Vec<usize> = (0..logits.len())
        .filter(|&token| Some(token as u32) != filter.forbidden)
        .collect();
    order.sort_by(|&a, &b| {
        logits[b]
            .partial_cmp(&logits[a])
            .expect("numbers")
            .then(a.cmp(&b))
    });
    let mut probabilities = vec![0.0; logits.len()];
    if filter.temperature == 0.0 {
        probabilities[order[0]] = 1.0;
        return (probabilities, 1.0);
    }
    order.truncate(filter.top_k.unwrap_or(usize::MAX));
    let weight = |token: usize| {
        ((f64::from(logits[token]) - f64::from(logits[order[0]])) / f64::from(filter.temperature))
            .exp()
    };
    let total: f64 = order.iter().map(|&token| weight(token)).sum();
    let (mut kept, mut running, mut margin) = (0, 0.0, 1.0f64);
    for &token in &order {
        let before = running;
        running += weight(token) / total;
        margin = margin.min((running - f64::from(filter.nucleus_p)).abs());
        let keep = match filter.crossing {
            Crossing::Dropped => running <= f64::from(filter.nucleus_p),
            Crossing::Kept => before <= f64::from(filter.nucleus_p),
        };
        if filter.nucleus_p < 1.0 && !keep && kept > 0 {
            break;
        }
        kept += 1;
    }
    let total: f64 = order[..kept].iter().map(|&token| weight(token)).sum();
    for &token in &order[..kept] {
        probabilities[token] = weight(token) / total;
    }
    (
        probabilities,
        if filter.nucleus_p < 1.0 { margin } else { 1.0 },
    )
}

fn plain() -> Filter {
    Filter {
        temperature: 1.0,
        top_k: None,
        nucleus_p: 1.0,
        crossing: Crossing::Dropped,
        forbidden: None,
    }
}

/// Normal logits of some spread, rounded to `grid` so that many are equal.
fn logits(seed: u64, vocab: usize, spread: f32, grid: f32) -> Vec<f32> {
    let mut stream = Stream::new(Key::derive(&[b"filter test", &seed.to_le_bytes()]));
    (0..vocab)
        .map(|_| ((stream.normal() as f32 * spread) / grid).round() * grid)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn equals_the_slow_version(
        seed: u64, vocab in 2usize..1500, spread in 0.1f32..12.0, grid in prop::sample::select(vec![0.5f32, 1e-3]),
        temperature in prop::sample::select(vec![0.0f32, 0.3, 1.0, 1.7]),
        top_k in prop::option::of(1usize..200), nucleus_p in prop::sample::select(vec![0.01f32, 0.5, 0.9, 0.999, 1.0]),
        dropped: bool, forbidden in prop::option::of(0u32..1500),
    ) {
        let crossing = if dropped { Crossing::Dropped } else { Crossing::Kept };
        let filter = Filter { temperature, top_k, nucleus_p, crossing, forbidden };
        let logits = logits(seed, vocab, spread, grid);
        let (expected, margin) = slow(&filter, &logits);
        prop_assume!(margin > 1e-6);
        let mut workspace = FilterWorkspace::default();
        let distribution = filter.distribution(&logits, &mut workspace);
        for (token, &probability) in expected.iter().enumerate() {
            let ours = distribution.probability(token as u32);
            prop_assert!((ours - probability).abs() <= 1e-5 * probability + 1e-12, "token {token}: {ours} for {probability}");
        }
        for uniform in [1e-16, 0.1, 0.5, 0.9, 1.0 - 1e-16] {
            let token = distribution.draw(uniform) as usize;
            let below: f64 = expected[..token].iter().sum();
            prop_assert!(expected[token] > 0.0 && below <= uniform + 1e-6 && below + expected[token] >= uniform - 1e-6);
        }
    }

    #[test]
    fn a_draw_does_not_depend_on_its_neighbours(
        seed: u64,
        rows in prop::collection::vec((0..4, 2usize..900, prop::sample::select(vec![0.5f32, 0.9, 1.0]), any::<bool>()), 2..40),
    ) {
        let row = |(position, &(kind, vocab, nucleus_p, cut)): (usize, &(i32, usize, f32, bool))| {
            let kind = match kind {
                0 => DrawKind::Predicted,
                1 => DrawKind::Best,
                2 => DrawKind::Sure(Certainty::Best),
                _ => DrawKind::Mixture { present: 1, alpha_t: 0.3, alpha_s: 0.6, kappa: 0.5 },
            };
            let filter = Filter { nucleus_p, top_k: cut.then_some(9), ..plain() };
            let (noise, step, position) = (Noise::new(seed), 3, position as u32);
            let draw = Draw { filter, tokens: vocab, noise, step, position, kind };
            (draw, logits(seed ^ u64::from(position), vocab + 2, 3.0, 1e-3))
        };
        let rows: Vec<(Draw, Vec<f32>)> = rows.iter().enumerate().map(row).collect();
        let alone = |(draw, logits): &(Draw, Vec<f32>)| {
            draw.apply(&logits[..draw.tokens], &mut FilterWorkspace::default())
        };
        let alone: Vec<Drawn> = rows.iter().map(alone).collect();
        let beside = |rows: &[&(Draw, Vec<f32>)]| draw_all(rows.par_iter().map(|row| (&row.0, &row.1[..])));
        prop_assert_eq!(beside(&rows.iter().collect::<Vec<_>>()), &alone[..]);
        let mut backwards = beside(&rows.iter().rev().collect::<Vec<_>>());
        backwards.reverse();
        prop_assert_eq!(backwards, alone);
    }
}

#[test]
fn top_k_cuts_what_is_far_below_where_exactly_k_are_near() {
    let filter = Filter {
        top_k: Some(2),
        ..plain()
    };
    let logits = [-9.0, 0.0, -1.0, -8.5];
    let mut workspace = FilterWorkspace::default();
    let distribution = filter.distribution(&logits, &mut workspace);
    assert_eq!(
        [0, 3].map(|token| distribution.probability(token)),
        [0.0; 2]
    );
}

#[test]
fn a_draw_inverts_the_cumulative_distribution() {
    let logits = logits(1, 1000, 2.0, 1e-3);
    let (expected, _) = slow(&plain(), &logits);
    let mut workspace = FilterWorkspace::default();
    let distribution = plain().distribution(&logits, &mut workspace);
    let mut below = 0.0;
    for (token, probability) in expected.iter().enumerate() {
        assert_eq!(distribution.draw(below + probability / 2.0), token as u32);
        below += probability;
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0f32, 1.0, -1.0, 2.0, 0.5, 9.0];
    let filter = Filter {
        forbidden: Some(5),
        ..plain()
    };
    let (expected, _) = slow(&filter, &logits);
    let noise = Noise::new(7);
    let mut workspace = FilterWorkspace::default();
    let distribution = filter.distribution(&logits, &mut workspace);
    let draws = 20_000;
    let mut counts = [0.0; 6];
    for step in 0..draws {
        counts[distribution.draw(noise.uniform(step, 3, 0)) as usize] += 1.0;
    }
    assert_eq!(counts[5], 0.0);
    let cell = |token: usize| {
        (counts[token] - expected[token] * f64::from(draws)).powi(2)
            / (expected[token] * f64::from(draws))
    };
    let statistic: f64 = (0..5).map(cell).sum();
    assert!(
        statistic < 18.47,
        "chi-square with 4 degrees of freedom, 1e-3 level: {statistic}"
    );
}

#[test]
fn greedy_takes_the_lowest_of_equal_tokens() {
    let filter = Filter {
        temperature: 0.0,
        ..plain()
    };
    let mut workspace = FilterWorkspace::default();
    assert_eq!(
        filter
            .distribution(&[1.0, 3.0, -0.0, 3.0], &mut workspace)
            .draw(0.99),
        1
    );
    assert_eq!(
        filter.distribution(&[-0.0, 0.0], &mut workspace).draw(0.99),
        0
    );
    let filter = Filter {
        forbidden: Some(1),
        ..filter
    };
    assert_eq!(
        filter
            .distribution(&[1.0, 3.0, -0.0, 3.0], &mut workspace)
            .best(),
        3
    );
}

#[test]
fn rows_that_are_no_numbers_draw_an_allowed_token() {
    let filter = Filter {
        forbidden: Some(0),
        ..plain()
    };
    let mut workspace = FilterWorkspace::default();
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        assert_eq!(filter.distribution(&[bad; 4], &mut workspace).draw(0.9), 1);
        assert_eq!(
            filter
                .distribution(&[bad, bad, 0.5, bad], &mut workspace)
                .draw(1e-9),
            2
        );
    }
    let endless = [0.0, 1.0, f32::INFINITY, f32::INFINITY];
    assert_eq!(filter.distribution(&endless, &mut workspace).draw(0.25), 2);
    assert_eq!(filter.distribution(&endless, &mut workspace).draw(0.75), 3);
    for nucleus_p in [0.5, 1.0] {
        let filter = Filter {
            nucleus_p,
            top_k: Some(2),
            temperature: 1e-30,
            ..filter
        };
        assert_eq!(
            filter
                .distribution(&[f32::NAN, f32::NAN, 7.0, 1.0], &mut workspace)
                .draw(0.5),
            2
        );
    }
}

#[test]
fn confidence_ignores_temperature_and_cuts() {
    let filter = Filter {
        temperature: 0.0,
        top_k: Some(1),
        nucleus_p: 0.1,
        forbidden: Some(2),
        ..plain()
    };
    let mut workspace = FilterWorkspace::default();
    let mut plain = |token| filter.plain(&[0.0, 3f32.ln(), 80.0], &mut workspace, token);
    for (token, expected) in [
        (None, 0.75),
        (Some(1), 0.75),
        (Some(0), 0.25),
        (Some(9), 0.0),
    ] {
        let found = plain(token);
        assert!((found - expected).abs() < 1e-6, "{token:?}: {found}");
    }
}

#[test]
fn certainty_is_the_best_tokens_or_the_drawn_ones_before_or_after_filters() {
    let logits: [f32; 4] = [2f32.ln(), 0.0, 0.0, 0.0]; // 0.4, 0.2, 0.2, 0.2
    let certain = |temperature, top_k, certainty, seed| {
        let draw = Draw {
            filter: Filter {
                temperature,
                top_k,
                ..plain()
            },
            tokens: 4,
            noise: Noise::new(seed),
            step: 1,
            position: 2,
            kind: DrawKind::Sure(certainty),
        };
        draw.apply(&logits, &mut FilterWorkspace::default())
    };
    let mut others = 0;
    for seed in 0..40 {
        for (certainty, of_best, of_other) in [
            (Certainty::Best, 0.4, 0.4),
            (Certainty::Drawn, 0.4, 0.2),
            (Certainty::Filtered, 2.0 / 3.0, 1.0 / 3.0),
        ] {
            let drawn = certain(1.0, Some(2), certainty, seed);
            let expected = if drawn.token == 0 { of_best } else { of_other };
            assert!(
                (drawn.certainty - expected).abs() < 1e-6,
                "{certainty:?}: {drawn:?}"
            );
            others += u32::from(drawn.token != 0);
        }
    }
    assert!(others > 0, "nothing but the best token was drawn");
    let squared = certain(0.5, None, Certainty::Filtered, 0);
    let expected = if squared.token == 0 {
        4.0 / 7.0
    } else {
        1.0 / 7.0
    };
    assert!((squared.certainty - expected).abs() < 1e-6, "{squared:?}");
    for certainty in [Certainty::Drawn, Certainty::Filtered] {
        let greedy = certain(0.0, None, certainty, 0);
        assert!(
            greedy.token == 0 && (greedy.certainty - 0.4).abs() < 1e-6,
            "{greedy:?}"
        );
    }
}

#[test]
fn ranks_order_by_logit_then_token() {
    let descending = [
        (3, f32::INFINITY),
        (9, 2.5),
        (0, 1.0),
        (1, 1.0),
        (2, 0.0),
        (4, -0.0),
        (1, -1e-40),
        (0, -3.0),
        (5, f32::NAN),
    ];
    for pair in descending.windows(2) {
        assert!(
            rank(pair[0].0, pair[0].1) < rank(pair[1].0, pair[1].1),
            "{pair:?}"
        );
    }
    for logit in [f32::MAX, 1.5, 0.0, -2.5, f32::MIN, f32::NEG_INFINITY] {
        assert_eq!(logit_of(rank(7, logit)), logit);
    }
}
