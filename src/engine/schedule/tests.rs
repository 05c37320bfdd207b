//! What a step's choice promises: by hand, and for any mixture of claims.

use super::*;
use proptest::prelude::*;

fn text(account: usize, tokens: usize, served: u64) -> Claim {
    Claim {
        account,
        priority: Priority::Interactive,
        tokens,
        elastic: false,
        served,
        urgent: false,
    }
}

fn accounts(weights: &[f64]) -> Vec<Account> {
    let account = |&weight| Account {
        counter: 0.0,
        weight,
    };
    weights.iter().map(account).collect()
}

fn indices(step: &[StepShare]) -> Vec<usize> {
    step.iter().map(|share| share.index).collect()
}

#[test]
fn of_one_variant_longest_unserved_first_and_ties_by_arrival() {
    let claims = [text(0, 4, 2), text(0, 4, 1), text(0, 4, 2), text(0, 4, 0)];
    let step = choose(&claims, &accounts(&[1.0]), 12, 1);
    assert_eq!(indices(&step), [3, 1, 0]);
}

#[test]
fn the_least_served_variant_comes_first_and_pays_as_it_goes() {
    let mut accounts = accounts(&[1.0, 1.0]);
    accounts[0].counter = 9.0;
    let claims = [
        text(0, 4, 0),
        text(0, 4, 0),
        text(1, 4, 9),
        text(1, 4, 9),
        text(1, 4, 9),
        text(1, 4, 9),
    ];
    assert_eq!(indices(&choose(&claims, &accounts, 16, 1)), [2, 3, 4, 0]);
    accounts[0].weight = 8.0;
    assert_eq!(indices(&choose(&claims, &accounts, 20, 1)), [2, 3, 4, 0, 1]);
}

#[test]
fn one_always_fits_and_who_was_left_out_for_long_comes_first() {
    let alone = [text(0, 100, 0)];
    assert_eq!(indices(&choose(&alone, &accounts(&[1.0]), 8, 1)), [0]);
    let urgent = Claim {
        urgent: true,
        ..text(1, 4, 65)
    };
    let both = [text(0, 100, 1), urgent];
    let mut accounts = accounts(&[1.0, 1.0]);
    accounts[0].counter = 1e9;
    assert_eq!(indices(&choose(&both, &accounts, 8, 65)), [1]);
    assert_eq!(indices(&choose(&both, &accounts, 8, 66)), [0]);
}

#[test]
fn scores_take_what_is_left_and_never_nothing() {
    let score = Claim {
        priority: Priority::Batch,
        elastic: true,
        ..text(0, 4, 0)
    };
    let share = |claims: &[Claim]| choose(claims, &accounts(&[1.0]), 64, 1).last().copied();
    assert_eq!(
        share(&[score, text(0, 10, 0)]),
        Some(StepShare {
            index: 0,
            tokens: 54
        })
    );
    assert_eq!(
        share(&[score, text(0, 56, 0)]),
        Some(StepShare {
            index: 0,
            tokens: 8
        })
    );
    assert_eq!(
        share(&[score]),
        Some(StepShare {
            index: 0,
            tokens: 64
        })
    );
    let crowd = [
        text(0, 56, 0),
        text(0, 56, 0),
        Claim {
            tokens: 16,
            ..score
        },
    ];
    assert_eq!(
        share(&crowd),
        Some(StepShare {
            index: 2,
            tokens: 16
        })
    );
}

#[test]
fn a_step_is_kept_short_for_who_is_urgent_and_it_comes_first() {
    let urgent = Claim {
        urgent: true,
        ..text(1, 4, 9)
    };
    let mut claims = vec![text(0, 4, 0); 9];
    assert_eq!(short(&claims, 64), 64);
    claims.push(urgent);
    assert_eq!((short(&claims, 64), short(&claims, 3)), (5, 3));
    let mut accounts = accounts(&[1.0, 1.0]);
    accounts[1].counter = 99.0;
    assert_eq!(indices(&choose(&claims, &accounts, 16, 1)), [9, 0, 1, 2]);
    // What is kept back for batch claims does not push out anybody urgent.
    let batch = Claim {
        priority: Priority::Batch,
        ..text(0, 1, 0)
    };
    claims.extend(std::iter::repeat_n(urgent, 8).chain([batch]));
    let step = choose(&claims, &accounts, short(&claims, 64), 1);
    assert_eq!(
        indices(&step)
            .iter()
            .filter(|&&index| claims[index].urgent)
            .count(),
        9
    );
}

#[test]
fn what_was_kept_back_and_is_not_used_is_not_wasted() {
    let batch = Claim {
        priority: Priority::Batch,
        ..text(0, 4, 0)
    };
    let claims = [text(0, 1, 0), text(0, 59, 1), batch];
    let step = choose(&claims, &accounts(&[1.0]), 64, 1);
    assert_eq!(indices(&step), [0, 2, 1]);
}

