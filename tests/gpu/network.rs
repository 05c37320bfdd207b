//! The network on a device against golden data and against the network on the host.

use std::sync::Arc;

use choir::model::gpu::{GpuBank, GpuBase, GpuNetwork, GpuTarget, GpuVariant};
use choir::model::variant::Placed;
use choir::model::{
    BaseWeights, Batch, Denoiser, HostNetwork, Mix, Segment, ServedBank, VariantId, VariantWeights,
};
use choir::ops::categorical::{Certainty, Crossing, Draw, DrawKind, Filter, FilterWorkspace};
use choir::ops::gpu::{Dtype, GpuDevice};
use choir::ops::quantized::Quantisation;
use choir::rng::Noise;

use crate::fixtures::kept::{KINDS, kept_variants};
use crate::fixtures::{
    Case, Matrices, PAGE, cached_blocks, close, mixes, relative, segment, variants, whole_sequences,
};
use crate::rig::Rig;

fn on_host(case: &Case, count: usize, form: Quantisation) -> HostNetwork {
    host_with(case, variants(case, count), form)
}

fn host_with(
    case: &Case,
    (banks, variants): (Vec<Matrices>, Vec<VariantWeights>),
    form: Quantisation,
) -> HostNetwork {
    let base =
        Arc::new(BaseWeights::new(case.config.architecture().unwrap(), &case.weights).unwrap());
    let bank = |matrices| Arc::new(ServedBank::build(form, matrices).unwrap());
    HostNetwork::new(
        base,
        &banks.into_iter().map(bank).collect::<Vec<_>>(),
        variants,
    )
    .unwrap()
}

fn on_device(
    gpu: &Arc<dyn GpuDevice>,
    dtype: Dtype,
    case: &Case,
    count: usize,
    form: Quantisation,
) -> GpuNetwork {
    device_with(gpu, dtype, case, variants(case, count), form)
}

fn device_with(
    gpu: &Arc<dyn GpuDevice>,
    dtype: Dtype,
    case: &Case,
    (banks, variants): (Vec<Matrices>, Vec<VariantWeights>),
    form: Quantisation,
) -> GpuNetwork {
    let gpu = gpu.clone();
    let device = GpuTarget::new(gpu, dtype);
    let base = GpuBase::new(device, case.config.architecture().unwrap(), &case.weights).unwrap();
    let bank = |matrices| Arc::new(GpuBank::build(&base, form, matrices).unwrap());
    let banks: Vec<_> = banks.into_iter().map(bank).collect();
    GpuNetwork::new(Arc::new(base), &banks, variants).unwrap()
}

#[test]
fn whole_sequences_match_the_reference() {
    for rig in Rig::all() {
        for folder in ["bd3lm-tiny", "mdlm-tiny", "duo-tiny"] {
            let case = Case::load(folder);
            let network = |dtype| on_device(&rig.gpu, dtype, &case, 0, Quantisation::F32);
            whole_sequences(&case, &network(Dtype::F32), |ours, golden, name| {
                close(ours, golden, 2e-4, &format!("{folder} {name}"));
            });
            whole_sequences(&case, &network(Dtype::Bf16), |ours, golden, name| {
                let off = relative(ours, golden);
                assert!(off < 6e-2, "{folder} {name} in bf16: {off}");
            });
        }
    }
}

/// Every batch is run three times: as it is launched, as it is recorded, and as it is replayed.
#[test]
fn cached_blocks_match_the_reference_past_the_window() {
    for rig in Rig::all() {
        let case = Case::load("bd3lm-tiny");
        let network = on_device(&rig.gpu, Dtype::F32, &case, 0, Quantisation::F32);
        cached_blocks(&case, &network, 3);
    }
}

/// Segments of every mix, in blocks and whole, at several noise levels.
fn all_kinds(case: &Case, count: u32) -> Batch {
    let (shape, ids) = case.sequences();
    let mut segments = Vec::new();
    for (index, mix) in mixes(count).into_iter().enumerate() {
        for (block, sigma) in [(case.config.block(), 0.0), (None, 0.4), (Some(2), 6.9)] {
            let length = shape[1] - index % 3;
            segments.push(Segment {
                mix: mix.clone(),
                block,
                phase: 0,
                rows: (index % 2..length).collect(),
                ..segment(case, &ids[index % shape[0] * shape[1]..][..length], sigma)
            });
        }
    }
    Batch { segments }
}

