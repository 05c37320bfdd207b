//! Everything that can be wrong with an adapter, each by its name.

use super::*;
use crate::superposition::{NamedTensor, NamedTensors};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

const QUERIES: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// One layer; `tied`: its head is the embedding.
fn architecture(tied: bool) -> Architecture {
    let config = json!({"model_type": "sdar", "vocab_size": 12, "hidden_size": 8, "intermediate_size": 10,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000, "max_position_embeddings": 32, "mask_token_id": 11,
        "tie_word_embeddings": tied});
    Architecture::read(config.to_string().as_bytes()).unwrap()
}

fn base(architecture: &Architecture) -> NamedTensors {
    let tensor = |spec: &TensorSpec| {
        let count: usize = spec.shape.iter().product();
        let data = (0..count).map(|at| 0.25 + at as f32 * 0.01).collect();
        let shape = spec.shape.clone();
        (spec.name.clone(), NamedTensor { shape, data })
    };
    NamedTensors(architecture.tensors.iter().map(tensor).collect())
}

fn config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_dora": false, "rank_pattern": {}, "alpha_pattern": {},
        "layer_replication": null, "init_lora_weights": true})
}

fn ones(shape: &[usize]) -> (Vec<usize>, Vec<f32>) {
    let count: usize = shape.iter().product();
    (
        shape.to_vec(),
        (0..count).map(|at| 1.0 + at as f32).collect(),
    )
}

/// Factors of the queries' projection [12, 8].
fn queries() -> Tensors {
    BTreeMap::from([
        (format!("{QUERIES}.lora_A.weight"), ones(&[2, 8])),
        (format!("{QUERIES}.lora_B.weight"), ones(&[12, 2])),
    ])
}

