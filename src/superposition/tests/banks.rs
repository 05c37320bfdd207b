use proptest::prelude::*;

use super::*;
use crate::transform::Transform;

/// The definition, in f64 and one element at a time: (d / a) with its signs, rounded to the quantum.
fn accumulated_slow(bank: &Bank, name: &str, delta: &Delta, seed: u64) -> Vec<i64> {
    let (fixed, matrix) = (&bank.tensors[name], &delta.matrices[name]);
    let transform = Transform::new(seed, name, [fixed.rows, fixed.cols]);
    let mut cells = Vec::new();
    for i in 0..fixed.rows {
        let row = &matrix.values[i * fixed.cols..(i + 1) * fixed.cols];
        let rms = (row
            .iter()
            .map(|q| f64::from(*q) * f64::from(*q))
            .sum::<f64>()
            / fixed.cols as f64)
            .sqrt();
        for (j, q) in row.iter().enumerate() {
            let value =
                (f64::from(*q) * (f64::from(fixed.fraction_bits).exp2() / rms)).round_ties_even();
            cells.push(
                (value * f64::from(transform.output.sign(i) * transform.input.sign(j))) as i64,
            );
        }
    }
    cells
}

fn cells(fixed: &FixedTensor) -> Vec<i64> {
    match &fixed.cells {
        Cells::I16(cells) => cells.iter().map(|cell| i64::from(*cell)).collect(),
        Cells::I32(cells) => cells.iter().map(|cell| i64::from(*cell)).collect(),
    }
}

#[test]
fn accumulating_is_the_rounded_definition() {
    for capacity in [1, 4, 60] {
        let mut bank = bank(capacity);
        for seed in [3, 8] {
            bank.accumulate(&delta(seed), seed).unwrap();
        }
        for (name, fixed) in &bank.tensors {
            let slow = |seed| accumulated_slow(&bank, name, &delta(seed), seed);
            let sum: Vec<_> = slow(3)
                .into_iter()
                .zip(slow(8))
                .map(|(a, b)| a + b)
                .collect();
            assert_eq!(cells(fixed), sum, "{name} at capacity {capacity}");
        }
    }
}

#[test]
fn cells_are_narrow_where_the_range_leaves_room() {
    let layout = |cols, capacity| {
        let fixed = FixedTensor::zeros([1, cols], capacity, Scheme::default());
        (matches!(fixed.cells, Cells::I16(_)), fixed.fraction_bits)
    };
    assert_eq!(layout(256, 4), (true, 8));
    assert_eq!(layout(256, 2), (true, 9));
    assert_eq!(layout(128, 10), (true, 8));
    assert_eq!(layout(1024, 4), (false, 16));
    assert_eq!(layout(256, 10), (false, 16));
    assert_eq!(layout(50_000, 1000), (false, 13));
    assert_eq!(layout(1, 1), (true, 14));
}

/// The worst that can happen: every member has one spike a row, at the same place with the same sign.
#[test]
fn a_full_bank_cannot_overflow() {
    for (cols, capacity) in [
        (256, 4),
        (255, 4),
        (1024, 2),
        (1, 1),
        (64, 1),
        (33, 16),
        (1024, 16),
    ] {
        let mut fixed = FixedTensor::zeros([1, cols], capacity, Scheme::default());
        let mut values = vec![0; cols];
        values[0] = -127;
        let spike = DeltaMatrix {
            rows: 1,
            cols,
            scales: vec![1.0],
            values,
        };
        let plain = Scheme::PLAIN_SUM.transform(0, "", [1, cols]);
        for member in 0..capacity {
            assert!(
                fixed.add(&spike, &plain, true, fixed::Direction::Add),
                "member {member} of {capacity}, {cols}"
            );
        }
    }
}

#[test]
fn an_overflow_is_refused_and_changes_nothing() {
    let mut bank = bank(1);
    let delta = delta(1);
    let refused = loop {
        let before = bank.clone();
        // The same seed again and again: everything lines up.
        if let Err(error) = bank.accumulate(&delta, 5) {
            assert_eq!(bank, before);
            break error;
        }
    };
    assert!(
        matches!(refused, AccumulateError::Overflow { .. }),
        "{refused}"
    );
}

#[test]
fn a_delta_that_lacks_a_matrix_changes_nothing() {
    let (mut bank, mut delta) = (bank(2), delta(1));
    delta.matrices.remove("vocab_embed.embedding");
    let missing = Mismatch::Missing {
        tensor: "vocab_embed.embedding".to_owned(),
    };
    assert_eq!(
        bank.accumulate(&delta, 1),
        Err(AccumulateError::Mismatch(missing))
    );
    assert_eq!(bank, self::bank(2));
}