#[test]
fn variants_are_those_of_the_host() {
    for rig in Rig::all() {
        for (folder, dtype, form, tolerance) in [
            ("bd3lm-tiny", Dtype::F32, Quantisation::F32, 1e-3),
            ("duo-tiny", Dtype::F32, Quantisation::F32, 1e-3),
            ("bd3lm-tiny", Dtype::Bf16, Quantisation::F32, 3e-2),
            ("duo-tiny", Dtype::F32, Quantisation::Q4K, 0.15),
            ("bd3lm-tiny", Dtype::Bf16, Quantisation::Q4K, 0.15),
        ] {
            let case = Case::load(folder);
            let network = on_device(&rig.gpu, dtype, &case, 5, form);
            // The host quantises narrow matrices otherwise: what tiles hold is compared with f32, within what four bits cost.
            let host = on_host(&case, 5, Quantisation::F32);
            let batch = all_kinds(&case, 5);
            let mut cache = network.cache(PAGE.into(), 1).unwrap();
            let ours = network.forward(&batch, &mut cache).unwrap();
            let mut host_cache = host.cache(PAGE.into(), 1).unwrap();
            let theirs = host.forward(&batch, &mut host_cache).unwrap();
            let off = relative(&ours.data, &theirs.data);
            assert!(off < tolerance, "{folder} {dtype:?} {form}: {off}");
        }
    }
}

/// What variants keep by themselves, in every way, beside what lies in banks; rows enough for several groups. Every batch is launched,
/// recorded and replayed.
#[test]
fn kept_variants_are_those_of_the_host() {
    for rig in Rig::all() {
        for (folder, dtype, form, tolerance) in [
            ("bd3lm-tiny", Dtype::F32, Quantisation::F32, 2e-2),
            ("duo-tiny", Dtype::F32, Quantisation::F32, 2e-2),
            ("bd3lm-tiny", Dtype::Bf16, Quantisation::F32, 5e-2),
            ("bd3lm-tiny", Dtype::Bf16, Quantisation::Q4K, 0.15),
        ] {
            let case = Case::load(folder);
            let kept = || kept_variants(&case, KINDS);
            let network = device_with(&rig.gpu, dtype, &case, kept(), form);
            // The host rounds x to bytes.
            let host = host_with(&case, kept(), Quantisation::F32);
            let batch = all_kinds(&case, KINDS as u32);
            let mut cache = network.cache(PAGE.into(), 1).unwrap();
            let mut host_cache = host.cache(PAGE.into(), 1).unwrap();
            let theirs = host.forward(&batch, &mut host_cache).unwrap();
            for time in 0..3 {
                let ours = network.forward(&batch, &mut cache).unwrap();
                let off = relative(&ours.data, &theirs.data);
                assert!(
                    off < tolerance,
                    "{folder} {dtype:?} {form}, time {time}: {off}"
                );
            }
        }
    }
}

#[test]
fn kept_variants_materialise_to_what_they_give() {
    let Some(rig) = Rig::one() else { return };
    for (dtype, tolerance) in [(Dtype::F32, 1e-2), (Dtype::Bf16, 4e-2)] {
        let case = Case::load("bd3lm-tiny");
        let kept = kept_variants(&case, KINDS);
        let network = device_with(&rig.gpu, dtype, &case, kept, Quantisation::F32);
        let mut cache = network.cache(PAGE.into(), 1).unwrap();
        let (shape, ids) = case.sequences();
        for mix in mixes(KINDS as u32) {
            let of = |mix: &Mix| Batch {
                segments: vec![Segment {
                    mix: mix.clone(),
                    ..segment(&case, &ids[..shape[1]], 0.0)
                }],
            };
            let ours = network.forward(&of(&mix), &mut cache).unwrap();
            let single = network.materialise(&mix).unwrap();
            let theirs = single.forward(&of(&Mix::base()), &mut cache).unwrap();
            let off = relative(&ours.data, &theirs.data);
            assert!(off < tolerance, "{dtype:?} {mix:?}: {off}");
        }
    }
}

