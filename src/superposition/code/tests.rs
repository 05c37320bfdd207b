use proptest::prelude::*;

use super::*;
use crate::ops::coded::Rate;
use crate::rng::{Key, Stream};
use crate::superposition::{
    Delta, DeltaError, HEAD, MatrixRole, NamedTensor, NamedTensors, Unreadable,
};

/// Normal numbers.
fn normal(seed: u8, len: usize) -> Vec<f32> {
    let mut stream = Stream::new(Key([seed; 32]));
    (0..len).map(|_| stream.normal() as f32).collect()
}

fn tensors(seed: u8, scale: f32) -> NamedTensors {
    let shapes: [(&str, &[usize]); 6] = [
        ("blocks.0.mlp.weight", &[96, 128]),
        ("blocks.0.narrow.weight", &[176, 24]),
        ("blocks.0.norm.weight", &[128]),
        ("blocks.0.small.weight", &[40, 64]),
        (HEAD, &[70, 128]),
        ("vocab_embed.embedding", &[70, 128]),
    ];
    let tensor = |(at, (name, shape)): (usize, &(&str, &[usize]))| {
        let data = normal(seed.wrapping_add(at as u8), shape.iter().product());
        let data = data.iter().map(|value| value * scale).collect();
        let shape = shape.to_vec();
        (name.to_string(), NamedTensor { shape, data })
    };
    NamedTensors(shapes.iter().enumerate().map(tensor).collect())
}

/// A base, and base + delta.
fn pair() -> (NamedTensors, NamedTensors) {
    let (base, delta) = (tensors(1, 1.0), tensors(100, 0.1));
    let mut tuned = base.clone();
    for (name, tensor) in &mut tuned.0 {
        for (value, delta) in tensor.data.iter_mut().zip(&delta.0[name].data) {
            *value += delta;
        }
    }
    (base, tuned)
}

fn coded(bits: f64) -> CodedDelta {
    let (base, tuned) = pair();
    let plan = Plan {
        bits,
        low_rank: true,
        ..Plan::default()
    };
    CodedDelta::between(
        &base,
        &tuned,
        &Encoding {
            plan,
            ..Encoding::default()
        },
    )
    .unwrap()
}

/// Mean squared error of the code of Gaussian numbers with its gain, in parts of their power, is D / (1 - D); the part
/// along the row is whole.
#[test]
fn code_has_the_noise_of_its_rate_and_no_bias() {
    let (rows, cols) = (32, 512);
    let delta = normal(3, rows * cols);
    let limits = [2.9, 1.2, 0.41, 0.087, 0.022, 0.0067];
    for (rate, limit) in Rate::ALL.into_iter().zip(limits) {
        let (code, gains) = matrix::encode(&delta, cols, rate);
        let kept = matrix::rotated(&code, &gains);
        for (kept, delta) in kept.chunks(cols).zip(delta.chunks(cols)) {
            let along: f64 = kept.iter().zip(delta).map(|(a, b)| f64::from(a * b)).sum();
            let own = matrix::squares(delta);
            assert!((along / own - 1.0).abs() < 0.005, "{rate}: {}", along / own);
        }
        let apart: Vec<f32> = kept.iter().zip(&delta).map(|(a, b)| a - b).collect();
        let noise = matrix::squares(&apart) / matrix::squares(&delta);
        assert!(noise < limit && noise > limit / 1.15, "{rate}: {noise}");
    }
}

