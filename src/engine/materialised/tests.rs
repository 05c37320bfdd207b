use super::*;
use crate::engine::generation::tests::{SIZE, generation};
use crate::model::VariantId;
use std::time::Duration;

/// Steps after which what has all rows is hot.
const WARM: usize = 44;

fn materialised(limit: usize) -> Materialised {
    Materialised::start(limit).expect("a thread")
}

/// A step of so many rows of each of these variants: which of them have an instance.
fn step(all: &mut Materialised, of: &Arc<Generation>, rows: &[(u32, usize)]) -> Vec<bool> {
    let mix = |&(variant, _): &(u32, usize)| Mix::single(VariantId(variant));
    let mixes: Vec<Mix> = rows.iter().map(mix).collect();
    let work = mixes
        .iter()
        .zip(rows)
        .map(|(mix, &(_, rows))| (of, mix, rows));
    let chosen = all.choose(&work.collect::<Vec<_>>());
    chosen.iter().map(Option::is_some).collect()
}

/// Steps of one variant alone, and then until nothing is being made any more.
fn warm(all: &mut Materialised, of: &Arc<Generation>, variant: u32) {
    (0..WARM).for_each(|_| drop(step(all, of, &[(variant, 8)])));
    while all
        .mixes
        .iter()
        .any(|entry| matches!(entry.standing, Standing::Making(_)))
    {
        std::thread::yield_now();
        all.sweep();
    }
}

#[test]
fn hot_variant_is_made_and_used_where_it_has_most_of_a_step() {
    let (generation, mut all) = (generation(false), materialised(SIZE));
    (0..WARM - 5).for_each(|_| drop(step(&mut all, &generation, &[(0, 8)])));
    assert_eq!(all.bytes(), 0, "not yet");
    warm(&mut all, &generation, 0);
    assert_eq!(all.bytes(), SIZE);
    assert_eq!(step(&mut all, &generation, &[(0, 8)]), [true]);
    assert_eq!(
        step(&mut all, &generation, &[(0, 8), (1, 8)]),
        [false, false]
    );
    assert_eq!(
        step(&mut all, &generation, &[(0, 8), (0, 16), (1, 8)]),
        [true, true, false]
    );
    // The base and what is not its mix are never apart.
    let (base, mixed) = (Mix::base(), Mix(vec![(VariantId(0), 0.5)]));
    assert!(all.choose(&[(&generation, &base, 10)])[0].is_none());
    assert!(all.choose(&[(&generation, &mixed, 10)])[0].is_none());
}

#[test]
fn room_is_made_by_what_is_hot_no_more() {
    let (generation, mut all) = (generation(false), materialised(SIZE));
    warm(&mut all, &generation, 0);
    warm(&mut all, &generation, 1);
    assert_eq!(step(&mut all, &generation, &[(0, 8)]), [false]);
    assert_eq!(step(&mut all, &generation, &[(1, 8)]), [true]);
    assert_eq!(all.bytes(), SIZE);
}

#[test]
fn instance_of_no_generation_any_more_is_freed_also_while_it_is_made() {
    let mut all = materialised(SIZE);
    let first = generation(false);
    warm(&mut all, &first, 0);
    drop(first);
    all.sweep();
    assert_eq!(all.bytes(), 0);
    let second = generation(false);
    (0..WARM).for_each(|_| drop(step(&mut all, &second, &[(0, 8)])));
    drop(second);
    let late = all.made.recv_timeout(Duration::from_secs(60));
    all.sweep();
    assert!(late.is_ok() && all.bytes() == 0);
}

#[test]
fn instance_that_fails_is_not_tried_again() {
    let mut all = materialised(SIZE);
    let broken = generation(true);
    warm(&mut all, &broken, 0);
    warm(&mut all, &broken, 0);
    assert_eq!((all.bytes(), all.mixes.len()), (0, 1));
    let whole = generation(false);
    warm(&mut all, &whole, 0);
    let mix = Mix::single(VariantId(0));
    let single = all.choose(&[(&whole, &mix, 10)]).remove(0).expect("made");
    single.give_up();
    warm(&mut all, &whole, 0);
    assert_eq!(
        (step(&mut all, &whole, &[(0, 8)]), all.bytes()),
        (vec![false], 0)
    );
}

#[test]
fn mixes_remembered_are_few_and_none_without_room() {
    let (generation, mut all) = (generation(false), materialised(SIZE));
    for weight in 0..1000 {
        let mix = Mix(vec![(VariantId(0), weight as f32)]);
        all.choose(&[(&generation, &mix, 1)]);
    }
    assert!(
        all.mixes.len() <= (1.0 / COLD) as usize,
        "{}",
        all.mixes.len()
    );
    let mut never = materialised(0);
    step(&mut never, &generation, &[(0, 8)]);
    assert!(never.mixes.is_empty());
}
