//! The decoder families against golden data of their own code: the slow twins, and the executor on the host.

mod fixtures;
mod reference;

use candle_core::{Device, Tensor};
use choir::checkpoint::Checkpoint;
use choir::model::architecture::{Architecture, published};
use choir::model::kv_cache::KvCache;
use choir::model::{BaseWeights, Batch, Denoiser, HostNetwork, Mix, PageId, Segment, ServedBank};
use choir::ops::quantized::Quantisation;
use fixtures::close;
use reference::qwen::Qwen;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

const TOLERANCE: f32 = 1e-4;
/// Positions to a page: neither a block nor a divisor of one.
const PAGE: usize = 6;

/// One folder of golden data.
struct Family {
    config: Vec<u8>,
    architecture: Architecture,
    checkpoint: Checkpoint<'static>,
    weights: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    cases: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Family {
    fn load(name: &str) -> Self {
        let folder = fixtures::folder().join("families").join(name);
        let config = std::fs::read(folder.join("config.json")).expect("config.json");
        let weights = fixtures::read(&folder.join("model.safetensors")).into_iter();
        Family {
            architecture: Architecture::read(&config).expect("a network"),
            checkpoint: Checkpoint::open(&folder).expect("a checkpoint"),
            config,
            weights: weights
                .map(|(name, (shape, data))| {
                    (name, (shape, data.into_iter().map(|x| x as f32).collect()))
                })
                .collect(),
            cases: fixtures::read(&folder.join("cases.safetensors")),
        }
    }

    fn all() -> [Self; 2] {
        ["sdar-tiny", "a2d-qwen3-tiny"].map(Family::load)
    }

    fn base(&self, form: Quantisation) -> Arc<BaseWeights> {
        let base = BaseWeights::load(self.architecture.clone(), form, |spec| {
            let data = published::read(&self.checkpoint, spec)
                .map_err(|error| choir::model::Error::Unread(error.into()))?;
            Ok(Some(Cow::Owned(data)))
        });
        Arc::new(base.expect("weights"))
    }

    fn network(&self) -> HostNetwork {
        HostNetwork::new(self.base(Quantisation::F32), &[], Vec::new()).expect("a network")
    }

    fn twin(&self) -> Qwen {
        let tensor = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<f32>))| {
            let tensor = Tensor::from_slice(data, &shape[..], &Device::Cpu).expect("a tensor");
            (name.clone(), tensor)
        };
        let tensors: HashMap<String, Tensor> = self.weights.iter().map(tensor).collect();
        let vb =
            candle_nn::VarBuilder::from_tensors(tensors, candle_core::DType::F32, &Device::Cpu);
        Qwen::new(serde_json::from_slice(&self.config).expect("config"), vb).expect("a twin")
    }

    /// The rows of a case's array whose last dimension is `width`.
    fn rows(&self, name: &str, width: usize) -> Vec<Vec<f32>> {
        let (_, data) = self
            .cases
            .get(name)
            .unwrap_or_else(|| panic!("no case {name}"));
        let rows = data.chunks(width);
        rows.map(|row| row.iter().map(|x| *x as f32).collect())
            .collect()
    }

    /// Forwards without a cache.
    fn forwards(&self) -> Vec<Forward> {
        let names = self
            .cases
            .keys()
            .filter_map(|name| name.strip_prefix("a.")?.strip_suffix(".input_ids"));
        let forwards: Vec<Forward> = names.flat_map(|name| self.forward(name)).collect();
        assert!(!forwards.is_empty(), "no forward");
        forwards
    }

    /// One forward for each of a case's sequences. `block8...` is block-causal, all else sees everything. What comes before
    /// position 0 is padding.
    fn forward(&self, name: &str) -> Vec<Forward> {
        let (shape, ids) = &self.cases[&format!("a.{name}.input_ids")];
        let (length, vocab) = (shape[1], self.architecture.vocabulary.rows);
        let logits = self.rows(&format!("a.{name}.logits"), vocab);
        let digits = name
            .strip_prefix("block")
            .map(|rest| rest.split('.').next().unwrap_or(rest));
        let block = digits.map(|digits| digits.parse().expect("a block size"));
        let mask = self.cases.get(&format!("a.{name}.mask"));
        // A padded row sees nothing, or only itself.
        let pads = mask.map_or(0, |(_, mask)| {
            let seen = |row: usize| mask[row * length..][..length].iter().sum::<f64>();
            (0..length).take_while(|&row| seen(row) <= 1.0).count()
        });
        let sequences = ids.chunks(length).zip(logits.chunks(length));
        sequences
            .map(|(ids, logits)| Forward {
                name: name.to_owned(),
                ids: ids[pads..].iter().map(|id| *id as u32).collect(),
                block,
                phase: block.map_or(0, |block: usize| (length - pads) % block),
                logits: logits[pads..].concat(),
            })
            .collect()
    }
}

