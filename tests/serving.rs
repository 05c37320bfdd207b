//! The serving network: golden parity with and without the cache, and both ways of retrieval.

mod fixtures;

use choir::model::architecture::dit::{EMBEDDING, is_product};
use choir::model::kv_cache::KvCache;
use choir::model::{BaseWeights, Batch, Denoiser, HostNetwork, Mix, PageId, Segment, ServedBank};
use choir::ops::categorical::{Certainty, Crossing, Draw, DrawKind, Filter, FilterWorkspace};
use choir::ops::quantized::Quantisation;
use choir::rng::Noise;
use fixtures::{
    Case, PAGE, cached_blocks, close, mixes, relative, segment, variants, whole_sequences,
};
use half::bf16;
use std::sync::Arc;

fn base(case: &Case) -> Arc<BaseWeights> {
    Arc::new(
        BaseWeights::new(
            case.config.architecture().expect("a network"),
            &case.weights,
        )
        .expect("weights"),
    )
}

#[test]
fn whole_sequences_match_the_reference() {
    for folder in ["bd3lm-tiny", "mdlm-tiny", "duo-tiny"] {
        let case = Case::load(folder);
        let network = HostNetwork::new(base(&case), &[], Vec::new()).expect("network");
        whole_sequences(&case, &network, |ours, golden, name| {
            close(ours, golden, 2e-4, &format!("{folder} {name}"));
        });
    }
}

#[test]
fn a_step_draws_where_it_is_told_and_gives_back_the_other_rows() {
    let case = Case::load("bd3lm-tiny");
    let network = HostNetwork::new(base(&case), &[], Vec::new()).expect("network");
    let draw = |position: usize| Draw {
        filter: Filter {
            temperature: 1.0,
            top_k: None,
            nucleus_p: 0.9,
            crossing: Crossing::Dropped,
            forbidden: case.config.mask_id(),
        },
        tokens: case.config.vocab_size,
        noise: Noise::new(5),
        step: 1,
        position: position as u32,
        kind: DrawKind::Sure(Certainty::Best),
    };
    let length = case.config.block().expect("block");
    let kept = segment(&case, &vec![1; length], 0.0);
    let drawn = |token: u32| Segment {
        draws: (0..length).map(draw).collect(),
        ..segment(&case, &vec![token; length], 0.0)
    };
    let mut batch = Batch {
        segments: vec![drawn(2), kept, drawn(3)],
    };
    let mut cache = network.cache(PAGE.into(), 0).expect("cache");
    let all = network.forward(&batch, &mut cache).expect("forward");
    let outcome = network.step(&batch, &mut cache).expect("step");
    let vocab = case.config.vocab_size;
    assert_eq!(
        outcome.logits.data,
        all.data[length * vocab..2 * length * vocab]
    );
    let rows = (0..length).chain(2 * length..3 * length);
    let expected =
        rows.map(|row| draw(row % length).apply(all.row(row), &mut FilterWorkspace::default()));
    assert_eq!(outcome.drawn, expected.collect::<Vec<_>>());

    batch.segments[0].draws.pop();
    let error = network
        .step(&batch, &mut cache)
        .expect_err("a row without a draw");
    assert!(error.to_string().contains("draws"), "{error}");
}

#[test]
fn cached_blocks_match_the_reference_past_the_window() {
    let case = Case::load("bd3lm-tiny");
    let network = HostNetwork::new(base(&case), &[], Vec::new()).expect("network");
    cached_blocks(&case, &network, 1);
}

#[test]
fn a_finished_block_and_the_next_can_share_one_evaluation() {
    let case = Case::load("bd3lm-tiny");
    let network = HostNetwork::new(base(&case), &[], Vec::new()).expect("network");
    let block = case.config.block().expect("block");
    let (shape, ids) = case.ids("b.clean_ids");
    let ids = &ids[..shape[1].min(case.config.model_length)];
    let pages: Vec<_> = (0..ids.len().div_ceil(PAGE) as u32).map(PageId).collect();
    let mut cache = KvCache::new(case.config.facts().cache, PAGE, pages.len());
    let whole = network
        .forward(
            &Batch {
                segments: vec![segment(&case, ids, 0.0)],
            },
            &mut cache,
        )
        .expect("whole");
    // Prefill all but two blocks in one go, then two blocks of which the first is clean.
    let cut = ids.len() - 2 * block;
    let prefill = Segment {
        clean: cut,
        rows: Vec::new(),
        pages: pages.clone(),
        ..segment(&case, &ids[..cut], 0.0)
    };
    let none = network
        .forward(
            &Batch {
                segments: vec![prefill],
            },
            &mut cache,
        )
        .expect("prefill");
    assert!(none.data.is_empty());
    let fused = Segment {
        first_position: cut,
        clean: block,
        pages,
        ..segment(&case, &ids[cut..], 0.0)
    };
    let logits = network
        .forward(
            &Batch {
                segments: vec![fused],
            },
            &mut cache,
        )
        .expect("fused");
    close(
        &logits.data,
        &whole.data[cut * whole.vocab..],
        1e-5,
        "fused",
    );
}