fn some_claims() -> impl Strategy<Value = (Vec<Claim>, Vec<f64>, usize)> {
    let weights = proptest::collection::vec(prop_oneof![Just(1.0), 0.25..4.0], 1..6);
    let claims = proptest::collection::vec((0..6usize, 1..24usize, any::<bool>(), 0..9u64), 1..40);
    (claims, weights, 8..128usize).prop_map(|(claims, weights, budget)| {
        let claim = |&(account, tokens, batch, served): &(usize, usize, bool, u64)| Claim {
            priority: if batch {
                Priority::Batch
            } else {
                Priority::Interactive
            },
            ..text(
                account % weights.len() + usize::from(batch) * weights.len(),
                tokens,
                served,
            )
        };
        (
            claims.iter().map(claim).collect(),
            weights.repeat(2),
            budget,
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_claim_is_left_out_that_fits((claims, weights, budget) in some_claims(), now in 0..200u64) {
        let step = choose(&claims, &accounts(&weights), budget, now);
        let used: usize = step.iter().map(|share| share.tokens).sum();
        let mut chosen = indices(&step);
        chosen.sort_unstable();
        prop_assert!(!chosen.is_empty() && chosen.windows(2).all(|pair| pair[0] != pair[1]));
        for (index, claim) in claims.iter().enumerate() {
            let fits = used + claim.tokens <= budget;
            prop_assert!(!fits || chosen.contains(&index), "{claim:?} would have fitted beside {used} of {budget}");
        }
        // The first one of each priority may be too big; nothing else goes beyond the budget.
        let biggest = claims.iter().map(|claim| claim.tokens).max().unwrap_or(0);
        prop_assert!(used <= budget + 2 * biggest);
    }
}

fn place(account: usize, priority: Priority, started: u64) -> RunningSequence {
    RunningSequence {
        account,
        priority,
        started,
    }
}

#[test]
fn a_quiet_variant_gets_the_latest_place_of_the_one_that_has_most() {
    use Priority::{Batch, Interactive};
    let next = place(2, Interactive, 9);
    let mut running = [0, 0, 1, 0]
        .map(|account| place(account, Interactive, 1))
        .to_vec();
    running[1].started = 5;
    let victim = |running: &[RunningSequence], next, waiting: &[usize], weights: &[f64]| {
        victim(running, next, waiting, &accounts(weights), 4)
    };
    let even = [1.0; 3];
    assert_eq!(victim(&running, next, &[9, 0, 1], &even), Some(1));
    assert_eq!(
        victim(&running[..3], next, &[9, 0, 1], &even),
        None,
        "a place is free"
    );
    assert_eq!(
        victim(&running, place(1, Interactive, 9), &[9, 1, 0], &even),
        Some(1),
        "two each"
    );
    assert_eq!(
        victim(&running, place(0, Interactive, 9), &[9, 1, 0], &even),
        None,
        "it has most itself"
    );
    assert_eq!(
        victim(&running, next, &[9, 0, 1], &[9.0, 1.0, 1.0]),
        None,
        "it is worth no place yet"
    );
    assert_eq!(
        victim(&running, place(2, Batch, 9), &[9, 0, 0], &even),
        None
    );
    let batch = [
        place(0, Interactive, 1),
        place(1, Batch, 2),
        place(1, Batch, 3),
        place(1, Batch, 1),
    ];
    assert_eq!(victim(&batch, next, &[0, 0, 1], &even), Some(2));
    let part = [
        place(0, Interactive, 1),
        place(0, Interactive, 2),
        place(0, Interactive, 3),
        place(1, Batch, 9),
    ];
    assert_eq!(
        victim(&part, next, &[0, 0, 1], &even),
        Some(2),
        "batch keeps its part"
    );
    let single = [0, 1, 3, 4].map(|account| place(account, Interactive, 1));
    assert_eq!(
        victim(&single, next, &[0, 0, 1, 0, 0], &[1.0; 5]),
        None,
        "nobody loses its only place"
    );
}

proptest! {
    /// Making room comes to an end, for a variant below its share, and takes from none what it is due.
    #[test]
    fn places_settle_at_fair_shares(
        has in proptest::collection::vec((0..12usize, 0..12usize), 2..6),
        weights in proptest::collection::vec(0.25..4.0f64, 6),
    ) {
        let accounts = accounts(&weights[..has.len()]);
        let mut waiting: Vec<usize> = has.iter().map(|(_, waiting)| *waiting).collect();
        let mut running: Vec<RunningSequence> = (has.iter().enumerate())
            .flat_map(|(account, &(running, _))| std::iter::repeat_n(place(account, Priority::Interactive, 0), running))
            .collect();
        let places = running.len();
        let wants: Vec<usize> = has.iter().map(|(running, waiting)| running + waiting).collect();
        let fair = fair_shares(&wants, &accounts, places);
        prop_assert!((fair.iter().sum::<f64>() - (places as f64).min(wants.iter().sum::<usize>() as f64)).abs() < 1e-6);
        let count = |running: &[RunningSequence], account| running.iter().filter(|place| place.account == account).count();
        let mut moves = 0;
        while let Some((next, at)) = (0..accounts.len()).filter(|&next| waiting[next] > 0).find_map(|next| {
            let place = place(next, Priority::Interactive, 0);
            Some((next, victim(&running, place, &waiting, &accounts, places)?))
        }) {
            let from = running.swap_remove(at).account;
            running.push(place(next, Priority::Interactive, moves));
            prop_assert!(from != next && count(&running, from) as f64 >= fair[from].floor());
            prop_assert!(count(&running, next) as f64 <= fair[next]);
            (waiting[from], waiting[next]) = (waiting[from] + 1, waiting[next] - 1);
            moves += 1;
            prop_assert!(moves <= places as u64);
        }
    }
}