/// Every stream of a short row is tried: none is nearer.
#[test]
fn search_finds_the_nearest_of_all_streams() {
    for rate in [Rate::Quarter, Rate::Half, Rate::One, Rate::Two, Rate::Four] {
        let cols = match rate {
            Rate::Quarter => 24,
            Rate::Half => 12,
            Rate::One => 6,
            _ => 3,
        };
        let unit = rate.unit();
        let apart = |row: &[f32], weights: &[i8]| -> f64 {
            let square =
                |(x, q): (&f32, &i8)| (f64::from(*x) - f64::from(*q) / f64::from(unit)).powi(2);
            row.iter().zip(weights).map(square).sum()
        };
        for seed in 0..3 {
            let row = normal(seed, cols);
            let mut stream = vec![0; rate.row_bytes(cols)];
            viterbi::Trellis::new(rate).encode(&row, cols, &mut stream, &mut Default::default());
            let decode = |stream: Vec<u8>| {
                let mut weights = vec![0; cols];
                crate::ops::coded::Code::new(rate, [1, cols], stream)
                    .unwrap()
                    .decode_row(0, &mut weights);
                weights
            };
            let found = apart(&row, &decode(stream.clone()));
            let least = (0..1u32 << rate.row_bits(cols))
                .map(|bits| apart(&row, &decode(bits.to_le_bytes()[..stream.len()].to_vec())))
                .fold(f64::INFINITY, f64::min);
            assert!(found <= least + 1e-5, "{rate}: {found} {least}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// The stream of a row depends on nothing but the row.
    #[test]
    fn rows_are_coded_by_themselves(rows in 1usize..40, seed: u8, at in any::<prop::sample::Index>()) {
        let cols = 64;
        let delta = normal(seed, rows * cols);
        let (all, gains) = matrix::encode(&delta, cols, Rate::One);
        let row = at.index(rows);
        let (one, gain) = matrix::encode(&delta[row * cols..][..cols], cols, Rate::One);
        prop_assert_eq!(all.row(row), one.row(0));
        prop_assert_eq!(gains[row], gain[0]);
    }

    #[test]
    fn plan_stays_within_its_bits(bits in 3.4f64..6.0) {
        let delta = coded(bits);
        let weights: usize = 96 * 128 + 176 * 24 + 40 * 64 + 2 * 70 * 128;
        prop_assert!(delta.bits(weights) <= bits);
        prop_assert_eq!(delta.tensors.len(), 6);
    }
}

#[test]
fn file_gives_back_what_was_written() {
    for bits in [3.4, 4.0, 5.0] {
        let delta = coded(bits);
        let bytes = delta.to_bytes();
        assert_eq!(CodedDelta::from_bytes(&bytes).unwrap(), delta);
        assert_eq!(bytes, delta.to_bytes());
    }
}

#[test]
fn more_bits_have_less_error() {
    let errors = [3.4, 4.0, 5.0].map(|bits| coded(bits).about.error);
    assert!(errors[0] > errors[1] && errors[1] > errors[2], "{errors:?}");
}

#[test]
fn matrices_too_small_for_a_code_are_kept_whole() {
    let delta = coded(4.0);
    for (name, whole) in [
        ("blocks.0.narrow.weight", true),
        ("blocks.0.small.weight", true),
        ("blocks.0.norm.weight", true),
        ("blocks.0.mlp.weight", false),
        (HEAD, false),
    ] {
        assert_eq!(
            matches!(delta.tensors[name].kept, Kept::Whole(_)),
            whole,
            "{name}"
        );
    }
}

#[test]
fn tensors_that_did_not_change_take_nothing() {
    let (base, mut tuned) = pair();
    for name in ["blocks.0.mlp.weight", "blocks.0.norm.weight"] {
        tuned.0.insert(name.into(), base.0[name].clone());
    }
    let encoding = Encoding {
        plan: Plan {
            bits: 6.0,
            ..Plan::default()
        },
        ..Encoding::default()
    };
    let delta = CodedDelta::between(&base, &tuned, &encoding).unwrap();
    assert_eq!(delta.dense("blocks.0.mlp.weight"), None);
    assert_eq!(delta.tensors.len(), 4);
}

/// A matrix of two directions and a little noise is kept nearly whole by thin factors.
#[test]
fn low_rank_takes_what_is_large_and_few() {
    let (rows, cols) = (128, 256);
    let (left, right, rest) = (
        normal(1, 2 * rows),
        normal(2, 2 * cols),
        normal(3, rows * cols),
    );
    let matrix: Vec<f32> = (0..rows * cols)
        .map(|i| {
            let (row, col) = (i / cols, i % cols);
            left[row] * right[col] + left[rows + row] * right[cols + col] + 0.05 * rest[i]
        })
        .collect();
    let (nibbles, directions) = low_rank::encode(&matrix, [rows, cols], 4);
    let mut rest: Vec<f32> = matrix.iter().map(|value| -value).collect();
    low_rank::add(&nibbles, cols, &mut rest);
    let (left, all) = (matrix::squares(&rest), matrix::squares(&matrix));
    assert!(left < 0.03 * all, "{}", left / all);
    let saved = directions.iter().map(|direction| direction.saved);
    let promised = all - saved.sum::<f64>();
    assert!((left - promised).abs() < 0.1 * left, "{left} {promised}");
}

/// A narrow matrix of one direction, as what modulates a network that is not told the noise level is, is factors alone; with any other
/// part of its own it is a code.
#[test]
fn narrow_matrices_of_few_directions_are_factors_alone() {
    let (rows, cols) = (256, 32);
    let (left, right, rest) = (normal(1, rows), normal(2, cols), normal(3, rows * cols));
    let kept = |part: f32| {
        let delta: Vec<f32> = (0..rows * cols)
            .map(|i| left[i / cols] * right[i % cols] + part * rest[i])
            .collect();
        let shapes = [("narrow".to_owned(), vec![rows, cols])].into();
        let encoding = Encoding {
            plan: Plan {
                bits: 2.0,
                ..Plan::default()
            },
            ..Encoding::default()
        };
        let coded =
            CodedDelta::encode(Digest::default(), &shapes, &encoding, |_| Ok(delta.clone()));
        let coded = CodedDelta::from_bytes(&coded.unwrap().to_bytes()).unwrap();
        let back = coded.dense("narrow").unwrap();
        let apart: Vec<f32> = back.iter().zip(&delta).map(|(a, b)| a - b).collect();
        let error = matrix::squares(&apart) / matrix::squares(&delta);
        (coded.tensors["narrow"].kept.clone(), error)
    };
    let (one, error) = kept(0.0);
    assert!(matches!(one, Kept::LowRank(_)) && error < 0.05, "{error}");
    assert!(one.bytes() < 2 * rows, "{} bytes", one.bytes());
    let (more, error) = kept(0.5);
    assert!(
        matches!(more, Kept::Coded { low_rank: None, .. }) && error < 0.3,
        "{error}"
    );
}

#[test]
fn numbers_that_no_delta_has_are_refused() {
    let mut delta = coded(4.0);
    let norm = delta.tensors.get_mut("blocks.0.norm.weight").unwrap();
    let Kept::Whole(values) = &mut norm.kept else {
        panic!("a vector is whole")
    };
    values[3] = half::bf16::MAX;
    let refused = CodedDelta::from_bytes(&delta.to_bytes()).unwrap_err();
    assert!(
        matches!(&refused, DeltaError::Unreadable(Unreadable::Malformed { detail }) if detail.contains("larger")),
        "{refused}"
    );
    let (base, mut tuned) = pair();
    let norm = "blocks.0.norm.weight";
    tuned.0.get_mut(norm).unwrap().data[5] = 1e30;
    let coded = CodedDelta::differences(base.digest(), &base, &tuned, &Encoding::default());
    let refused = coded.unwrap_err();
    assert!(
        matches!(&refused, DeltaError::Mismatch(Mismatch::TooLarge { tensor, index: 5 }) if tensor == norm),
        "{refused}"
    );
}

#[test]
fn budget_below_the_smallest_is_refused() {
    let (base, tuned) = pair();
    let encoding = Encoding {
        plan: Plan {
            bits: 0.1,
            ..Plan::default()
        },
        ..Encoding::default()
    };
    let refused = CodedDelta::between(&base, &tuned, &encoding);
    assert!(
        matches!(refused, Err(DeltaError::TooFewBits(TooFewBits { least, .. })) if least > 0.1)
    );
}

#[test]
fn another_base_or_shape_is_refused() {
    let delta = coded(4.0);
    let (base, _) = pair();
    let mut shapes = base.shapes();
    delta.check(base.digest(), &shapes).unwrap();
    let other = delta.check(Digest::default(), &shapes);
    assert!(matches!(other, Err(Mismatch::OtherBase { .. })));
    shapes.insert(HEAD.into(), vec![70, 64]);
    assert!(
        matches!(delta.check(base.digest(), &shapes), Err(Mismatch::Shape { tensor, .. }) if tensor == HEAD)
    );
    shapes.remove(HEAD);
    assert!(
        matches!(delta.check(base.digest(), &shapes), Err(Mismatch::Extra { tensor }) if tensor == HEAD)
    );
}

/// Replaces a piece of the header by one of the same length.
fn edited(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .unwrap();
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

#[test]
fn bad_files_are_refused_by_what_is_wrong() {
    let bytes = coded(4.0).to_bytes();
    let read = |bytes: &[u8]| CodedDelta::from_bytes(bytes).unwrap_err();
    assert!(matches!(
        read(&bytes[..bytes.len() - 1]),
        DeltaError::Unreadable(Unreadable::WrongLength)
    ));
    assert!(matches!(
        read(&bytes[..100]),
        DeltaError::Unreadable(Unreadable::WrongLength)
    ));
    let table = edited(&bytes, r#""table":"1""#, r#""table":"2""#);
    assert!(matches!(
        read(&table),
        DeltaError::Version {
            what: "table",
            found: 2
        }
    ));
    let layout = edited(&bytes, r#""layout":"1""#, r#""layout":"7""#);
    assert!(matches!(
        read(&layout),
        DeltaError::Version {
            what: "layout",
            found: 7
        }
    ));
    let format = edited(&bytes, "coded-delta/1", "coded-delta/2");
    assert!(matches!(
        read(&format),
        DeltaError::Unreadable(Unreadable::Format { .. })
    ));
    let rates: Vec<_> = Rate::ALL
        .map(|rate| format!(r#"\"rate\":\"{rate}\""#))
        .into();
    let text = String::from_utf8_lossy(&bytes);
    let known = rates.iter().find(|rate| text.contains(*rate)).unwrap();
    let other = known.replace(&known[known.len() - 3..known.len() - 2], "9");
    let mut unknown = edited(&bytes, known, &other);
    assert!(matches!(read(&unknown), DeltaError::Damaged));
    super::file::seal(&mut unknown);
    assert!(matches!(read(&unknown), DeltaError::Rate(_)));
    let without = edited(&bytes, r#""sha256":""#, r#""sha255":""#);
    assert!(matches!(read(&without), DeltaError::Damaged));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever bit is turned, in the header or behind it, the file is refused; so is one that was sealed anew, or it is another delta
    /// that can be decoded. Nothing panics.
    #[test]
    fn flipped_bit_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8, header: bool) {
        let mut bytes = coded_once().clone();
        let end = if header { 2000.min(bytes.len()) } else { bytes.len() };
        bytes[at.index(end)] ^= 1 << bit;
        prop_assert!(CodedDelta::from_bytes(&bytes).is_err());
        super::file::seal(&mut bytes);
        if let Ok(delta) = CodedDelta::from_bytes(&bytes) {
            for name in delta.tensors.keys() {
                let dense = delta.dense(name).unwrap();
                prop_assert!(dense.iter().all(|value| value.is_finite()));
            }
        }
    }
}

fn coded_once() -> &'static Vec<u8> {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| coded(4.0).to_bytes())
}

#[test]
fn coded_delta_is_read_where_any_delta_is() {
    let (base, _) = pair();
    let (coded, bytes) = (coded(4.0), coded_once());
    let delta = Delta::read(&base, bytes).unwrap();
    for (name, tensor) in &base.0 {
        let (kept, read) = (coded.dense(name).unwrap(), delta.dense(name).unwrap());
        let apart: Vec<f32> = kept.iter().zip(&read).map(|(a, b)| a - b).collect();
        // Eight bits are an error of about a hundredth.
        assert!(
            matrix::squares(&apart) < 4e-4 * matrix::squares(&kept),
            "{name}"
        );
        assert_eq!(read.len(), tensor.data.len());
    }
    let remarks = Remarks {
        process: Some("{}".into()),
        defaults: None,
    };
    let said = CodedDelta {
        about: About {
            remarks: remarks.clone(),
            ..coded.about
        },
        ..coded
    };
    assert_eq!(Remarks::read(&said.to_bytes()).unwrap(), remarks);
}

/// The head's noise costs most, whatever its name; where the embedding is the head, that costs as much.
#[test]
fn roles_say_what_noise_costs() {
    let network = [
        ("a", MatrixRole::Embedding),
        ("b", MatrixRole::Qkv),
        ("d", MatrixRole::Down),
        ("c", MatrixRole::Head),
    ];
    let plan = |count: usize| Plan::of(1.0, network[..count].iter().copied());
    let untied = plan(4).sensitivities;
    assert!(untied["c"] > untied["a"] && untied["a"] > untied["b"] && untied["b"] > 1.0);
    assert_eq!(untied["d"], 1.0);
    assert_eq!(plan(3).sensitivities["a"], untied["c"]);
    assert_eq!(plan(4).by_token, ["a", "c"].map(str::to_owned).into());
}

#[test]
fn measured_sensitivities_are_read_back_and_others_refused() {
    let file = br#"{"head": 30.0, "down": 0.5}"#;
    let measured = Sensitivities::from_json(file).unwrap();
    let numbers =
        [MatrixRole::Head, MatrixRole::Down, MatrixRole::Up].map(|role| measured.of(role));
    assert_eq!(numbers, [30.0, 0.5, 1.0]);
    let again = serde_json::to_vec(&measured).unwrap();
    assert_eq!(Sensitivities::from_json(&again).unwrap(), measured);
    let network = [("a", MatrixRole::Embedding), ("d", MatrixRole::Down)];
    let plan = Plan::by(1.0, network.into_iter(), &measured);
    assert_eq!(plan.sensitivities["a"], 30.0, "a tied head is felt as one");
    for bad in [
        "",
        "[]",
        r#"{"nose": 1}"#,
        r#"{"head": "x"}"#,
        r#"{"head": null}"#,
        r#"{"head": 0}"#,
        r#"{"head": -1}"#,
        r#"{"head": 1e999}"#,
        r#"{"final_norm": 1}"#,
    ] {
        Sensitivities::from_json(bad.as_bytes()).expect_err(bad);
    }
}

#[test]
fn a_rate_that_is_given_is_not_chosen() {
    let (name, shape) = ("m", vec![128, 64]);
    let delta = normal(7, 128 * 64);
    for rate in Rate::ALL {
        let encoding = Encoding {
            plan: Plan {
                bits: f64::INFINITY,
                rates: BTreeMap::from([(name.to_owned(), rate)]),
                low_rank: true,
                ..Plan::default()
            },
            ..Encoding::default()
        };
        let shapes = BTreeMap::from([(name.to_owned(), shape.clone())]);
        let coded =
            CodedDelta::encode(Digest::default(), &shapes, &encoding, |_| Ok(delta.clone()));
        let coded = coded.unwrap();
        match &coded.tensors[name].kept {
            Kept::Coded { code, low_rank, .. } => {
                assert_eq!((code.rate(), low_rank), (rate, &None));
            }
            other => panic!("{other:?}"),
        }
    }
}
