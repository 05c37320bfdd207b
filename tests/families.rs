//! The decoder families against golden data of their own code: the slow twins, and the executor on the host.

#[path = "families/adapters.rs"]
mod adapters;
mod fixtures;
mod reference;

use candle_core::{Device, Tensor};
use choir::model::architecture::published;
use choir::model::kv_cache::KvCache;
use choir::model::{
    BaseWeights, Batch, Denoiser, HostNetwork, Mix, PageId, PageLayout, Segment, ServedBank,
};
use choir::ops::gpu::Dtype;
use choir::ops::quantized::Quantisation;
use fixtures::close;
use fixtures::family::{Family, Forward, PAGE, behind};
use reference::qwen::Qwen;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

const TOLERANCE: f32 = 1e-4;

fn base(family: &Family, form: Quantisation) -> Arc<BaseWeights> {
    let base = BaseWeights::load(family.architecture.clone(), form, |spec| {
        let data = published::read(&family.checkpoint, spec)
            .map_err(|error| choir::model::Error::Unread(error.into()))?;
        Ok(Some(Cow::Owned(data)))
    });
    Arc::new(base.expect("weights"))
}

fn of_base(family: &Family) -> HostNetwork {
    HostNetwork::new(base(family, Quantisation::F32), &[], Vec::new()).expect("a network")
}

fn twin(family: &Family) -> Qwen {
    let tensor = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<f32>))| {
        let tensor = Tensor::from_slice(data, &shape[..], &Device::Cpu).expect("a tensor");
        (name.clone(), tensor)
    };
    let tensors: HashMap<String, Tensor> = family.weights.iter().map(tensor).collect();
    let vb = candle_nn::VarBuilder::from_tensors(tensors, candle_core::DType::F32, &Device::Cpu);
    Qwen::new(serde_json::from_slice(&family.config).expect("config"), vb).expect("a twin")
}

/// 0 for what a row sees and -infinity for the rest, [length, length].
fn mask(forward: &Forward, phase: usize) -> Tensor {
    let length = forward.ids.len();
    let block = |position: usize| match forward.block {
        Some(block) => (position + block - phase) / block,
        None => 0,
    };
    let seen = |row, column| {
        if block(column) <= block(row) {
            0.0
        } else {
            f32::NEG_INFINITY
        }
    };
    let mask = (0..length).flat_map(|row| (0..length).map(move |column| seen(row, column)));
    Tensor::from_iter(mask, &Device::Cpu)
        .and_then(|mask| mask.reshape((length, length)))
        .expect("a mask")
}

#[test]
fn twins_give_the_references_logits() {
    for family in Family::all() {
        let twin = twin(&family);
        for forward in family.forwards() {
            let phase = forward.segment(&family.architecture).phase;
            let positions: Vec<f32> = (0..forward.ids.len()).map(|p| p as f32).collect();
            let ids = Tensor::new(&forward.ids[..], &Device::Cpu).expect("ids");
            let logits = twin
                .forward(&ids, &positions, &mask(&forward, phase))
                .expect("forward");
            let logits: Vec<f32> = logits
                .flatten_all()
                .and_then(|x| x.to_vec1())
                .expect("logits");
            close(&logits, &forward.logits, TOLERANCE, &forward.name);
        }
    }
}

#[test]
fn the_executor_gives_the_references_logits() {
    for family in Family::all() {
        let (network, forwards) = (of_base(&family), family.forwards());
        let segments: Vec<Segment> = forwards
            .iter()
            .map(|f| f.segment(&family.architecture))
            .collect();
        let mut cache = KvCache::new(network.facts().cache, PAGE, 0);
        let mut evaluate = |segments: Vec<Segment>| {
            let batch = Batch { segments };
            network.forward(&batch, &mut cache).expect("forward").data
        };
        let all = evaluate(segments.clone());
        let mut begun = 0;
        for (forward, segment) in forwards.iter().zip(segments) {
            let alone = evaluate(vec![segment]);
            close(&alone, &forward.logits, TOLERANCE, &forward.name);
            assert_eq!(
                alone,
                all[begun..begun + alone.len()],
                "{}: a batch changes it",
                forward.name
            );
            begun += alone.len();
        }
    }
}