fn file(tensors: &Tensors) -> Vec<u8> {
    let bytes = tensors.values().map(|(_, data)| {
        let bytes = data.iter().flat_map(|value| value.to_le_bytes());
        bytes.collect::<Vec<u8>>()
    });
    let bytes: Vec<_> = bytes.collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, (shape, _)), bytes)| {
            (
                name.clone(),
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
    serialize(views.collect::<BTreeMap<_, _>>(), None).unwrap()
}

fn read_tied(tied: bool, config: &Value, tensors: &Tensors) -> Result<CodedDelta, AdapterError> {
    let architecture = architecture(tied);
    let base = base(&architecture);
    let checkpoint = Checkpoint::from_bytes(file(tensors)).unwrap();
    assert!(is_one(&checkpoint));
    let known = (base.digest(), &base as &dyn TensorSource);
    read(
        &architecture,
        known,
        config.to_string().as_bytes(),
        &checkpoint,
    )
}

fn refused(config: &Value, tensors: &Tensors) -> String {
    read_tied(false, config, tensors).unwrap_err().to_string()
}

fn with(tensors: &Tensors, name: &str, tensor: (Vec<usize>, Vec<f32>)) -> Tensors {
    let mut tensors = tensors.clone();
    tensors.insert(name.to_owned(), tensor);
    tensors
}

#[test]
fn factors_of_one_module_stay_in_its_rows() {
    let read = read_tied(false, &config(), &queries()).unwrap();
    let dense = read.dense("layers.0.qkv.weight").unwrap();
    let (a, b) = (ones(&[2, 8]).1, ones(&[12, 2]).1);
    for (at, value) in dense.iter().enumerate() {
        let (row, col) = (at / 8, at % 8);
        let product = |r: usize| 4.0 * b[row * 2 + r] * a[r * 8 + col];
        let expected = if row < 12 {
            product(0) + product(1)
        } else {
            0.0
        };
        assert_eq!(*value, expected, "row {row}, column {col}");
    }
    assert_eq!(read.tensors.len(), 1);
    let again = CodedDelta::from_bytes(&read.to_bytes()).unwrap();
    assert_eq!(again, read);
}

/// More ranks side by side than the matrix has sides.
#[test]
fn ranks_of_fused_modules_add_up() {
    let mut tensors = Tensors::new();
    for (module, rows) in [("q_proj", 12), ("k_proj", 6), ("v_proj", 6)] {
        let module = format!("base_model.model.model.layers.0.self_attn.{module}");
        tensors.insert(format!("{module}.lora_A.weight"), ones(&[5, 8]));
        tensors.insert(format!("{module}.lora_B.weight"), ones(&[rows, 5]));
    }
    let mut five = config();
    five["r"] = 5.into();
    let read = read_tied(false, &five, &tensors).unwrap();
    let kept = &read.tensors["layers.0.qkv.weight"].kept;
    assert!(
        matches!(kept, Kept::LowRank(part) if part.rank() == 15),
        "{kept:?}"
    );
    assert_eq!(CodedDelta::from_bytes(&read.to_bytes()).unwrap(), read);
}

#[test]
fn scales_follow_the_configuration() {
    let of = |change: &dyn Fn(&mut Value)| {
        let mut config = config();
        change(&mut config);
        read_tied(false, &config, &queries())
            .unwrap()
            .dense("layers.0.qkv.weight")
            .unwrap()[0]
    };
    let plain = of(&|_| {});
    assert_eq!(of(&|config| config["lora_alpha"] = 4.into()), plain / 2.0);
    let root = of(&|config| config["use_rslora"] = true.into());
    assert!((root / plain - 2f32.sqrt()).abs() < 1e-6);
    let first = r#"{"q_proj": 2, "layers.0.self_attn.q_proj": 16}"#;
    let first: Value = serde_json::from_str(first).unwrap();
    let other = of(&|config| config["alpha_pattern"] = json!({"k_proj": 3, "elf_attn.q_proj": 5}));
    assert_eq!(other, plain);
    assert!(of(&|config| config["alpha_pattern"] = first.clone()) != plain);
}

#[test]
fn what_an_adapter_cannot_be_is_told_by_name() {
    let half = |end: &str| {
        let mut tensors = queries();
        tensors
            .remove(&format!("{QUERIES}.lora_{end}.weight"))
            .unwrap();
        tensors
    };
    assert!(refused(&config(), &half("A")).contains("q_proj has the factor B"));
    assert!(refused(&config(), &half("B")).contains("q_proj has the factor A"));
    let unknown = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
    let told = refused(&config(), &with(&queries(), unknown, ones(&[2, 8])));
    assert!(
        told.contains(unknown) && told.contains("no module"),
        "{told}"
    );
    let rank = format!("{QUERIES}.lora_A.weight");
    let told = refused(&config(), &with(&queries(), &rank, ones(&[3, 8])));
    assert!(told.contains(&rank) && told.contains("[3, 8]"), "{told}");
    for value in [f32::NAN, f32::INFINITY] {
        let mut tensors = queries();
        tensors.get_mut(&rank).unwrap().1[5] = value;
        let told = refused(&config(), &tensors);
        assert!(told.contains(&rank) && told.contains("element 5"), "{told}");
    }
    let magnitude = format!("{QUERIES}.lora_magnitude_vector");
    let told = refused(&config(), &with(&queries(), &magnitude, ones(&[12])));
    assert!(told.contains("use_dora"), "{told}");
    let mut nothing = queries();
    nothing
        .get_mut(&format!("{QUERIES}.lora_B.weight"))
        .unwrap()
        .1
        .fill(0.0);
    assert!(refused(&config(), &nothing).contains("nothing to keep"));
}

#[test]
fn configurations_that_ask_for_more_are_refused_by_field() {
    for (field, value) in [
        ("peft_type", json!("LOHA")),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("trainable_token_indices", json!([3])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("rank_pattern", json!({"^model.*q_proj": 2})),
        ("r", json!(0)),
        ("lora_alpha", json!("much")),
    ] {
        let mut config = config();
        config[field] = value;
        let told = refused(&config, &queries());
        assert!(told.contains("adapter_config.json"), "{field}: {told}");
        assert!(
            told.contains(field) || field == "lora_alpha",
            "{field}: {told}"
        );
    }
    assert!(refused(&json!({}), &queries()).contains("adapter_config.json"));
}

#[test]
fn modules_saved_whole_are_differences() {
    let name = "base_model.model.model.layers.0.self_attn.k_proj.weight";
    let saved = with(&queries(), name, ones(&[6, 8]));
    let read = read_tied(false, &config(), &saved).unwrap();
    let kept = &read.tensors["layers.0.qkv.weight"].kept;
    let Kept::Whole(values) = kept else {
        panic!("{kept:?}")
    };
    let base = base(&architecture(false));
    let base = &base.0["layers.0.qkv.weight"].data;
    let own = values[12 * 8].to_f32();
    assert!((own - (1.0 - base[12 * 8])).abs() < 0.01, "{own}");
    assert!(
        values[18 * 8..].iter().all(|value| value.to_f32() == 0.0),
        "values are the base's"
    );
    // What is saved and is the base's takes nothing.
    let same = (vec![8], base_norm());
    let norm = "base_model.model.model.norm.weight";
    let read = read_tied(false, &config(), &with(&queries(), norm, same)).unwrap();
    assert!(!read.has_whole());
    let told = refused(&config(), &with(&queries(), norm, ones(&[7])));
    assert!(told.contains(norm), "{told}");
}

fn base_norm() -> Vec<f32> {
    base(&architecture(false)).0["norm.weight"].data.clone()
}

#[test]
fn a_tied_head_is_the_embedding() {
    let head = Tensors::from([
        (
            "base_model.model.lm_head.lora_A.weight".to_owned(),
            ones(&[2, 8]),
        ),
        (
            "base_model.model.lm_head.lora_B.weight".to_owned(),
            ones(&[12, 2]),
        ),
    ]);
    let tied = read_tied(true, &config(), &head).unwrap();
    assert!(tied.tensors.contains_key("embedding.weight"));
    let own = read_tied(false, &config(), &head).unwrap();
    assert_eq!(own.dense("head.weight"), tied.dense("embedding.weight"));
    let embedding = Tensors::from([
        (
            "base_model.model.model.embed_tokens.lora_embedding_A".to_owned(),
            ones(&[2, 12]),
        ),
        (
            "base_model.model.model.embed_tokens.lora_embedding_B".to_owned(),
            ones(&[8, 2]),
        ),
    ]);
    let dense = read_tied(false, &config(), &embedding)
        .unwrap()
        .dense("embedding.weight")
        .unwrap();
    let (a, b) = (ones(&[2, 12]).1, ones(&[8, 2]).1);
    for (at, value) in dense.iter().enumerate() {
        let (row, col) = (at / 8, at % 8);
        assert_eq!(
            *value,
            4.0 * (b[col * 2] * a[row] + b[col * 2 + 1] * a[12 + row])
        );
    }
}
