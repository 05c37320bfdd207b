//! Variants that keep what they changed by themselves, coded, low-rank or whole, in one batch with those that lie in banks.

mod fixtures;

use choir::model::{
    BaseWeights, Batch, Denoiser, HostNetwork, Mix, Segment, ServedBank, VariantId,
};
use choir::ops::quantized::Quantisation;
use fixtures::kept::{KINDS, dense, kept_variants};
use fixtures::{Case, PAGE, mixes, relative, segment};
use std::sync::Arc;

fn base(case: &Case) -> Arc<BaseWeights> {
    Arc::new(
        BaseWeights::new(
            case.config.architecture().expect("a network"),
            &case.weights,
        )
        .expect("base"),
    )
}

fn network(case: &Case, count: usize) -> HostNetwork {
    let (banks, variants) = kept_variants(case, count);
    let bank = |matrices| Arc::new(ServedBank::build(Quantisation::F32, matrices).expect("bank"));
    let banks: Vec<_> = banks.into_iter().map(bank).collect();
    HostNetwork::new(base(case), &banks, variants).expect("network")
}

/// A sequence of the reference of every mix, at several noise levels.
fn segments(case: &Case, mixes: Vec<Mix>) -> Vec<Segment> {
    let (shape, ids) = case.sequences();
    let of = |(index, mix): (usize, Mix)| {
        let tokens = &ids[index % shape[0] * shape[1]..][..shape[1]];
        Segment {
            mix,
            ..segment(case, tokens, 0.1 * index as f32)
        }
    };
    mixes.into_iter().enumerate().map(of).collect()
}

fn logits(network: &dyn Denoiser, segments: &[Segment]) -> Vec<f32> {
    let mut cache = network.cache(PAGE.into(), 1).expect("cache");
    let batch = Batch {
        segments: segments.to_vec(),
    };
    network.forward(&batch, &mut cache).expect("logits").data
}

/// As near as x is that is rounded to bytes.
fn near(ours: &[f32], theirs: &[f32], what: &str) {
    let off = relative(ours, theirs);
    assert!(off < 0.015, "{what}: off by {off}");
}

/// Weights of every kind, added up by the definition into a network of its own.
#[test]
fn kept_variants_are_what_their_weights_added_up_are() {
    for folder in ["bd3lm-tiny", "duo-tiny"] {
        let case = Case::load(folder);
        let (_, variants) = kept_variants(&case, KINDS);
        let network = network(&case, KINDS);
        let plain = HostNetwork::new(base(&case), &[], Vec::new()).expect("network");
        let mut checked = 0;
        for (number, variant) in (0..).zip(&variants) {
            if !variant.gains.is_empty() {
                continue;
            }
            checked += 1;
            let segments = segments(&case, vec![Mix::single(VariantId(number))]);
            let ours = logits(&network, &segments);
            let weights = dense(&case, variant);
            let whole = BaseWeights::new(case.config.architecture().expect("a network"), &weights)
                .expect("base");
            let whole = HostNetwork::new(Arc::new(whole), &[], Vec::new()).expect("network");
            let alone: Vec<Segment> = segments
                .iter()
                .map(|segment| Segment {
                    mix: Mix::base(),
                    ..segment.clone()
                })
                .collect();
            let theirs = logits(&whole, &alone);
            near(&ours, &theirs, &format!("{folder} variant {number}"));
            let of_base = logits(&plain, &alone);
            let far = |(a, b): (&f32, &f32)| (a - b).abs() > 0.2;
            assert!(
                theirs.iter().zip(&of_base).any(far),
                "variant {number} is not the base"
            );
        }
        assert_eq!(checked, 3, "three kinds lie in no bank");
    }
}

#[test]
fn kept_variants_do_not_depend_on_the_batch_and_materialise() {
    for folder in ["bd3lm-tiny", "duo-tiny"] {
        let case = Case::load(folder);
        let network = network(&case, KINDS + 1);
        let mut mixes = mixes(KINDS as u32 + 1);
        mixes.push(Mix([(0, 0.5), (2, 0.25), (3, 0.5), (4, -0.5)]
            .map(|(v, w)| (VariantId(v), w))
            .to_vec()));
        let segments = segments(&case, mixes);
        let together = logits(&network, &segments);
        let each = together.len() / segments.len();
        for (segment, ours) in segments.into_iter().zip(together.chunks_exact(each)) {
            let alone = logits(&network, std::slice::from_ref(&segment));
            assert_eq!(ours, &alone[..], "the batch changed {:?}", segment.mix);
            let single = network.materialise(&segment.mix).expect("materialised");
            let theirs = logits(
                &single,
                &[Segment {
                    mix: Mix::base(),
                    ..segment.clone()
                }],
            );
            near(ours, &theirs, &format!("{folder} {:?}", segment.mix));
        }
    }
}

/// What a variant keeps by itself is no other variant's business.
#[test]
fn kept_variants_do_not_depend_on_one_another() {
    let case = Case::load("bd3lm-tiny");
    let (_, variants) = kept_variants(&case, 3);
    let of = |chosen: &[usize], of: usize| {
        let chosen_variants = chosen.iter().map(|&v| variants[v].clone()).collect();
        let network = HostNetwork::new(base(&case), &[], chosen_variants).expect("network");
        let index = chosen.iter().position(|&v| v == of).expect("chosen");
        logits(
            &network,
            &segments(&case, vec![Mix::single(VariantId(index as u32))]),
        )
    };
    let all = of(&[0, 1, 2], 1);
    for others in [&[1][..], &[1, 2], &[0, 1], &[2, 1, 0]] {
        assert_eq!(of(others, 1), all, "beside {others:?}");
    }
}

#[test]
fn what_does_not_fit_a_matrix_is_refused_by_its_name() {
    let case = Case::load("bd3lm-tiny");
    let (_, mut variants) = kept_variants(&case, 1);
    let (names, kept): (Vec<_>, Vec<_>) = variants[0].kept.clone().into_iter().unzip();
    let [first, .., last] = &names[..] else {
        panic!("matrices")
    };
    variants[0].kept.insert(last.clone(), kept[0].clone());
    let Err(error) = HostNetwork::new(base(&case), &[], variants) else {
        panic!("{last} has the shape of {first}")
    };
    assert!(error.to_string().contains(last.as_str()), "{error}");
}