#[test]
fn one_variant_alone_is_retrieved_within_the_quantum() {
    let (mut bank, delta) = (bank(1), delta(9));
    bank.accumulate(&delta, 77).unwrap();
    let gains = Private::of(&delta).gains;
    for (name, fixed) in &bank.tensors {
        let retrieved = retrieve(&bank, name, 77, &gains[name], 1.0).unwrap();
        let truth = delta.dense(name).unwrap();
        for (index, (r, t)) in retrieved.iter().zip(&truth).enumerate() {
            let tolerance =
                gains[name][index / fixed.cols] * (0.51 * fixed.quantum() as f32) + 1e-6 * t.abs();
            assert!((r - t).abs() <= tolerance, "{name} {index}: {r} {t}");
        }
    }
    assert_eq!(retrieve(&bank, "norm", 77, &[], 1.0), None);
    assert_eq!(retrieve(&bank, HEAD, 77, &[], 1.0), None);
}

#[test]
fn the_measure_is_the_similarity_of_the_materialised_delta() {
    for scheme in [Scheme::default(), Scheme::RANDES, Scheme::PLAIN_SUM] {
        let mut bank = Bank::new(4, scheme, matrices());
        for seed in 0..4 {
            bank.accumulate(&delta(seed), seed).unwrap();
        }
        let (delta, scale) = (delta(2), 0.7);
        let gains = Private::of(&delta).gains;
        for (name, fast) in measure(&bank, &delta, 2, |_| scale) {
            let retrieved = retrieve(&bank, &name, 2, &gains[&name], scale).unwrap();
            let slow = similarity(&retrieved, &delta.dense(&name).unwrap());
            for (a, b) in [
                (fast.dot, slow.dot),
                (fast.retrieved, slow.retrieved),
                (fast.truth, slow.truth),
            ] {
                assert!(
                    (a - b).abs() <= 1e-5 * slow.truth,
                    "{name} {scheme:?}: {fast:?} {slow:?}"
                );
            }
        }
    }
}

/// With k deltas of equal shape in one bank the cosine is 1 / sqrt(k).
#[test]
fn interference_is_as_large_as_it_should_be() {
    let wide = NamedTensors(BTreeMap::from([(
        "w".to_owned(),
        NamedTensor {
            shape: vec![64, 256],
            data: vec![0.0; 64 * 256],
        },
    )]));
    let mut stream = Stream::new(Key::derive(&[b"interference"]));
    let mut random = || {
        let data = (0..64 * 256).map(|_| stream.normal() as f32).collect();
        let tuned = NamedTensors(BTreeMap::from([(
            "w".to_owned(),
            NamedTensor {
                shape: vec![64, 256],
                data,
            },
        )]));
        Delta::between(&wide, &tuned).unwrap()
    };
    let deltas: Vec<_> = (0..4).map(|_| random()).collect();
    let mut bank = Bank::new(4, Scheme::default(), [("w".to_owned(), [64, 256])]);
    for (seed, delta) in deltas.iter().enumerate() {
        bank.accumulate(delta, seed as u64).unwrap();
        let moments = measure(&bank, &deltas[0], 0, |_| 1.0)["w"];
        let expected = 1.0 / ((seed + 1) as f64).sqrt();
        assert!(
            (moments.cosine() - expected).abs() < 0.02,
            "{} members: {moments:?}",
            seed + 1
        );
        assert!((moments.relative_error() - (seed as f64).sqrt()).abs() < 0.03);
    }
}

#[test]
fn zero_deltas_are_retrieved_perfectly() {
    let zero = Delta::differences(base().digest(), &base(), &base()).unwrap();
    let mut bank = bank(4);
    bank.accumulate(&delta(1), 1).unwrap();
    let before = bank.clone();
    bank.accumulate(&zero, 2).unwrap();
    assert_eq!(bank, before);
    let moments: Moments = measure(&bank, &zero, 2, |_| 1.0).into_values().sum();
    assert_eq!((moments.cosine(), moments.relative_error()), (1.0, 0.0));
}

proptest! {
    /// Any sequence of additions and removals leaves exactly what its survivors alone would give.
    #[test]
    fn only_the_members_matter(toggles in prop::collection::vec(0u64..6, 0..30)) {
        let deltas: Vec<_> = (0..6).map(delta).collect();
        let mut bank = bank(6);
        let mut members = std::collections::BTreeSet::new();
        for k in toggles {
            if members.insert(k) {
                bank.accumulate(&deltas[k as usize], k).unwrap();
            } else {
                members.remove(&k);
                bank.subtract(&deltas[k as usize], k).unwrap();
            }
        }
        let mut rebuilt = self::bank(6);
        for k in members.into_iter().rev() {
            rebuilt.accumulate(&deltas[k as usize], k).unwrap();
        }
        prop_assert_eq!(&bank, &rebuilt);
        prop_assert_eq!(bank.to_bytes(), rebuilt.to_bytes());
    }
}
