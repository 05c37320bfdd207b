//! Adapters that `peft` wrote, against the logits of its own merged models.

use super::{Family, TOLERANCE, close, fixtures};
use choir::checkpoint::Checkpoint;
use choir::model::architecture::adapter::{self, CONFIG, WEIGHTS};
use choir::model::architecture::published::Published;
use choir::model::kv_cache::KvCache;
use choir::model::{Batch, Denoiser, HostNetwork, Mix, Segment, VariantId, VariantWeights};
use choir::ops::coded::Kept;
use choir::ops::quantized::Quantisation;
use choir::superposition::{CodedDelta, DeltaError, TensorSource};
use std::collections::BTreeMap;
use std::path::PathBuf;

const FOLDER: &str = "peft-sdar-tiny";
/// Of logits whose differences go up to 19: products are added up in another order than peft merges them.
const EXACT: f32 = 10.0 * TOLERANCE;
/// Where a module is saved whole, its difference is kept in bf16.
const ROUNDED: f32 = 0.3;

fn folder() -> PathBuf {
    fixtures::folder("families").join(FOLDER)
}

/// The cases by name, but for those with magnitudes.
fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).expect("a folder").flatten();
    let cases = entries.filter(|entry| entry.path().join(CONFIG).exists());
    let mut names: Vec<String> = cases
        .map(|entry| entry.file_name().into_string().expect("a name"))
        .filter(|name| name != "dora")
        .collect();
    names.sort();
    assert!(names.len() > 3, "{names:?}");
    names
}

fn read(family: &Family, name: &str) -> Result<CodedDelta, adapter::AdapterError> {
    let config = std::fs::read(folder().join(name).join(CONFIG)).expect("a configuration");
    let checkpoint = Checkpoint::open(&folder().join(name).join(WEIGHTS)).expect("an adapter");
    assert!(adapter::is_one(&checkpoint));
    let base = fixtures::folder("families").join("sdar-tiny");
    let base = Checkpoint::open(&base).expect("a base");
    let base = Published::new(&family.architecture, base).expect("a base");
    let digest = choir::superposition::digest(&base).expect("a digest");
    let known = (digest, &base as &dyn TensorSource);
    adapter::read(&family.architecture, known, &config, &checkpoint)
}

fn weights(delta: CodedDelta) -> VariantWeights {
    let (mut kept, mut vectors) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in delta.tensors {
        match tensor.kept {
            Kept::Whole(values) if tensor.shape.len() == 1 => {
                vectors.insert(name, values.iter().map(|value| value.to_f32()).collect());
            }
            matrix => drop(kept.insert(name, matrix)),
        }
    }
    VariantWeights {
        seed: delta.seed,
        scale: 1.0,
        banks: Vec::new(),
        gains: BTreeMap::new(),
        kept,
        vectors,
    }
}

#[test]
fn adapters_give_the_logits_of_pefts_merged_models_in_one_batch() {
    let family = Family::load("sdar-tiny");
    let cases = fixtures::read(&folder().join("cases.safetensors"));
    let (shape, ids) = &cases["input_ids"];
    let names = names();
    let deltas: Vec<CodedDelta> = (names.iter())
        .map(|name| read(&family, name).expect(name))
        .collect();
    let exact: Vec<bool> = deltas.iter().map(|delta| !delta.has_whole()).collect();
    assert!(
        exact.contains(&true) && exact.contains(&false),
        "both kinds"
    );
    // As they come back from a store's file.
    let deltas = deltas.into_iter().map(|delta| {
        let file = delta.to_bytes();
        weights(CodedDelta::from_bytes(&file).expect("a file"))
    });
    let base = super::base(&family, Quantisation::F32);
    let network = HostNetwork::new(base, &[], deltas.collect()).expect("a network");
    let mut cache = KvCache::new(network.facts().cache, super::PAGE, 0);
    let (rows, length) = (shape[0], shape[1]);
    let segment = |mix: Mix, row: usize| Segment {
        mix,
        block: family.architecture.regime.block,
        phase: 0,
        sigma: 0.0,
        tokens: (ids[row * length..][..length].iter())
            .map(|id| *id as u32)
            .collect(),
        first_position: 0,
        clean: 0,
        rows: (0..length).collect(),
        draws: Vec::new(),
        pages: Vec::new(),
        pages_start: 0,
    };
    let mixes = (0..names.len() as u32).map(|number| Mix::single(VariantId(number)));
    let mixes: Vec<Mix> = [Mix::base()].into_iter().chain(mixes).collect();
    let segments = mixes
        .iter()
        .flat_map(|mix| (0..rows).map(|row| segment(mix.clone(), row)));
    let mut evaluate = |segments: Vec<Segment>| {
        let batch = Batch { segments };
        network.forward(&batch, &mut cache).expect("forward").data
    };
    let together = evaluate(segments.collect());
    let each = together.len() / mixes.len();
    let expected = |name: &str| -> Vec<f32> {
        let (_, logits) = &cases[&format!("logits.{name}")];
        logits.iter().map(|x| *x as f32).collect()
    };
    close(&together[..each], &expected("base"), TOLERANCE, "base");
    for (number, name) in names.iter().enumerate() {
        let ours = &together[(number + 1) * each..][..each];
        let tolerance = if exact[number] { EXACT } else { ROUNDED };
        close(ours, &expected(name), tolerance, name);
        let moved = ours.iter().zip(&together).any(|(a, b)| (a - b).abs() > 1.0);
        assert!(moved, "{name} is not the base");
        let alone = evaluate(vec![segment(mixes[number + 1].clone(), 0)]);
        assert_eq!(ours[..alone.len()], alone, "the batch changes {name}");
        let single = network
            .materialise(&mixes[number + 1])
            .expect("materialised");
        let batch = Batch {
            segments: vec![segment(Mix::base(), 0)],
        };
        let mut own = KvCache::new(network.facts().cache, super::PAGE, 0);
        let merged = single.forward(&batch, &mut own).expect("forward").data;
        close(&merged, &alone, EXACT, name);
    }
}

#[test]
fn adapters_with_magnitudes_are_refused_by_name() {
    let family = Family::load("sdar-tiny");
    let refused = read(&family, "dora").map(drop).expect_err("refused");
    assert!(refused.to_string().contains("use_dora"), "{refused}");
    assert!(DeltaError::from(refused).to_string().contains("use_dora"));
}