/// Variants with random deltas of a fine-tune's size, two to a bank.
fn superposed(case: &Case, count: usize, form: Quantisation) -> HostNetwork {
    with_variants(base(case), case, count, form)
}

fn with_variants(
    base: Arc<BaseWeights>,
    case: &Case,
    count: usize,
    form: Quantisation,
) -> HostNetwork {
    let (banks, variants) = variants(case, count);
    let bank = |matrices| Arc::new(ServedBank::build(form, matrices).expect("bank"));
    let banks: Vec<_> = banks.into_iter().map(bank).collect();
    HostNetwork::new(base, &banks, variants).expect("network")
}

#[test]
fn retrieval_on_the_activations_equals_materialised_weights() {
    for folder in ["bd3lm-tiny", "duo-tiny"] {
        let case = Case::load(folder);
        let network = superposed(&case, 5, Quantisation::F32);
        let (shape, ids) = case.sequences();
        let mut cache = KvCache::new(case.config.facts().cache, PAGE, 0);
        let segments: Vec<_> = mixes(5)
            .into_iter()
            .enumerate()
            .map(|(i, mix)| Segment {
                mix,
                ..segment(
                    &case,
                    &ids[i % shape[0] * shape[1]..][..shape[1]],
                    0.1 * i as f32,
                )
            })
            .collect();
        let together = network
            .forward(
                &Batch {
                    segments: segments.clone(),
                },
                &mut cache,
            )
            .expect("batch");
        let base_alone = HostNetwork::new(base(&case), &[], Vec::new()).expect("network");
        for (segment, ours) in segments
            .into_iter()
            .zip(together.data.chunks(shape[1] * together.vocab))
        {
            let mix = segment.mix.clone();
            let alone = network
                .forward(
                    &Batch {
                        segments: vec![segment.clone()],
                    },
                    &mut cache,
                )
                .expect("alone");
            assert_eq!(
                ours,
                &alone.data[..],
                "the batch changed the logits of {mix:?}"
            );
            let single = network.materialise(&mix).expect("materialised");
            let plain = Segment {
                mix: Mix::base(),
                ..segment
            };
            let theirs = single
                .forward(
                    &Batch {
                        segments: vec![plain.clone()],
                    },
                    &mut cache,
                )
                .expect("materialised");
            close(ours, &theirs.data, 1e-4, &format!("{folder} {mix:?}"));
            if mix != Mix::base() {
                let base = base_alone
                    .forward(
                        &Batch {
                            segments: vec![plain],
                        },
                        &mut cache,
                    )
                    .expect("base");
                let moved = ours
                    .iter()
                    .zip(&base.data)
                    .any(|(a, b)| (a - b).abs() > 1e-2);
                assert!(moved, "{mix:?} does not differ from the base");
            }
        }
    }
}

/// A batch of mixes is near what `exact` makes of it, and every segment the same by itself.
fn near_and_not_of_the_batch(
    case: &Case,
    network: &HostNetwork,
    exact: &HostNetwork,
    tolerance: f32,
    what: &str,
) {
    let (shape, ids) = case.sequences();
    let mut cache = KvCache::new(case.config.facts().cache, PAGE, 0);
    let segments: Vec<_> = mixes(3)
        .into_iter()
        .map(|mix| Segment {
            mix,
            ..segment(case, &ids[..shape[1]], 0.0)
        })
        .collect();
    let batch = Batch { segments };
    let ours = network.forward(&batch, &mut cache).expect("served");
    let exact = exact.forward(&batch, &mut cache).expect("exact");
    let off = relative(&ours.data, &exact.data);
    assert!(off <= tolerance, "{what}: off by {off}");
    assert_ne!(ours.data, exact.data, "{what} is no rounding at all");
    for (segment, together) in batch
        .segments
        .into_iter()
        .zip(ours.data.chunks(shape[1] * ours.vocab))
    {
        let batch = Batch {
            segments: vec![segment],
        };
        let alone = network.forward(&batch, &mut cache).expect("alone");
        assert_eq!(together, &alone.data[..]);
    }
}

/// How far the largest difference may be from nothing, relative to the largest logit: of banks in a form, and of a base, whose weights
/// are larger than any delta.
const FORMS: [(Quantisation, f32, f32); 5] = [
    (Quantisation::Bf16, 0.01, 0.04),
    (Quantisation::Q8_0, 0.02, 0.1),
    (Quantisation::Q4_0, 0.2, 0.6),
    (Quantisation::Q4K, 0.2, 0.6),
    (Quantisation::Q2K, 0.4, 0.8),
];

