use super::*;
use crate::model::facts::{Grid, Process};
use proptest::prelude::*;
use serde_json::{Value, json};

/// SDAR-4B's, but for what no family reads.
fn sdar() -> Value {
    json!({"model_type": "sdar", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": null, "max_position_embeddings": 32768,
        "tie_word_embeddings": false, "attention_bias": false, "hidden_act": "silu", "use_sliding_window": false,
        "bos_token_id": 151643, "eos_token_id": [151645, 151643], "block_size": 4, "mask_token_id": 151669})
}

fn dit() -> Value {
    serde_json::from_slice(include_bytes!("../../../models/base/config.json")).expect("json")
}

fn read(config: &Value) -> Result<Architecture, ConfigError> {
    Architecture::read(config.to_string().as_bytes())
}

fn with(mut config: Value, field: &str, value: Value) -> Value {
    config[field] = value;
    config
}

fn without(mut config: Value, field: &str) -> Value {
    config.as_object_mut().expect("fields").remove(field);
    config
}

#[test]
fn published_configurations_give_the_published_sizes() {
    let network = read(&sdar()).expect("a network");
    let facts = network.facts();
    assert_eq!(facts.parameters, 4_411_424_256);
    assert_eq!((facts.mask, facts.context), (Some(151_669), 32768));
    assert_eq!(2 * 2 * facts.cache.layers * facts.cache.width(), 147_456);
    assert_eq!(network.vocabulary.ends, [151_645, 151_643]);
    assert_eq!(network.regime.block, Some(4));

    let tied = with(
        with(sdar(), "tie_word_embeddings", true.into()),
        "model_type",
        "a2d-qwen3".into(),
    );
    let tied = read(&without(without(tied, "block_size"), "mask_token_id")).expect("a network");
    assert_eq!(tied.facts().parameters, 4_411_424_256 - 151_936 * 2560);
    assert!(tied.tensor(MatrixRole::Head, None).is_none());
    let regime = tied.regime;
    assert_eq!(
        (regime.process, regime.block, regime.grid),
        (Process::Absorbing, None, Grid::PromptEnd)
    );

    let biased = with(
        without(sdar(), "attention_bias"),
        "model_type",
        "a2d-qwen2".into(),
    );
    let biased = read(&biased).expect("a network");
    let bias = biased
        .tensor(MatrixRole::QkvBias, Some(35))
        .expect("a bias");
    assert_eq!(bias.shape, [6144]);
    assert!(biased.tensor(MatrixRole::QueryNorm, Some(0)).is_none());
}

#[test]
fn large_networks_take_four_bits() {
    let network = read(&sdar()).expect("a network");
    let parameters = network.facts().parameters;
    assert_eq!(network.bytes(Quantisation::F32), 4 * parameters);
    let four = network.bytes(Quantisation::Q4K);
    assert!(
        (parameters * 9 / 16..parameters * 9 / 16 + (4 << 20)).contains(&four),
        "{four}"
    );
    assert_eq!(network.loading_bytes(), 8 * 151_936 * 2560);
    let small =
        Architecture::read(include_bytes!("../../../models/base/config.json")).expect("a network");
    for (network, memory, form) in [
        (&network, Some(24 << 30), Quantisation::Q4K),
        (&network, Some(1 << 40), Quantisation::F32),
        (&small, Some(24 << 30), Quantisation::F32),
        (&small, None, Quantisation::F32),
    ] {
        assert_eq!(network.usual_form(memory), form);
    }
}

#[test]
fn what_older_files_lack_is_the_familys() {
    let older = without(without(sdar(), "mask_token_id"), "block_size");
    assert_eq!(read(&older), read(&sdar()));
    // Newer ones keep the base elsewhere.
    let newer = with(
        without(sdar(), "rope_theta"),
        "rope_parameters",
        json!({"rope_theta": 1000000.0, "rope_type": "default"}),
    );
    assert_eq!(read(&newer), read(&sdar()));
    let whole = without(with(sdar(), "num_attention_heads", 20.into()), "head_dim");
    let whole = with(whole, "num_key_value_heads", 20.into());
    assert_eq!(read(&whole).expect("a network").attention().head_dim, 128);
}