#[test]
fn blocks_behind_a_cache_give_the_references_logits() {
    let family = Family::load("sdar-tiny");
    let network = of_base(&family);
    let vocab = family.architecture.vocabulary.rows;
    let (shape, _) = &family.cases["b.logits_noisy"];
    let (blocks, block) = (shape[1], shape[2]);
    let ids = |name| -> Vec<Vec<u32>> {
        let rows = family.rows(name, blocks * block).into_iter();
        rows.map(|row| row.into_iter().map(|id| id as u32).collect())
            .collect()
    };
    let expected = |name| family.rows(name, blocks * block * vocab);
    let (clean, noisy) = (ids("b.clean_ids"), ids("b.noisy_ids"));
    let (cleans, noisies) = (expected("b.logits_clean"), expected("b.logits_noisy"));
    let uncached = expected("b.logits_noisy_uncached");
    for row in 0..clean.len() {
        let mut cache = KvCache::new(network.facts().cache, PAGE, (blocks * block).div_ceil(PAGE));
        let mut evaluate = |segment| {
            let batch = Batch {
                segments: vec![segment],
            };
            network.forward(&batch, &mut cache).expect("forward").data
        };
        for number in 0..blocks {
            let (at, of) = (
                number * block,
                number * block * vocab..(number + 1) * block * vocab,
            );
            let here = at..at + block;
            let name = format!("row {row}, block {number}");
            let ours = evaluate(behind(
                at,
                &noisy[row][here.clone()],
                block,
                false,
                0..block,
            ));
            close(&ours, &noisies[row][of.clone()], TOLERANCE, &name);
            close(&ours, &uncached[row][of.clone()], TOLERANCE, &name);
            let whole = [&clean[row][..at], &noisy[row][here.clone()]].concat();
            let at_once = evaluate(behind(0, &whole, block, false, at..at + block));
            assert_eq!(at_once, ours, "{name}: the cache changes it");
            let ours = evaluate(behind(at, &clean[row][here], block, true, 0..block));
            close(&ours, &cleans[row][of], TOLERANCE, &name);
        }
        for layer in 0..family.architecture.layers.len() {
            check_cache(&family, &cache, row, layer, blocks * block);
        }
    }
}

/// Keys and values as the reference has them, where it says them: [row, head, position, head_dim].
fn check_cache(family: &Family, cache: &KvCache, row: usize, layer: usize, positions: usize) {
    let shape = family.architecture.facts().cache;
    let side = |side: &str| {
        let name = format!("b.cache_{side}.layer{layer}");
        family
            .cases
            .contains_key(&name)
            .then(|| family.rows(&name, shape.head_dim))
    };
    let (Some(keys), Some(values)) = (side("k"), side("v")) else {
        return;
    };
    for position in 0..positions {
        let (key, value) = cache.read(PageId((position / PAGE) as u32), layer, position % PAGE);
        for head in 0..shape.heads {
            let theirs = (row * shape.heads + head) * positions + position;
            let ours = head * shape.head_dim..(head + 1) * shape.head_dim;
            close(&key[ours.clone()], &keys[theirs], TOLERANCE, "keys");
            close(&value[ours], &values[theirs], TOLERANCE, "values");
        }
    }
}

/// Variants of a base in `form`, read from banks in `bank`.
fn with_variants(family: &Family, form: Quantisation, bank: Quantisation) -> HostNetwork {
    let (banks, variants) = fixtures::variants_of(&family.dense(), 3);
    let bank = |matrices| Arc::new(ServedBank::build(bank, matrices).expect("a bank"));
    let banks: Vec<_> = banks.into_iter().map(bank).collect();
    HostNetwork::new(base(family, form), &banks, variants).expect("a network")
}

