//! Decoder bodies on a device against golden data and against the executor on the host.

use std::sync::Arc;

use choir::model::gpu::{GpuBank, GpuBase, GpuNetwork, GpuTarget, GpuVariant};
use choir::model::variant::Placed;
use choir::model::{
    BaseWeights, Batch, Denoiser, HostNetwork, Mix, Segment, ServedBank, VariantId, VariantWeights,
};
use choir::ops::gpu::{Dtype, GpuDevice};
use choir::ops::quantized::Quantisation;

use crate::fixtures::family::{Family, PAGE, behind};
use crate::fixtures::kept::{KINDS, kept_variants_of};
use crate::fixtures::{Matrices, close, mixes, relative};
use crate::rig::Rig;

fn base(gpu: &Arc<dyn GpuDevice>, dtype: Dtype, family: &Family) -> Arc<GpuBase> {
    let gpu = gpu.clone();
    let device = GpuTarget::new(gpu, dtype);
    let base = GpuBase::new(device, family.architecture.clone(), &family.dense());
    Arc::new(base.unwrap())
}

fn plain(gpu: &Arc<dyn GpuDevice>, dtype: Dtype, family: &Family) -> GpuNetwork {
    GpuNetwork::new(base(gpu, dtype, family), &[], Vec::new()).unwrap()
}

fn with(
    base: Arc<GpuBase>,
    kept: (Vec<Matrices>, Vec<VariantWeights>),
    form: Quantisation,
) -> GpuNetwork {
    let bank = |matrices| Arc::new(GpuBank::build(&base, form, matrices).unwrap());
    let banks: Vec<_> = kept.0.into_iter().map(bank).collect();
    GpuNetwork::new(base, &banks, kept.1).unwrap()
}

fn on_host(family: &Family, kept: (Vec<Matrices>, Vec<VariantWeights>)) -> HostNetwork {
    let base = BaseWeights::new(family.architecture.clone(), &family.dense()).unwrap();
    let bank = |matrices| Arc::new(ServedBank::build(Quantisation::F32, matrices).unwrap());
    let banks: Vec<_> = kept.0.into_iter().map(bank).collect();
    HostNetwork::new(Arc::new(base), &banks, kept.1).unwrap()
}

#[test]
fn decoders_give_the_references_logits() {
    for rig in Rig::all() {
        for family in Family::all() {
            let forwards = family.forwards();
            let segments: Vec<Segment> = (forwards.iter())
                .map(|forward| forward.segment(&family.architecture))
                .collect();
            let golden: Vec<f32> = forwards.iter().flat_map(|f| f.logits.clone()).collect();
            let batch = Batch { segments };
            let of = |dtype| {
                let network = plain(&rig.gpu, dtype, &family);
                let mut cache = network.cache(PAGE.into(), 1).unwrap();
                network.forward(&batch, &mut cache).unwrap().data
            };
            close(&of(Dtype::F32), &golden, 2e-4, family.architecture.family);
            let off = relative(&of(Dtype::Bf16), &golden);
            assert!(off < 8e-2, "{} in bf16: {off}", family.architecture.family);
        }
    }
}

/// Every batch is launched, recorded and replayed.
#[test]
fn decoders_give_the_references_logits_behind_a_cache() {
    for rig in Rig::all() {
        let family = Family::load("sdar-tiny");
        let network = plain(&rig.gpu, Dtype::F32, &family);
        let vocab = family.architecture.vocabulary.rows;
        let (shape, _) = &family.cases["b.logits_noisy"];
        let (blocks, block) = (shape[1], shape[2]);
        let ids = |name| -> Vec<Vec<u32>> {
            let rows = family.rows(name, blocks * block).into_iter();
            rows.map(|row| row.into_iter().map(|id| id as u32).collect())
                .collect()
        };
        let (clean, noisy) = (ids("b.clean_ids"), ids("b.noisy_ids"));
        let expected = |name| family.rows(name, blocks * block * vocab);
        let (cleans, noisies) = (expected("b.logits_clean"), expected("b.logits_noisy"));
        for row in 0..clean.len() {
            let pages = (blocks * block).div_ceil(PAGE);
            let mut cache = network.cache(PAGE.into(), pages).unwrap();
            let mut evaluate = |segment: Segment| {
                let segments = vec![segment];
                let batch = Batch { segments };
                let all = [(); 3].map(|()| network.forward(&batch, &mut cache).unwrap().data);
                assert_eq!(all[0], all[1], "recorded");
                assert_eq!(all[0], all[2], "replayed");
                all[2].clone()
            };
            for number in 0..blocks {
                let here = number * block..(number + 1) * block;
                let of = here.start * vocab..here.end * vocab;
                let name = format!("row {row}, block {number}");
                let tokens = &noisy[row][here.clone()];
                let ours = evaluate(behind(here.start, tokens, block, false, 0..block));
                close(&ours, &noisies[row][of.clone()], 2e-4, &name);
                let whole = [&clean[row][..here.start], tokens].concat();
                let at_once = evaluate(behind(0, &whole, block, false, here.clone()));
                close(&ours, &at_once, 1e-5, &format!("{name} without a cache"));
                let tokens = &clean[row][here];
                let ours = evaluate(behind(number * block, tokens, block, true, 0..block));
                close(&ours, &cleans[row][of], 2e-4, &name);
            }
        }
    }
}

