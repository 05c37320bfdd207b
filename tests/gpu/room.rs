//! What belongs to a base on a device, and to none of its generations.

use std::sync::Arc;

use choir::model::gpu::{GpuBank, GpuBase, GpuNetwork, GpuTarget, GpuVariant};
use choir::model::variant::Placed;
use choir::model::{Batch, Denoiser, Mix, PageId, Segment, VariantId, VariantWeights};
use choir::ops::gpu::{Buffer, Dtype, Fault, GpuDevice};
use choir::ops::quantized::Quantisation;

use crate::emulated::Emulated;
use crate::fixtures::kept::kept_variants;
use crate::fixtures::{Case, PAGE, segment, variants};

fn base(gpu: &Arc<Emulated>, case: &Case) -> Arc<GpuBase> {
    let gpu: Arc<dyn GpuDevice> = gpu.clone();
    let device = GpuTarget::new(gpu, Dtype::F32);
    let architecture = case.config.architecture().unwrap();
    Arc::new(GpuBase::new(device, architecture, &case.weights).unwrap())
}

/// Variants that lie in no bank.
fn alone(case: &Case, count: usize) -> Vec<VariantWeights> {
    let (_, all) = kept_variants(case, 5 * count);
    let alone = all.into_iter().filter(|one| one.gains.is_empty());
    alone.take(count).collect()
}

fn placed(base: &GpuBase, weights: &VariantWeights) -> Placed<GpuVariant> {
    Placed {
        own: Arc::new(GpuVariant::new(base, weights).unwrap()),
        banks: Vec::new(),
    }
}

/// `count` segments of `tokens` tokens each, all rows wanted.
fn batch(case: &Case, mix: &Mix, count: usize, tokens: usize) -> Batch {
    let (_, ids) = case.sequences();
    let ids: Vec<u32> = ids.iter().copied().cycle().take(tokens).collect();
    let one = Segment {
        mix: mix.clone(),
        block: None,
        ..segment(case, &ids, 0.0)
    };
    Batch {
        segments: vec![one; count],
    }
}

/// Nobody asks for logits of it: it is over before it is said to be.
#[test]
fn a_step_that_only_fills_the_cache_is_awaited() {
    let Some(gpu) = Emulated::new(0) else {
        return;
    };
    let case = Case::load("bd3lm-tiny");
    let network = GpuNetwork::new(base(&gpu, &case), &[], Vec::new()).unwrap();
    let block = case.config.block().unwrap();
    let mut cache = network.cache(PAGE.into(), block.div_ceil(PAGE)).unwrap();
    let mut batch = batch(&case, &Mix::base(), 1, block);
    let segment = &mut batch.segments[0];
    (segment.clean, segment.rows) = (block, Vec::new());
    segment.pages = (0..block.div_ceil(PAGE) as u32).map(PageId).collect();
    for time in 0..3 {
        network.step(&batch, &mut cache).unwrap();
        assert!(!gpu.pending(), "time {time}");
    }
}

/// `rows` tokens in `count` segments, of which `wanted` are wanted.
fn shaped(case: &Case, rows: usize, count: usize, wanted: usize) -> Batch {
    let mut left = wanted;
    let segments = (0..count).map(|number| {
        let tokens = if number == 0 { rows - count + 1 } else { 1 };
        let mut one = batch(case, &Mix::base(), 1, tokens).segments.remove(0);
        one.rows.truncate(left);
        left -= one.rows.len();
        one
    });
    Batch {
        segments: segments.collect(),
    }
}

/// A shape that is used again and again is recorded once, however many others come by: more than are remembered.
#[test]
fn a_shape_in_use_stays_recorded() {
    let Some(gpu) = Emulated::new(0) else { return };
    let case = Case::load("duo-tiny");
    let network = GpuNetwork::new(base(&gpu, &case), &[], Vec::new()).unwrap();
    let mut cache = network.cache(PAGE.into(), 1).unwrap();
    let usual = shaped(&case, 32, 1, 32);
    let mut step = |batch: &Batch| drop(network.step(batch, &mut cache).unwrap());
    (0..3).for_each(|_| step(&usual));
    // As batches are rounded: all of these are different shapes.
    let sizes = [1, 2, 4, 8, 12, 16, 24];
    let mut others = 0;
    for rows in sizes {
        let up_to = || sizes.into_iter().filter(|size| *size <= rows);
        for (count, wanted) in up_to().flat_map(|count| up_to().map(move |wanted| (count, wanted)))
        {
            step(&shaped(&case, rows, count, wanted));
            step(&usual);
            others += 1;
        }
    }
    assert!(others > 128);
    assert_eq!((gpu.recordings(), network.recorded()), (1, 1));
}

