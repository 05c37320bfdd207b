//! What stands beside a checkpoint, and what its numbers say of it: judged alike by path and by upload.

use super::decoders::{Decoder, golden, path, refused};
use super::*;
use choir::checkpoint::Checkpoint;
use choir::store::Keep;
use choir::superposition::{DeltaError, Mismatch};
use choir::train::folder::serialize;
use serde_json::json;

fn write(folder: &Path, name: &str, value: &serde_json::Value) {
    fs::write(folder.join(name), value.to_string()).expect("write");
}

/// The same folder by path and by upload with what stands in it: both are taken, or both refused alike.
#[test]
fn what_stands_beside_a_checkpoint_counts_for_an_upload_as_for_a_path() {
    let decoder = Decoder::new();
    let (catalog, engine) = decoder.open();
    let (file, _) = decoder.fine_tune(1);
    let folder = file.parent().expect("a folder");
    fs::copy(
        decoder.0.base().join("tokenizer.json"),
        folder.join("tokenizer.json"),
    )
    .expect("copy");
    let config = fs::read(decoder.0.base().join("config.json")).expect("config");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("json");
    let sent = || {
        let (files, pieces) = Beside::read(&file).expect("beside").to_send();
        let files = files
            .into_iter()
            .map(|(name, bytes)| (name.to_owned(), bytes));
        Beside::sent(files, pieces).expect("sent")
    };
    let upload = |name: &str| AddRequest {
        beside: sent(),
        ..addition(
            name,
            CheckpointSource::Bytes(fs::read(&file).expect("file")),
        )
    };
    let other = |field: &str, value: serde_json::Value| {
        let mut config = config.clone();
        config[field] = value;
        config
    };
    for config in [
        other("rope_theta", json!(5e5)),
        other("model_type", json!("a2d-qwen3")),
        other("num_experts", json!(8)),
        json!({}),
    ] {
        write(folder, "config.json", &config);
        let (by_path, uploaded) = (
            refused(&catalog, addition("new", path(&file))).to_string(),
            refused(&catalog, upload("new")).to_string(),
        );
        let reason = |told: &str| told.split_once(": ").expect("an origin").1.to_owned();
        assert_eq!(reason(&by_path), reason(&uploaded));
    }
    write(folder, "config.json", &other("block_size", json!(8)));
    let tokenizer = fs::read_to_string(folder.join("tokenizer.json")).expect("tokenizer");
    fs::write(
        folder.join("tokenizer.json"),
        tokenizer.replace("\"t7\"", "\"seven\""),
    )
    .expect("write");
    for request in [addition("new", path(&file)), upload("new")] {
        let error = refused(&catalog, request);
        assert!(matches!(error, Error::OtherTokenizer { .. }), "{error}");
    }
    // Layout does not matter.
    let value: serde_json::Value = serde_json::from_str(&tokenizer).expect("json");
    let pretty = serde_json::to_string_pretty(&value).expect("json");
    fs::write(folder.join("tokenizer.json"), pretty).expect("write");
    let one = catalog
        .add(addition("one", path(&file)), |_| {})
        .expect("by path")
        .variant;
    let two = catalog
        .add(upload("two"), |_| {})
        .expect("uploaded")
        .variant;
    assert_eq!(one.regime.block, Some(8));
    assert_eq!(
        (two.regime, &two.defaults, &two.delta_digest),
        (one.regime, &one.defaults, &one.delta_digest)
    );
    assert_eq!(answer(&engine, "one"), answer(&engine, "two"));
    let bad = Beside::sent([("../config.json".to_owned(), Vec::new())], None);
    assert!(bad.is_err_and(|reason| reason.contains("config.json")));
    // An adapter's file with its configuration.
    let adapter = golden("peft-sdar-tiny/plain");
    let config = fs::read(adapter.join("adapter_config.json")).expect("config");
    let uploaded = AddRequest {
        beside: Beside::sent([("adapter_config.json".to_owned(), config)], None).expect("sent"),
        ..addition(
            "adapter",
            CheckpointSource::Bytes(
                fs::read(adapter.join("adapter_model.safetensors")).expect("file"),
            ),
        )
    };
    let adapter = catalog.add(uploaded, |_| {}).expect("an adapter").variant;
    assert_eq!(adapter.keep, Keep::LowRank);
}

#[test]
fn a_variant_has_ends_templates_and_defaults_of_its_own() {
    let decoder = Decoder::new();
    let (catalog, engine) = decoder.open();
    let (file, _) = decoder.fine_tune(1);
    let folder = file.parent().expect("a folder");
    catalog
        .add(addition("plain", path(&file)), |_| {})
        .expect("plain");
    write(
        folder,
        "generation_config.json",
        &json!({"eos_token_id": [7, 9], "temperature": 0.25, "top_k": 3, "do_sample": true}),
    );
    fs::write(
        folder.join("chat_template.jinja"),
        "{{ messages[0].content }} t5",
    )
    .expect("template");
    let own = catalog
        .add(addition("own", path(&file)), |_| {})
        .expect("own")
        .variant;
    assert_eq!(
        (own.defaults.temperature, own.defaults.top_k),
        (0.25, Some(3))
    );
    let check = |engine: &EngineHandle| {
        let resolve = |names: &[&str]| {
            let mix = names.iter().map(|name| ((*name).to_owned(), 1.0)).collect();
            engine.resolve(mix).expect("a mix").tokenizer().clone()
        };
        let (base, plain, own) = (resolve(&[]), resolve(&["plain"]), resolve(&["own"]));
        assert_eq!(own.ends(), [7, 9]);
        assert_eq!(plain.ends(), base.ends());
        assert_ne!(base.ends(), own.ends());
        assert!(own.has_chat() && !plain.has_chat());
        assert_eq!(own.encode("t1").ok(), plain.encode("t1").ok());
    };
    check(&engine);
    drop((catalog, engine));
    let (_catalog, engine) = decoder.open();
    check(&engine);
    fs::write(folder.join("chat_template.jinja"), [0xFF]).expect("template");
    let error = refused(&_catalog, addition("new", path(&file)));
    assert!(error.to_string().contains("chat_template.jinja"), "{error}");
}