/// Segments of every mix.
fn all_kinds(family: &Family, count: u32) -> Batch {
    let forwards = family.forwards();
    let segments = mixes(count).into_iter().enumerate().map(|(index, mix)| {
        let forward = &forwards[index % forwards.len()];
        let mut segment = forward.segment(&family.architecture);
        segment.rows.retain(|row| row % 2 == index % 2);
        Segment { mix, ..segment }
    });
    Batch {
        segments: segments.collect(),
    }
}

/// Variants of every kind share a batch, which is launched, recorded and replayed.
#[test]
fn variants_of_decoders_are_those_of_the_host() {
    for rig in Rig::all() {
        for (dtype, form, tolerance) in [
            (Dtype::F32, Quantisation::F32, 4e-2),
            (Dtype::Bf16, Quantisation::F32, 0.1),
            (Dtype::Bf16, Quantisation::Q4K, 0.3),
        ] {
            for family in Family::all() {
                let kept = || kept_variants_of(&family.dense(), KINDS);
                let network = with(base(&rig.gpu, dtype, &family), kept(), form);
                let host = on_host(&family, kept());
                let batch = all_kinds(&family, KINDS as u32);
                let mut cache = network.cache(PAGE.into(), 1).unwrap();
                let mut host_cache = host.cache(PAGE.into(), 1).unwrap();
                let theirs = host.forward(&batch, &mut host_cache).unwrap();
                let mut first = Vec::new();
                for time in 0..3 {
                    let ours = network.forward(&batch, &mut cache).unwrap();
                    let off = relative(&ours.data, &theirs.data);
                    let name = family.architecture.family;
                    assert!(
                        off < tolerance,
                        "{name} {dtype:?} {form}, time {time}: {off}"
                    );
                    assert!(
                        first.is_empty() || first == ours.data,
                        "{name}, time {time}"
                    );
                    first = ours.data;
                }
            }
        }
    }
}

#[test]
fn variants_of_decoders_materialise_to_what_they_give() {
    let Some(rig) = Rig::one() else { return };
    for family in Family::all() {
        let kept = kept_variants_of(&family.dense(), KINDS);
        let network = with(base(&rig.gpu, Dtype::F32, &family), kept, Quantisation::Q4K);
        let mut cache = network.cache(PAGE.into(), 1).unwrap();
        for segment in all_kinds(&family, KINDS as u32).segments {
            let of = |mix: &Mix| Batch {
                segments: vec![Segment {
                    mix: mix.clone(),
                    ..segment.clone()
                }],
            };
            let ours = network.forward(&of(&segment.mix), &mut cache).unwrap();
            let single = network.materialise(&segment.mix).unwrap();
            let theirs = single.forward(&of(&Mix::base()), &mut cache).unwrap();
            let off = relative(&ours.data, &theirs.data);
            assert!(off < 2e-2, "{:?}: {off}", segment.mix);
        }
    }
}

/// What a publish leaves: workspace and recordings are the base's, and an instance with other variants replays them.
#[test]
fn recordings_outlive_a_generation() {
    let Some(rig) = Rig::one() else { return };
    let family = Family::load("sdar-tiny");
    let base = base(&rig.gpu, Dtype::Bf16, &family);
    let (_, weights) = kept_variants_of(&family.dense(), 7);
    // Those of kinds 0 and 1 lie in no bank, and have codes of every matrix.
    let made = |index: usize| Placed {
        own: Arc::new(GpuVariant::new(&base, &weights[index]).unwrap()),
        banks: Vec::new(),
    };
    let instance =
        |variants: &[Placed<GpuVariant>]| GpuNetwork::of(base.clone(), &[], variants.to_vec());
    let plain = family.forwards().remove(0).segment(&family.architecture);
    let (one, two, three) = (made(0), made(1), made(5));
    let before = instance(&[one.clone(), two.clone()]).unwrap();
    let mut cache = before.cache(PAGE.into(), 1).unwrap();
    let mut answer = |network: &GpuNetwork, variant: u32| {
        let mix = Mix::single(VariantId(variant));
        let segments = vec![Segment {
            mix,
            ..plain.clone()
        }];
        network
            .forward(&Batch { segments }, &mut cache)
            .unwrap()
            .data
    };
    let first = answer(&before, 0);
    let second = answer(&before, 1);
    assert_eq!(before.recorded(), 1);
    // The same variants, and another, in another order.
    let free = rig.gpu.memory().unwrap();
    let after = instance(&[three, two, one]).unwrap();
    assert_eq!(rig.gpu.memory().unwrap(), free, "nothing is taken again");
    assert_eq!(
        (answer(&after, 2), answer(&after, 1)),
        (first.clone(), second)
    );
    assert_ne!(answer(&after, 0), first);
    assert_eq!(after.recorded(), 1, "nothing is recorded again");
    drop(before);
    assert_eq!(answer(&after, 2), first);
}