/// What a variant takes is taken when it is added; where there is no room it is refused, and others answer as before.
#[test]
fn memory_is_taken_with_a_variant_and_not_with_its_first_step() {
    let Some(gpu) = Emulated::new(0) else {
        return;
    };
    let case = Case::load("bd3lm-tiny");
    let base = base(&gpu, &case);
    let before = GpuNetwork::of(base.clone(), &[], Vec::new()).unwrap();
    let mut cache = before.cache(PAGE.into(), 1).unwrap();
    let step = batch(&case, &Mix::base(), 40, 16);
    let expected = before.forward(&step, &mut cache).unwrap().data;

    let one = placed(&base, &alone(&case, 1)[0]);
    let (free, _) = gpu.memory().unwrap();
    let all: Arc<dyn GpuDevice> = gpu.clone();
    let taken = Buffer::new(&all, free - 4096).unwrap();
    let refused = GpuNetwork::of(base.clone(), &[], vec![one.clone()]);
    let refused = refused.map(|_| ()).unwrap_err();
    assert!(
        matches!(
            refused,
            choir::model::Error::Device(Fault::OutOfMemory { .. })
        ),
        "{refused}"
    );
    assert_eq!(before.forward(&step, &mut cache).unwrap().data, expected);
    drop(taken);

    let after = GpuNetwork::of(base, &[], vec![one]).unwrap();
    let used = gpu.allocated();
    let mix = Mix::single(VariantId(0));
    let of_variant = batch(&case, &mix, 40, 16);
    assert_ne!(
        after.forward(&of_variant, &mut cache).unwrap().data,
        expected
    );
    // But for the batch itself: tokens, parts, segments.
    assert!(gpu.allocated() - used < 512 * step.logit_rows());
}

/// Variants may be made side by side, and while others answer.
#[test]
fn variants_are_added_side_by_side() {
    let Some(gpu) = Emulated::new(0) else {
        return;
    };
    let case = Case::load("bd3lm-tiny");
    let base = base(&gpu, &case);
    let (banks, weights) = variants(&case, 36);
    let banks: Vec<_> = (banks.into_iter())
        .map(|one| Arc::new(GpuBank::build(&base, Quantisation::F32, one).unwrap()))
        .collect();
    let place = |weights: &VariantWeights| Placed {
        own: Arc::new(GpuVariant::new(&base, weights).unwrap()),
        banks: weights.banks.clone(),
    };
    let first = place(&weights[0]);
    let network = GpuNetwork::of(base.clone(), &banks, vec![first]).unwrap();
    let step = batch(&case, &Mix::single(VariantId(0)), 1, 4);
    let answer = |network: &GpuNetwork| {
        let mut cache = network.cache(PAGE.into(), 1).unwrap();
        network.forward(&step, &mut cache).unwrap().data
    };
    let expected = answer(&network);
    let others: Vec<Placed<GpuVariant>> = std::thread::scope(|scope| {
        let parts = weights[1..].chunks(12);
        let making: Vec<_> = parts
            .map(|part| scope.spawn(|| part.iter().map(place).collect::<Vec<_>>()))
            .collect();
        for _ in 0..5 {
            assert_eq!(answer(&network), expected);
        }
        making
            .into_iter()
            .flat_map(|one| one.join().unwrap())
            .collect()
    });
    for (index, other) in (1..).zip(others).step_by(5) {
        let together = GpuNetwork::of(base.clone(), &banks, vec![other]).unwrap();
        let again = place(&weights[index]);
        let alone = GpuNetwork::of(base.clone(), &banks, vec![again]).unwrap();
        assert_eq!(answer(&together), answer(&alone), "variant {index}");
        assert_ne!(answer(&together), expected);
    }
}