/// So many rows that products give bf16.
#[test]
fn many_rows_of_the_base_are_those_of_the_host() {
    for rig in Rig::all() {
        let case = Case::load("duo-tiny");
        let (network, host) = (
            on_device(&rig.gpu, Dtype::Bf16, &case, 0, Quantisation::F32),
            on_host(&case, 0, Quantisation::F32),
        );
        let (shape, ids) = case.sequences();
        let segments = (0..40).map(|index| {
            let tokens = &ids[index % shape[0] * shape[1]..][..shape[1] - index % 2];
            segment(&case, tokens, 0.4)
        });
        let batch = Batch {
            segments: segments.collect(),
        };
        let mut cache = network.cache(PAGE.into(), 1).unwrap();
        let ours = network.forward(&batch, &mut cache).unwrap();
        let theirs = host
            .forward(&batch, &mut host.cache(PAGE.into(), 1).unwrap())
            .unwrap();
        let off = relative(&ours.data, &theirs.data);
        assert!(off < 3e-2, "{off}");
    }
}

/// A thousand steps on a device, few in the emulation.
#[test]
fn steps_leave_the_memory_as_it_was() {
    let Some(rig) = Rig::one() else { return };
    let steps = if rig.gpu().name() == "emulated" {
        6
    } else {
        1000
    };
    let case = Case::load("bd3lm-tiny");
    let network = on_device(&rig.gpu, Dtype::Bf16, &case, 3, Quantisation::Q4K);
    let batches = [1, 2, 3].map(|count| all_kinds(&case, count));
    let mut cache = network.cache(PAGE.into(), 1).unwrap();
    let mut step = |number: usize| {
        network.forward(&batches[number % 3], &mut cache).unwrap();
    };
    (0..9).for_each(&mut step);
    let free = rig.gpu().memory().unwrap();
    (0..steps).for_each(step);
    assert_eq!(rig.gpu().memory().unwrap(), free);
}

#[test]
fn materialised_weights_give_what_retrieval_on_activations_gives() {
    for rig in Rig::all() {
        for (dtype, form, tolerance) in [
            (Dtype::F32, Quantisation::F32, 1e-4),
            (Dtype::F32, Quantisation::Q4K, 1e-2),
            (Dtype::Bf16, Quantisation::Q4K, 3e-2),
        ] {
            let case = Case::load("bd3lm-tiny");
            let network = on_device(&rig.gpu, dtype, &case, 3, form);
            let mut cache = network.cache(PAGE.into(), 1).unwrap();
            let (shape, ids) = case.sequences();
            for mix in mixes(3) {
                let of = |mix: &Mix| Batch {
                    segments: vec![Segment {
                        mix: mix.clone(),
                        ..segment(&case, &ids[..shape[1]], 0.0)
                    }],
                };
                let ours = network.forward(&of(&mix), &mut cache).unwrap();
                let single = network.materialise(&mix).unwrap();
                let theirs = single.forward(&of(&Mix::base()), &mut cache).unwrap();
                let off = relative(&ours.data, &theirs.data);
                assert!(off < tolerance, "{dtype:?} {form} {mix:?}: {off}");
            }
        }
    }
}

