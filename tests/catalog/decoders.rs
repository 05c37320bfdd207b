//! A decoder as the base: its fine-tunes by folder, in shards, by file and uploaded, and its adapters, all in one store.

use super::*;
use choir::catalog::RemoveRequest;
use choir::checkpoint::{Checkpoint, INDEX};
use choir::rng::{Key, Stream};
use choir::store::Keep;
use choir::superposition::{DeltaError, Mismatch, Unreadable};
use choir::train::folder::serialize;
use choir::transform::hadamard_block;
use serde_json::json;

#[path = "../fixtures/mod.rs"]
mod fixtures;

/// The golden decoder in a folder with a tokenizer, and room beside it.
pub struct Decoder(pub TestDir);

pub fn golden(name: &str) -> PathBuf {
    fixtures::folder("families").join(name)
}

impl Decoder {
    pub fn new() -> Self {
        let place = TestDir(tempfile::tempdir().expect("directory"));
        fs::create_dir(place.base()).expect("folder");
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden("sdar-tiny").join(file), place.base().join(file)).expect("a copy");
        }
        let config = fs::read(place.base().join("config.json")).expect("config");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("json");
        let rows = config["vocab_size"].as_u64().expect("rows");
        let vocab: BTreeMap<String, u64> = (0..rows).map(|id| (format!("t{id}"), id)).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "t0", "vocab": vocab},
        });
        fs::write(place.base().join("tokenizer.json"), tokenizer.to_string()).expect("tokenizer");
        Decoder(place)
    }

    pub fn open(&self) -> (Catalog, EngineHandle) {
        let config = CatalogConfig {
            keep: Some(Keep::Coded),
            ..self.0.config()
        };
        serve(Catalog::open(config, |_| {}).expect("open"))
    }

    /// The weights of a fine-tune, by their published names.
    pub fn tuned(&self, seed: u64) -> Vec<(String, Vec<usize>, Vec<f32>, Precision)> {
        let base = Checkpoint::open(&self.0.base()).expect("base");
        let mut noise = Stream::new(Key::derive(&[b"decoder", &seed.to_le_bytes()]));
        let tensor = |(name, view): (&str, choir::checkpoint::TensorView)| {
            let mut data = view.to_f32().expect("values");
            let square = data.iter().map(|value| value * value).sum::<f32>();
            let size = 0.2 * (square / data.len() as f32).sqrt();
            for value in &mut data {
                *value += size * noise.normal() as f32;
            }
            (name.to_owned(), view.shape.to_vec(), data, Precision::Bf16)
        };
        base.iter().map(tensor).collect()
    }

    /// Bits that a fine-tune in codes may take for each weight of a matrix: what is too small for a code is kept whole.
    fn most_bits(&self) -> f32 {
        let base = Checkpoint::open(&self.0.base()).expect("base");
        let (mut weights, mut bits) = (0, 0);
        for (_, view) in base.iter() {
            let numbers: usize = view.shape.iter().product();
            let cols = *view.shape.last().expect("a tensor");
            let coded = hadamard_block(cols) >= 32 && numbers >= 4096;
            let matrix = view.shape.len() == 2;
            weights += if matrix { numbers } else { 0 };
            bits += numbers * if matrix && coded { 2 } else { 17 };
        }
        bits as f32 / weights as f32
    }

    /// A fine-tune in one file, and the same in a folder of shards.
    pub fn fine_tune(&self, seed: u64) -> (PathBuf, PathBuf) {
        let tensors = self.tuned(seed);
        let whole = serialize(&tensors, None).expect("a file");
        let file = self.0.file(&format!("whole-{seed}"), &whole);
        let folder = self.0.0.path().join(format!("shards-{seed}"));
        fs::create_dir(&folder).expect("folder");
        let mut map = BTreeMap::new();
        for (number, tensors) in tensors.chunks(tensors.len().div_ceil(3)).enumerate() {
            let name = format!("model-{:05}-of-00003.safetensors", number + 1);
            map.extend(
                tensors
                    .iter()
                    .map(|(tensor, ..)| (tensor.clone(), name.clone())),
            );
            let shard = serialize(tensors, None).expect("a shard");
            fs::write(folder.join(name), shard).expect("a shard");
        }
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        fs::write(folder.join(INDEX), index).expect("index");
        (file, folder)
    }
}