#[test]
fn another_revision_is_added_by_force_only_and_one_delta_twice_is_said() {
    let decoder = Decoder::new();
    let (catalog, _engine) = decoder.open();
    let mut tensors = decoder.tuned(1);
    let near = serialize(&tensors, None).expect("a file");
    for (_, shape, data, _) in tensors.iter_mut().filter(|(_, shape, ..)| shape.len() == 2) {
        let columns = shape[1];
        for (at, value) in data.iter_mut().enumerate() {
            *value *= if at % columns < columns / 2 { 1.9 } else { 1.0 };
        }
    }
    let far = serialize(&tensors, None).expect("a file");
    let request =
        |name: &str, bytes: &[u8]| addition(name, CheckpointSource::Bytes(bytes.to_vec()));
    let error = refused(&catalog, request("far", &far));
    assert!(
        matches!(&error, Error::Checkpoint { source: DeltaError::Mismatch(Mismatch::Revision { moved }), .. } if *moved > 0.5),
        "{error}"
    );
    let forced = AddRequest {
        force: true,
        ..request("far", &far)
    };
    let far = catalog.add(forced, |_| {}).expect("by force").variant;
    assert!(far.moved.is_some_and(|moved| moved > 0.5), "{far:?}");
    let one = catalog
        .add(request("one", &near), |_| {})
        .expect("one")
        .variant;
    assert!(
        one.moved.is_some_and(|moved| (0.15..0.25).contains(&moved)),
        "{one:?}"
    );
    assert_eq!(one.same_as, [""; 0]);
    let two = catalog
        .add(request("two", &near), |_| {})
        .expect("two")
        .variant;
    assert_eq!(
        (two.same_as, two.moved),
        (vec!["one".to_owned()], one.moved)
    );
    assert_eq!(catalog.get("one").expect("one").same_as, ["two"]);
    let base = fs::read(decoder.0.base().join("model.safetensors")).expect("base");
    let error = refused(&catalog, request("base-again", &base));
    assert!(
        matches!(
            &error,
            Error::Checkpoint {
                source: DeltaError::Mismatch(Mismatch::Same),
                ..
            }
        ),
        "{error}"
    );
}

/// A scale that nothing finite comes of fails the requests of its variant, and nobody else's.
#[test]
fn logits_that_are_no_numbers_are_an_error_and_no_text() {
    let decoder = Decoder::new();
    let (catalog, engine) = decoder.open();
    let broken = AddRequest {
        scale: Some(1e38),
        ..addition("broken", path(golden("peft-sdar-tiny/plain")))
    };
    catalog.add(broken, |_| {}).expect("added");
    let broken = engine.submit(request(Some("broken"), 24)).expect("submit");
    let base = engine.submit(request(None, 24)).expect("submit");
    assert!(!outcome(base).1.is_empty());
    let mut broken = broken;
    let failed = loop {
        match broken.blocking_recv().expect("an end") {
            Event::Failed(error) => break error,
            Event::Started { .. } => {}
            _ => panic!("text"),
        }
    };
    assert!(
        matches!(failed, choir::engine::Error::NotFinite { .. }),
        "{failed}"
    );
    let status = engine.status();
    assert_eq!((status.finished, status.failed), (1, 1));
}

#[test]
fn a_base_is_refused_for_what_its_files_ask_or_hold() {
    let decoder = Decoder::new();
    let base = decoder.0.base();
    let open = || {
        Catalog::open(decoder.0.config(), |_| {})
            .map(drop)
            .expect_err("refused")
            .to_string()
    };
    let config = fs::read(base.join("config.json")).expect("config");
    let weights = fs::read(base.join("model.safetensors")).expect("weights");
    let with = |field: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_slice(&config).expect("json");
        config[field] = value;
        fs::write(base.join("config.json"), config.to_string()).expect("write");
        open()
    };
    let layers = serde_json::from_slice::<serde_json::Value>(&config).expect("json");
    let fewer = layers["num_hidden_layers"].as_u64().expect("layers") - 1;
    let told = with("num_hidden_layers", json!(fewer));
    assert!(told.contains(&format!("model.layers.{fewer}.")), "{told}");
    assert!(with("model_type", json!("llada")).contains("llada"));
    assert!(with("layer_types", json!(["sliding_attention"])).contains("layer_types"));
    assert!(with("tie_word_embeddings", json!(true)).contains("lm_head.weight"));
    fs::write(base.join("config.json"), &config).expect("write");
    let mut tensors: Vec<_> = {
        let checkpoint = Checkpoint::open(&base).expect("base");
        let tensor = |(name, view): (&str, choir::checkpoint::TensorView)| {
            (
                name.to_owned(),
                view.shape.to_vec(),
                view.to_f32().expect("values"),
                Precision::F32,
            )
        };
        checkpoint.iter().map(tensor).collect()
    };
    let (name, _, values, _) = &mut tensors[3];
    let name = name.clone();
    values[1] = f32::NAN;
    fs::write(
        base.join("model.safetensors"),
        serialize(&tensors, None).expect("file"),
    )
    .expect("write");
    let told = open();
    assert!(told.contains("not a finite number"), "{name}: {told}");
    fs::write(base.join("model.safetensors"), weights).expect("write");
    drop(decoder.open());
}