/// Instances share what variants keep, also when there are more of them than slots, and when a slot is given to another.
#[test]
fn variants_keep_their_slots_while_others_come_and_go() {
    let Some(rig) = Rig::one() else { return };
    let case = Case::load("bd3lm-tiny");
    let (banks, weights) = variants(&case, 18);
    let (gpu, dtype) = (rig.gpu.clone(), Dtype::F32);
    let device = GpuTarget::new(gpu, dtype);
    let new_base = || {
        let architecture = case.config.architecture().unwrap();
        Arc::new(GpuBase::new(device.clone(), architecture, &case.weights).unwrap())
    };
    let of_base = |base: &GpuBase| -> Vec<Arc<GpuBank>> {
        let build = |matrices: &Matrices| GpuBank::build(base, Quantisation::Q4K, matrices.clone());
        banks
            .iter()
            .map(|one| Arc::new(build(one).unwrap()))
            .collect()
    };
    let base = new_base();
    let banks_here = of_base(&base);
    let make = |index: usize| Placed {
        own: Arc::new(GpuVariant::new(&base, &weights[index]).unwrap()),
        banks: weights[index].banks.clone(),
    };
    let (shape, ids) = case.sequences();
    let answer = |network: &GpuNetwork, variant: u32| {
        let mix = Mix::single(VariantId(variant));
        let segments = vec![Segment {
            mix,
            ..segment(&case, &ids[..shape[1]], 0.0)
        }];
        let mut cache = network.cache(PAGE.into(), 1).unwrap();
        network
            .forward(&Batch { segments }, &mut cache)
            .unwrap()
            .data
    };
    let instance = |variants: &[Placed<GpuVariant>]| {
        GpuNetwork::of(base.clone(), &banks_here, variants.to_vec()).unwrap()
    };
    let alone = |index: usize| {
        let base = new_base();
        let banks = of_base(&base);
        GpuNetwork::new(base, &banks, vec![weights[index].clone()]).unwrap()
    };

    let few: Vec<_> = (0..3).map(make).collect();
    let before = instance(&few);
    let many: Vec<_> = (few.iter().cloned()).chain((3..17).map(make)).collect();
    let after = instance(&many);
    for (network, variant) in [(&before, 2), (&after, 2), (&after, 16)] {
        assert_eq!(
            answer(network, variant),
            answer(&alone(variant as usize), 0),
            "variant {variant}"
        );
    }
    let freed = many[16].own.slot.number;
    drop((after, many));
    let last = make(17);
    assert!(
        freed > 3 && last.own.slot.number > 3,
        "slots of living variants are not given away"
    );
    let next = instance(&[few[1].clone(), last]);
    assert_eq!(answer(&next, 1), answer(&alone(17), 0));
    assert_eq!(answer(&before, 1), answer(&next, 0));
}

#[test]
fn a_step_draws_what_the_host_draws_from_the_same_logits() {
    for rig in Rig::all() {
        let case = Case::load("bd3lm-tiny");
        let network = on_device(&rig.gpu, Dtype::Bf16, &case, 3, Quantisation::Q4K);
        let mut batch = all_kinds(&case, 3);
        let filter = Filter {
            temperature: 1.0,
            top_k: None,
            nucleus_p: 0.9,
            crossing: Crossing::Dropped,
            forbidden: case.config.mask_id(),
        };
        let kinds = [
            DrawKind::Predicted,
            DrawKind::Best,
            DrawKind::Sure(Certainty::Best),
        ];
        let mut draws = Vec::new();
        for (number, segment) in batch
            .segments
            .iter_mut()
            .enumerate()
            .filter(|(number, _)| number % 4 != 0)
        {
            segment.draws = (segment.rows.iter())
                .map(|&position| Draw {
                    filter: Filter {
                        nucleus_p: if number % 2 == 0 { 1.0 } else { 0.9 },
                        ..filter
                    },
                    tokens: case.config.vocab_size,
                    noise: Noise::new(number as u64),
                    step: 3,
                    position: position as u32,
                    kind: kinds[position % 3],
                })
                .collect();
            draws.push(number);
        }
        let mut cache = network.cache(PAGE.into(), 1).unwrap();
        let logits = network.forward(&batch, &mut cache).unwrap();
        for _ in 0..3 {
            let outcome = network.step(&batch, &mut cache).unwrap();
            let (mut expected, mut kept, mut row) = (Vec::new(), Vec::new(), 0);
            for segment in &batch.segments {
                for at in 0..segment.rows.len() {
                    match segment.draws.get(at) {
                        Some(draw) => expected
                            .push(draw.apply(logits.row(row), &mut FilterWorkspace::default())),
                        None => kept.extend_from_slice(logits.row(row)),
                    }
                    row += 1;
                }
            }
            assert_eq!(outcome.drawn, expected);
            assert_eq!(outcome.logits.data, kept);
        }
    }
}