pub fn path(path: impl Into<PathBuf>) -> CheckpointSource {
    CheckpointSource::Path(path.into())
}

fn mixed(engine: &EngineHandle, names: &[&str]) -> Vec<u32> {
    let mix: Vec<_> = names.iter().map(|name| ((*name).to_owned(), 0.6)).collect();
    let request = Request {
        mix: mix.into(),
        ..request(None, 24)
    };
    outcome(engine.submit(request).expect("submit")).1
}

pub fn refused(catalog: &Catalog, request: AddRequest) -> Error {
    let before = catalog.list();
    let error = catalog.add(request, |_| {}).expect_err("refused");
    assert_eq!(catalog.list(), before);
    error
}

#[test]
fn fine_tunes_of_a_decoder_are_coded_and_served_in_mixes() {
    let decoder = Decoder::new();
    let (catalog, engine) = decoder.open();
    let add = |name: &str, source: CheckpointSource| {
        let added = catalog.add(addition(name, source), |_| {});
        added.expect(name).variant
    };
    let ((file, shards), (second, _)) = (decoder.fine_tune(1), decoder.fine_tune(2));
    let one = add("one", path(&shards));
    assert_eq!((one.keep, one.archived), (Keep::Coded, false));
    let most = decoder.most_bits();
    assert!(one.bits.is_some_and(|bits| bits < most), "{one:?}, {most}");
    let uploaded = fs::read(&second).expect("file");
    add("two", CheckpointSource::Bytes(uploaded));
    let superposed = AddRequest {
        keep: Some(Keep::Superposed),
        ..addition("three", path(decoder.fine_tune(3).1))
    };
    catalog.add(superposed, |_| {}).expect("three");
    let plain = add("plain", path(golden("peft-sdar-tiny/plain")));
    assert_eq!(plain.keep, Keep::LowRank);
    let answers: Vec<_> = ["one", "two", "three", "plain"]
        .map(|name| answer(&engine, name))
        .into();
    let base = outcome(engine.submit(request(None, 24)).expect("submit")).1;
    for (index, answer) in answers.iter().enumerate() {
        assert!(
            *answer != base && !answers[..index].contains(answer),
            "{index}"
        );
    }
    let all = ["one", "two", "three", "plain"];
    let mix = mixed(&engine, &all);
    assert!(mix != base && !answers.contains(&mix));
    assert_eq!(mixed(&engine, &all), mix);
    // What a folder of shards holds is what its one file holds, and who comes and goes changes nobody.
    let same = add("same", path(&file));
    assert_eq!(same.delta_digest, one.delta_digest);
    assert_eq!(answer(&engine, "same"), answers[0]);
    for name in ["two", "three", "plain"] {
        catalog.remove(name, RemoveRequest::default()).expect(name);
    }
    assert_eq!(answer(&engine, "one"), answers[0]);
    drop((catalog, engine));
    let (_catalog, engine) = decoder.open();
    assert_eq!(answer(&engine, "one"), answers[0]);
}