#[test]
fn served_forms_stay_near_f32_and_do_not_depend_on_the_batch() {
    let case = Case::load("bd3lm-tiny");
    let exact = superposed(&case, 3, Quantisation::F32);
    for (form, tolerance, _) in FORMS {
        let network = superposed(&case, 3, form);
        near_and_not_of_the_batch(&case, &network, &exact, tolerance, &form.to_string());
    }
}

#[test]
fn so_do_bases_in_few_bits_and_what_is_materialised_has_their_form() {
    let case = Case::load("bd3lm-tiny");
    let exact = superposed(&case, 3, Quantisation::F32);
    for (form, _, tolerance) in FORMS {
        let base = BaseWeights::in_form(
            case.config.architecture().expect("a network"),
            &case.weights,
            form,
        )
        .expect("weights");
        let network = with_variants(Arc::new(base), &case, 3, Quantisation::F32);
        near_and_not_of_the_batch(
            &case,
            &network,
            &exact,
            tolerance,
            &format!("base in {form}"),
        );
        let (shape, ids) = case.sequences();
        let (mut cache, whole) = (
            KvCache::new(case.config.facts().cache, PAGE, 0),
            segment(&case, &ids[..shape[1]], 0.0),
        );
        let batch = Batch {
            segments: vec![whole],
        };
        let mut logits =
            |network: &HostNetwork| network.forward(&batch, &mut cache).expect("forward").data;
        let again = network.materialise(&Mix::default()).expect("materialised");
        if form == Quantisation::Q8_0 {
            // Rounding again changes nothing, so only another product could.
            assert_eq!(logits(&again), logits(&network));
        }
        let off = relative(&logits(&again), &logits(&exact));
        assert!(off <= tolerance, "materialised in {form}: off by {off}");
    }
}

/// Products in bf16 are those in f32 of the same numbers, and so is everything that is looked up.
#[test]
fn a_base_in_bf16_is_a_bf16_checkpoint_in_half_the_bytes() {
    let mut case = Case::load("duo-tiny");
    let values = case.weights.values_mut().flat_map(|(_, data)| data);
    values.for_each(|value| *value = bf16::from_f32(*value).to_f32());
    let [exact, halved] = [Quantisation::F32, Quantisation::Bf16].map(|form| {
        Arc::new(
            BaseWeights::in_form(
                case.config.architecture().expect("a network"),
                &case.weights,
                form,
            )
            .expect("weights"),
        )
    });
    let bytes = |(name, shape): (String, Vec<usize>)| match shape[..] {
        [out, input] if is_product(&name) || name == EMBEDDING => {
            out.next_multiple_of(64) * input * 2
        }
        [out, input] => out * input * 2,
        _ => shape.iter().product::<usize>() * 4,
    };
    assert_eq!(
        halved.bytes(),
        case.config.tensors().into_iter().map(bytes).sum::<usize>()
    );
    let logits = |base: Arc<BaseWeights>| {
        let network = with_variants(base, &case, 3, Quantisation::F32);
        let (shape, ids) = case.sequences();
        let segments = mixes(3).into_iter().map(|mix| Segment {
            mix,
            ..segment(&case, &ids[..shape[1]], 1.5)
        });
        let batch = Batch {
            segments: segments.collect(),
        };
        let mut cache = KvCache::new(case.config.facts().cache, PAGE, 0);
        network.forward(&batch, &mut cache).expect("forward").data
    };
    assert_eq!(logits(halved), logits(exact));
}

/// What a segment sees and which noise it is told of are its own: block-causal and whole ones, at any noise, share a batch.
#[test]
fn segments_bring_their_own_attention_and_noise() {
    let case = Case::load("bd3lm-tiny");
    let network = superposed(&case, 3, Quantisation::F32);
    let names = case.names("a.", ".input_ids");
    let sequences = names
        .iter()
        .map(|name| case.ids(&format!("{name}.input_ids")));
    let (shape, ids) = sequences.max_by_key(|(shape, _)| shape[1]).expect("a case");
    let mut cache = KvCache::new(case.config.facts().cache, PAGE, 0);
    let mut segments = Vec::new();
    for mix in mixes(3) {
        for block in [Some(shape[1] / 2), None, Some(1)] {
            for sigma in [0.0, 0.4, 6.9] {
                segments.push(Segment {
                    mix: mix.clone(),
                    block,
                    phase: 0,
                    ..segment(&case, &ids[..shape[1]], sigma)
                });
            }
        }
    }
    let batch = Batch { segments };
    let together = network.forward(&batch, &mut cache).expect("batch");
    let parts: Vec<&[f32]> = together.data.chunks(shape[1] * together.vocab).collect();
    for (segment, together) in batch.segments.into_iter().zip(&parts) {
        let batch = Batch {
            segments: vec![segment],
        };
        let alone = network.forward(&batch, &mut cache).expect("alone");
        assert_eq!(*together, &alone.data[..]);
    }
    for (index, a) in parts.iter().enumerate() {
        for b in &parts[..index] {
            assert_ne!(a, b, "attention, noise and mix all matter");
        }
    }
}