#[test]
fn variants_equal_materialised_weights_and_do_not_depend_on_the_batch() {
    for family in Family::all() {
        let network = with_variants(&family, Quantisation::F32, Quantisation::F32);
        let plain = family.forwards().remove(0).segment(&family.architecture);
        let mut cache = KvCache::new(network.facts().cache, PAGE, 0);
        let mut evaluate = |network: &HostNetwork, segments: Vec<Segment>| {
            let batch = Batch { segments };
            network.forward(&batch, &mut cache).expect("forward").data
        };
        let mixes = fixtures::mixes(3);
        let of = |mix: &Mix| Segment {
            mix: mix.clone(),
            ..plain.clone()
        };
        let together = evaluate(&network, mixes.iter().map(of).collect());
        let base = evaluate(&of_base(&family), vec![plain.clone()]);
        for (mix, ours) in mixes.iter().zip(together.chunks(base.len())) {
            let alone = evaluate(&network, vec![of(mix)]);
            assert_eq!(ours, &alone[..], "the batch changed the logits of {mix:?}");
            let single = network.materialise(mix).expect("materialised");
            let theirs = evaluate(&single, vec![plain.clone()]);
            close(
                ours,
                &theirs,
                5.0 * TOLERANCE,
                &format!("{} {mix:?}", family.architecture.family),
            );
            let moved = ours.iter().zip(&base).any(|(a, b)| (a - b).abs() > 1e-2);
            assert_eq!(moved, *mix != Mix::base(), "{mix:?}");
        }
    }
}

/// |a - b| / |b|
fn relative_error(a: &[f32], b: &[f32]) -> f32 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    let differences = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (differences / squares(&mut b.iter().copied())).sqrt()
}

#[test]
fn bases_in_few_bits_stay_near_and_do_not_depend_on_the_batch() {
    for family in Family::all() {
        let forwards = family.forwards();
        let segments: Vec<Segment> = forwards
            .iter()
            .map(|f| f.segment(&family.architecture))
            .collect();
        for (form, most) in [
            (Quantisation::Bf16, 0.02),
            (Quantisation::Q8_0, 0.08),
            (Quantisation::Q4K, 0.6),
        ] {
            let network =
                HostNetwork::new(base(&family, form), &[], Vec::new()).expect("a network");
            let mut cache = KvCache::new(network.facts().cache, PAGE, 0);
            let mut evaluate = |segments: Vec<Segment>| {
                let batch = Batch { segments };
                network.forward(&batch, &mut cache).expect("forward").data
            };
            let all = evaluate(segments.clone());
            let mut begun = 0;
            for (forward, segment) in forwards.iter().zip(&segments) {
                let alone = evaluate(vec![segment.clone()]);
                let error = relative_error(&alone, &forward.logits);
                assert!(error <= most, "{form} {}: {error}", forward.name);
                assert_ne!(alone, forward.logits, "{form} is no rounding at all");
                assert_eq!(
                    alone,
                    all[begun..begun + alone.len()],
                    "{form}: a batch changes it"
                );
                begun += alone.len();
            }
        }
    }
}

#[test]
fn a_cache_in_bf16_takes_half_and_rounds_the_same_however_a_text_is_cut() {
    let pages = |dtype| PageLayout {
        tokens: PAGE,
        dtype,
    };
    for family in Family::all() {
        let network = of_base(&family);
        let (length, block) = (4 * PAGE - 3, PAGE / 2);
        let tokens = family.architecture.facts().tokens;
        let ids: Vec<u32> = (0..length).map(|at| (at * 31 % tokens) as u32).collect();
        let cache = |dtype| network.cache(pages(dtype), 4).expect("a cache");
        let (mut narrow, mut wide) = (cache(Dtype::Bf16), cache(Dtype::F32));
        assert_eq!(2 * narrow.bytes(), wide.bytes());
        assert_eq!(
            2 * network.page_bytes(pages(Dtype::Bf16)),
            network.page_bytes(PAGE.into())
        );
        let evaluate = |segment, cache: &mut KvCache| {
            let batch = Batch {
                segments: vec![segment],
            };
            network.forward(&batch, cache).expect("forward").data
        };
        let whole = |cache: &mut KvCache| {
            evaluate(behind(0, &ids, block, false, length - 1..length), cache)
        };
        let (rounded, exact) = (whole(&mut narrow), whole(&mut wide));
        let error = relative_error(&rounded, &exact);
        assert!((1e-6..0.02).contains(&error), "{error}");
        // Block by block behind what is stored, and the prompt in pieces of other lengths.
        for piece in [block, 3 * block] {
            let mut last = Vec::new();
            for start in (0..length).step_by(piece) {
                let here = start..(start + piece).min(length);
                let (rows, stored) = (here.len() - 1..here.len(), here.end < length);
                let segment = behind(start, &ids[here], block, stored, rows);
                last = evaluate(segment, &mut narrow);
            }
            assert_eq!(last, rounded, "pieces of {piece}");
        }
    }
}