struct Forward {
    name: String,
    ids: Vec<u32>,
    block: Option<usize>,
    phase: usize,
    logits: Vec<f32>,
}

impl Forward {
    fn segment(&self, architecture: &Architecture) -> Segment {
        // Blocks of the whole length are counted from the beginning where the family does so.
        let grid = architecture.regime.grid;
        let phase = self.block.map_or(0, |block| grid.phase(self.phase, block));
        Segment {
            mix: Mix::base(),
            block: self.block,
            phase,
            sigma: 0.0,
            tokens: self.ids.clone(),
            first_position: 0,
            clean: 0,
            rows: (0..self.ids.len()).collect(),
            draws: Vec::new(),
            pages: Vec::new(),
            pages_start: 0,
        }
    }

    /// 0 for what a row sees and -infinity for the rest, [length, length].
    fn mask(&self, phase: usize) -> Tensor {
        let length = self.ids.len();
        let block = |position: usize| match self.block {
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
}

#[test]
fn twins_give_the_references_logits() {
    for family in Family::all() {
        let twin = family.twin();
        for forward in family.forwards() {
            let phase = forward.segment(&family.architecture).phase;
            let positions: Vec<f32> = (0..forward.ids.len()).map(|p| p as f32).collect();
            let ids = Tensor::new(&forward.ids[..], &Device::Cpu).expect("ids");
            let logits = twin
                .forward(&ids, &positions, &forward.mask(phase))
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
        let (network, forwards) = (family.network(), family.forwards());
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

/// A segment of `tokens` behind `cached` positions in pages 0, 1, ...
fn behind(cached: usize, tokens: &[u32], block: usize, clean: bool, rows: Range<usize>) -> Segment {
    let needed = cached + if clean { tokens.len() } else { 0 };
    Segment {
        mix: Mix::base(),
        block: Some(block),
        phase: 0,
        sigma: 0.0,
        tokens: tokens.to_vec(),
        first_position: cached,
        clean: if clean { tokens.len() } else { 0 },
        rows: rows.collect(),
        draws: Vec::new(),
        pages: (0..needed.div_ceil(PAGE) as u32).map(PageId).collect(),
        pages_start: 0,
    }
}

#[test]
fn blocks_behind_a_cache_give_the_references_logits() {
    let family = Family::load("sdar-tiny");
    let network = family.network();
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
    let dense: fixtures::Tensors<f32> = (family.architecture.tensors.iter())
        .map(|spec| {
            let data = published::read(&family.checkpoint, spec).expect("a tensor");
            (spec.name.clone(), (spec.shape.clone(), data))
        })
        .collect();
    let (banks, variants) = fixtures::variants_of(&dense, 3);
    let bank = |matrices| Arc::new(ServedBank::build(bank, matrices).expect("a bank"));
    let banks: Vec<_> = banks.into_iter().map(bank).collect();
    HostNetwork::new(family.base(form), &banks, variants).expect("a network")
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
        let base = evaluate(&family.network(), vec![plain.clone()]);
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
            let network = HostNetwork::new(family.base(form), &[], Vec::new()).expect("a network");
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