#[test]
fn memory_comes_back() {
    let Some(rig) = Rig::one() else { return };
    let free = || rig.gpu.memory().unwrap().0;
    let before = free();
    let case = Case::load("bd3lm-tiny");
    for _ in 0..3 {
        let network = on_device(&rig.gpu, Dtype::Bf16, &case, 3, Quantisation::Q4K);
        let mut cache = network.cache(PAGE.into(), 4).unwrap();
        network.forward(&all_kinds(&case, 3), &mut cache).unwrap();
        assert!(free() < before);
        let single = network.materialise(&Mix::single(VariantId(1))).unwrap();
        drop((network, cache, single));
        rig.gpu.synchronise().unwrap();
        assert_eq!(free(), before);
    }
}

/// Batches of one shape are replayed from one recording, whatever they hold, also after memory has moved to make room.
#[test]
fn a_recorded_step_serves_every_batch_of_its_shape() {
    let Some(rig) = Rig::one() else { return };
    let case = Case::load("duo-tiny");
    let network = || on_device(&rig.gpu, Dtype::Bf16, &case, 4, Quantisation::Q4K);
    let batch = |variants: [u32; 2], salt: u32, sigma: f32| Batch {
        segments: variants
            .into_iter()
            .map(|variant| Segment {
                mix: Mix::single(VariantId(variant)),
                rows: vec![0, 3],
                ..segment(&case, &[1 + salt, 5, 7 + salt, 2], sigma)
            })
            .collect(),
    };
    let (recording, mut cache) = (network(), network().cache(PAGE.into(), 1).unwrap());
    let first = batch([0, 1], 0, 0.3);
    for _ in 0..2 {
        recording.forward(&first, &mut cache).unwrap();
    }
    let others = [
        batch([1, 0], 3, 0.3),
        batch([2, 3], 8, 2.0),
        batch([3, 2], 1, 0.0),
    ];
    for round in 0..2 {
        for other in &others {
            let replayed = recording.forward(other, &mut cache).unwrap();
            let fresh = network().forward(other, &mut cache).unwrap();
            assert_eq!(replayed.data, fresh.data, "round {round}");
        }
        let larger = Batch {
            segments: (0..9)
                .flat_map(|salt| batch([0, 3], salt, 0.1).segments)
                .collect(),
        };
        recording.forward(&larger, &mut cache).unwrap();
    }
}

/// More noise levels than there are slots at first: there is room for all of them, once each has come.
#[test]
fn noise_levels_of_many_sequences_keep_their_tables() {
    let Some(rig) = Rig::one() else { return };
    let case = Case::load("duo-tiny");
    let network = on_device(&rig.gpu, Dtype::F32, &case, 2, Quantisation::F32);
    let host = on_host(&case, 2, Quantisation::F32);
    let mut host_cache = host.cache(PAGE.into(), 1).unwrap();
    let mut cache = network.cache(PAGE.into(), 1).unwrap();
    let levels = |part: u32| Batch {
        segments: (100 * part..100 * (part + 1))
            .map(|level| Segment {
                mix: Mix::single(VariantId(level % 2)),
                rows: vec![0],
                ..segment(&case, &[1 + level % 5], 0.01 * level as f32)
            })
            .collect(),
    };
    let before = network.table_bytes();
    let mut all = |part| network.forward(&levels(part), &mut cache).unwrap().data;
    let first: Vec<_> = (0..6).map(&mut all).collect();
    let grown = network.table_bytes();
    assert!(grown > before);
    for (part, first) in (0..).zip(&first) {
        assert_eq!(&all(part), first, "part {part}");
        let host = host.forward(&levels(part), &mut host_cache).unwrap();
        assert!(relative(first, &host.data) < 1e-3, "part {part}");
    }
    assert_eq!(network.table_bytes(), grown);
}