#[test]
fn refusals_name_the_field() {
    let bad = [
        (
            with(sdar(), "model_type", "llama".into()),
            "bd3lm, mdlm, duo, sdar, a2d-qwen3, a2d-qwen2",
        ),
        (without(sdar(), "model_type"), "model_type"),
        (without(sdar(), "hidden_size"), "hidden_size"),
        (without(sdar(), "rope_theta"), "rope_theta"),
        (with(sdar(), "rope_theta", 0.into()), "rope_theta"),
        (
            with(sdar(), "rope_scaling", json!({"rope_type": "yarn"})),
            "rope_scaling",
        ),
        (
            with(sdar(), "rope_parameters", json!({"rope_type": "yarn"})),
            "rope_parameters",
        ),
        (with(sdar(), "head_dim", 127.into()), "head_dim"),
        (
            with(without(sdar(), "head_dim"), "hidden_size", 2561.into()),
            "head_dim",
        ),
        (
            with(sdar(), "num_key_value_heads", 5.into()),
            "num_key_value_heads",
        ),
        (
            with(sdar(), "num_key_value_heads", 0.into()),
            "num_key_value_heads",
        ),
        (
            with(sdar(), "attention_bias", true.into()),
            "attention_bias",
        ),
        (with(sdar(), "hidden_act", "gelu".into()), "hidden_act"),
        (
            with(sdar(), "use_sliding_window", true.into()),
            "use_sliding_window",
        ),
        (with(sdar(), "vocab_size", 151669.into()), "mask_token_id"),
        (
            with(sdar(), "eos_token_id", json!([7, 151936])),
            "eos_token_id",
        ),
        (with(sdar(), "block_size", 0.into()), "block_size"),
        (with(sdar(), "block_size", 32769.into()), "block_size"),
        (
            with(sdar(), "num_hidden_layers", json!(1u64 << 40)),
            "num_hidden_layers",
        ),
        (
            with(sdar(), "num_hidden_layers", json!(1025)),
            "num_hidden_layers",
        ),
        (with(sdar(), "rms_norm_eps", json!(-1.0)), "rms_norm_eps"),
        (with(sdar(), "model_type", "llada".into()), "llada"),
        (
            with(
                sdar(),
                "layer_types",
                json!(["full_attention", "sliding_attention"]),
            ),
            "layer_types",
        ),
        (with(sdar(), "num_experts", 128.into()), "num_experts"),
        (
            with(sdar(), "quantization_config", json!({"bits": 4})),
            "quantization_config",
        ),
        (
            with(sdar(), "partial_rotary_factor", json!(0.5)),
            "partial_rotary_factor",
        ),
        (with(sdar(), "causal", true.into()), "causal"),
        (with(dit(), "adaln", false.into()), "adaln"),
        (with(dit(), "causal", true.into()), "causal"),
    ];
    for (config, field) in bad {
        let error = read(&config).expect_err(field).to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

#[test]
fn checkpoints_of_other_networks_differ_by_a_field() {
    let ours = read(&sdar()).expect("a network");
    let other = |field, value| ours.differs(&read(&with(sdar(), field, value)).expect(field));
    for (field, value) in [
        ("vocab_size", json!(152064)),
        ("hidden_size", json!(2048)),
        ("num_hidden_layers", json!(28)),
        ("num_attention_heads", json!(16)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(64)),
        ("rope_theta", json!(5e5)),
        ("rms_norm_eps", json!(1e-5)),
        ("tie_word_embeddings", json!(true)),
        ("model_type", json!("a2d-qwen3")),
    ] {
        assert_eq!(other(field, value), Some(field));
    }
    // Blocks belong to the variant.
    assert_eq!(other("block_size", json!(32)), None);
    assert_eq!(
        other("intermediate_size", json!(9984)),
        Some("intermediate_size")
    );
}

proptest! {
    #[test]
    fn what_is_no_configuration_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), field in 0usize..19, value: i64) {
        prop_assert!(Architecture::read(&bytes).is_err());
        // Any number anywhere is taken or refused, and nothing panics.
        let mut config = sdar();
        let fields = config.as_object_mut().expect("fields");
        let name = fields.keys().nth(field).expect("a field").clone();
        fields.insert(name, value.into());
        let _ = read(&config).map(|network| network.facts());
    }
}

#[test]
fn every_tensor_is_made_of_parts_of_its_rows() {
    for network in [
        read(&sdar()).expect("a network"),
        Architecture::read(include_bytes!("../../../models/base/config.json")).expect("a network"),
    ] {
        let mut names = std::collections::BTreeSet::new();
        for spec in &network.tensors {
            let rows: usize = spec.parts.iter().map(|(_, rows)| rows).sum();
            assert_eq!(rows, spec.shape[0], "{}", spec.name);
            assert!(names.insert(&spec.name), "{} twice", spec.name);
            assert!(network.tensor(spec.role, spec.layer).is_some());
        }
    }
}