#[test]
fn adapters_are_added_as_they_are_from_a_folder_or_its_file() {
    let decoder = Decoder::new();
    let (catalog, engine) = decoder.open();
    let folder = golden("peft-sdar-tiny/ranks");
    let add = |name: &str, source: CheckpointSource| {
        let added = catalog.add(addition(name, source), |_| {});
        added.expect(name).variant
    };
    let one = add("one", path(&folder));
    let two = add("two", path(folder.join("adapter_model.safetensors")));
    assert_eq!((one.keep, one.relative_error), (Keep::LowRank, Some(0.0)));
    assert_eq!(one.delta_digest, two.delta_digest);
    assert_eq!(answer(&engine, "one"), answer(&engine, "two"));
    let saved = add("saved", path(golden("peft-sdar-tiny/saved")));
    let config = fs::read(decoder.0.base().join("config.json")).expect("config");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("json");
    let head = config["vocab_size"]
        .as_u64()
        .zip(config["hidden_size"].as_u64());
    let head = head.map(|(rows, hidden)| 2 * rows * hidden);
    assert!(Some(saved.bytes) > head, "what is saved whole is counted");
    for (request, field) in [
        (
            AddRequest {
                keep: Some(Keep::Coded),
                ..addition("new", path(&folder))
            },
            "keep",
        ),
        (
            AddRequest {
                bits: Some(1.0),
                ..addition("new", path(&folder))
            },
            "bits",
        ),
        (
            AddRequest {
                check_text: Some("text".into()),
                ..addition("new", path(&folder))
            },
            "check_text",
        ),
    ] {
        let error = refused(&catalog, request);
        assert!(
            matches!(&error, Error::BadField { field: named, .. } if *named == field),
            "{error}"
        );
    }
    let error = refused(
        &catalog,
        addition("new", path(golden("peft-sdar-tiny/dora"))),
    );
    assert!(error.to_string().contains("use_dora"), "{error}");
    // A file alone does not say what its factors are multiplied by.
    let bytes = fs::read(folder.join("adapter_model.safetensors")).expect("file");
    let error = refused(&catalog, addition("new", CheckpointSource::Bytes(bytes)));
    assert!(error.to_string().contains("adapter_config.json"), "{error}");
}

#[test]
fn checkpoints_of_a_decoder_that_are_none_are_refused_by_tensor() {
    let decoder = Decoder::new();
    let (catalog, _engine) = decoder.open();
    type All = Vec<(String, Vec<usize>, Vec<f32>, Precision)>;
    let mismatch = |change: &dyn Fn(&mut All)| {
        let mut tensors = decoder.tuned(1);
        change(&mut tensors);
        let bytes = serialize(&tensors, None).expect("a file");
        match refused(&catalog, addition("new", CheckpointSource::Bytes(bytes))) {
            Error::Checkpoint {
                source: DeltaError::Mismatch(mismatch),
                ..
            } => mismatch,
            other => panic!("{other}"),
        }
    };
    let gate = "model.layers.1.mlp.gate_proj.weight";
    let found = mismatch(&|tensors| tensors.retain(|(name, ..)| name != gate));
    assert!(
        matches!(&found, Mismatch::Missing { tensor } if tensor == gate),
        "{found}"
    );
    let found = mismatch(&|tensors| {
        tensors.push(("model.extra".into(), vec![1], vec![1.0], Precision::F32))
    });
    assert!(
        matches!(&found, Mismatch::Extra { tensor } if tensor == "model.extra"),
        "{found}"
    );
    let found = mismatch(&|tensors| {
        tensors
            .iter_mut()
            .for_each(|(name, ..)| *name = format!("student.{name}"))
    });
    assert!(
        matches!(&found, Mismatch::Wrapped { prefix } if prefix == "student."),
        "{found}"
    );
    let (_, shards) = decoder.fine_tune(4);
    let shard = shards.join("model-00002-of-00003.safetensors");
    let unreadable = |source| match refused(&catalog, addition("new", source)) {
        Error::Checkpoint {
            source: DeltaError::Unreadable(unreadable),
            ..
        } => unreadable,
        other => panic!("{other}"),
    };
    let found = unreadable(path(&shard));
    assert!(
        matches!(found, Unreadable::OneShard { index: true }),
        "{found}"
    );
    fs::remove_file(&shard).expect("remove");
    let found = unreadable(path(&shards));
    assert!(matches!(found, Unreadable::MissingShard { .. }), "{found}");
}
