//! What reads bytes from outside, each as a function of any bytes: nothing may panic, and nothing may take more memory than its input
//! explains. `tests/fuzz` runs them on the stable toolchain, `fuzz_targets` under cargo-fuzz.

use choir::checkpoint::Checkpoint;
use choir::cli::Cli;
use choir::kserve as oip;
use choir::model::architecture::{Architecture, adapter as peft, shapes};
use choir::model::tokenizer::{Bound, ChatRole, GenerationConfig, Message, Tokenizer};
use choir::ops::quantized::Quantisation;
use choir::pb;
use choir::sampler::{Kappa, TimeProfile};
use choir::server::access::{ApiKeys, Caller};
use choir::server::openai::{chat, completion::Completion};
use choir::store::{BankId, read_manifest};
use choir::superposition::{
    Bank, CodedDelta, Delta, Digest, NamedTensor, NamedTensors, Private, Remarks,
};
use clap::Parser;
use std::sync::LazyLock;

/// A function of any bytes.
pub type Target = fn(&[u8]);

pub const TARGETS: [(&str, Target); 13] = [
    ("container", container),
    ("packed", packed),
    ("coded", coded),
    ("manifest", manifest),
    ("config", config),
    ("tokenizer", tokenizer),
    ("template", template),
    ("protobuf", protobuf),
    ("http", http),
    ("notation", notation),
    ("command_line", command_line),
    ("keys", keys),
    ("adapter", adapter),
];

/// A small base: a matrix that is large enough for a code, one that is not, and a vector.
pub static BASE: LazyLock<NamedTensors> = LazyLock::new(|| tensors(1.0));

/// The base's shapes with other numbers.
pub fn tensors(scale: f32) -> NamedTensors {
    let shapes = [
        ("a.weight", vec![64, 64]),
        ("b.weight", vec![8, 16]),
        ("a.bias", vec![8]),
    ];
    let tensor = |(name, shape): (&str, Vec<usize>)| {
        let count: usize = shape.iter().product();
        let data = (0..count).map(|at| {
            ((at * 37 % 101) as f32 - 50.0) * 0.01 + scale * ((at * 13 % 7) as f32) * 1e-3
        });
        let data = data.collect();
        (name.to_owned(), NamedTensor { shape, data })
    };
    NamedTensors(shapes.into_iter().map(tensor).collect())
}

/// Every file of tensors, ours and others'.
pub fn container(data: &[u8]) {
    if let Ok(checkpoint) = Checkpoint::from_bytes(data) {
        assert!(checkpoint.bytes() <= data.len() as u64);
        let _ = NamedTensors::read(&checkpoint);
        let _ = checkpoint.unwrapped(|name| name == "a.weight").shapes();
    }
    let _ = Private::from_bytes(data);
    let _ = Bank::from_bytes(data);
    if let Ok(delta) = Delta::from_archive(data) {
        let _ = (delta.digest(), delta.shapes());
    }
}

pub fn packed(data: &[u8]) {
    let _ = Remarks::read(data);
    if let Ok(delta) = Delta::read(&BASE, data) {
        let _ = (delta.digest(), delta.dense("a.weight"));
    }
}

/// A coded file, as it is and with the digest that it has.
pub fn coded(data: &[u8]) {
    const SEAL: &[u8] = br#""sha256":""#;
    let mut file = data.to_vec();
    let seal = data.windows(SEAL.len()).position(|found| found == SEAL);
    let seal = seal.map(|at| at + SEAL.len()..at + SEAL.len() + 64);
    if let Some(seal) = seal.filter(|seal| seal.end <= file.len()) {
        file[seal.clone()].fill(b'0');
        let digest = Digest::of(&file).to_string();
        file[seal].copy_from_slice(digest.as_bytes());
    }
    for file in [data, &file] {
        if let Ok(delta) = CodedDelta::from_bytes(file) {
            let _ = delta.check(delta.base, &BASE.shapes());
            let _ = (delta.bytes(), delta.dense("a.weight"));
            let _ = Delta::read(&BASE, file);
        }
    }
}

static NETWORK: LazyLock<(Architecture, NamedTensors)> = LazyLock::new(|| {
    let config = br#"{"model_type": "sdar", "vocab_size": 12, "hidden_size": 8, "intermediate_size": 10,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000, "max_position_embeddings": 32, "mask_token_id": 11, "tie_word_embeddings": false}"#;
    let architecture = Architecture::read(config).expect("a network");
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let data = vec![0.5; shape.iter().product()];
        (name, NamedTensor { shape, data })
    };
    let tensors = shapes(&architecture).map(tensor).collect();
    (architecture, NamedTensors(tensors))
});

/// An adapter's configuration beside a good file, and its file beside a good configuration.
pub fn adapter(data: &[u8]) {
    let (architecture, base) = &*NETWORK;
    let read = |config: &[u8], file: &[u8]| {
        if let Ok(found) = Checkpoint::from_bytes(file) {
            let _ = peft::read(architecture, (Digest([0; 32]), base), config, &found);
        }
    };
    read(data, include_bytes!("corpus/adapter/queries.safetensors"));
    read(include_bytes!("corpus/adapter/config.json"), data);
}

/// The fields of a manifest, with the checksum that they have.
pub fn manifest(data: &[u8]) {
    let _ = read_manifest(data);
    let digest = Digest::of(data).to_string();
    let file = [
        b"{\n  \"sha256\": \"",
        digest.as_bytes(),
        b"\",",
        data,
        b"\n",
    ]
    .concat();
    if let Ok((manifest, _)) = read_manifest(&file) {
        let files = manifest.variants.values().map(|one| one.files().count());
        let _ = files.sum::<usize>();
    }
}

pub fn config(data: &[u8]) {
    if let Ok(architecture) = Architecture::read(data) {
        let _ = (architecture.facts(), architecture.bytes(Quantisation::F32));
    }
    let _ = GenerationConfig::parse(data);
}

pub fn tokenizer(data: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes(data) {
        let bound = Bound {
            tokens: 100,
            ..Bound::default()
        };
        if let Ok(ids) = tokenizer.encode_control("hello <s> wörld\n 12", &bound) {
            let _ = tokenizer.decode(&ids);
        }
        let _ = (tokenizer.begin(), tokenizer.ends(), tokenizer.pieces());
    }
    let _ = Tokenizer::from_files(|name| (name == "tokenizer_config.json").then(|| data.to_vec()));
}

const TOKENIZER: &[u8] = include_bytes!("corpus/tokenizer/letters.json");

pub fn template(data: &[u8]) {
    let read = |name: &str| match name {
        "tokenizer.json" => Some(TOKENIZER.to_vec()),
        "tokenizer_config.json" => Some(b"{}".to_vec()),
        "chat_template.jinja" => Some(data.to_vec()),
        _ => None,
    };
    if let Ok(tokenizer) = Tokenizer::from_files(read) {
        let message = |role| Message {
            role,
            content: "hello".to_owned(),
        };
        let messages = [ChatRole::System, ChatRole::User].map(message);
        let bound = Bound {
            tokens: 1000,
            ..Bound::default()
        };
        let _ = tokenizer.chat(&messages, Some(true), &bound);
    }
}

/// The first byte chooses the message.
pub fn protobuf(data: &[u8]) {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    fn decode<M: prost::Message + Default>(data: &[u8]) {
        if let Ok(message) = M::decode(data) {
            let _ = M::decode(&*message.encode_to_vec()).expect("what was written");
        }
    }
    match which % 12 {
        0 => decode::<pb::GenerateRequest>(data),
        1 => decode::<pb::ScoreRequest>(data),
        2 => decode::<pb::AddVariantRequest>(data),
        3 => decode::<pb::RemoveVariantRequest>(data),
        4 => decode::<pb::GetVariantRequest>(data),
        5 => decode::<oip::ModelInferRequest>(data),
        6 => decode::<oip::RepositoryModelLoadRequest>(data),
        7 => decode::<oip::RepositoryModelUnloadRequest>(data),
        8 => decode::<oip::ModelMetadataRequest>(data),
        9 => decode::<oip::RepositoryIndexRequest>(data),
        10 => decode::<oip::ModelStatisticsRequest>(data),
        _ => decode::<tonic_health::pb::HealthCheckRequest>(data),
    }
}

/// Bodies of both routes.
pub fn http(data: &[u8]) {
    let _ = Completion::read(data, Caller::default(), 1000);
    let _ = chat::read(data, Caller::default());
}

/// Text of options and stores that has a notation of its own; what is read is written as it was meant.
pub fn notation(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(profile) = text.parse::<TimeProfile>() {
        let _ = profile
            .to_string()
            .parse::<TimeProfile>()
            .expect("what was written");
    }
    if let Ok(kappa) = text.parse::<Kappa>() {
        let _ = kappa
            .to_string()
            .parse::<Kappa>()
            .expect("what was written");
    }
    if let Ok(form) = text.parse::<Quantisation>() {
        assert_eq!(form.to_string().parse().ok(), Some(form));
    }
    if let Ok(bank) = text.parse::<BankId>() {
        assert_eq!(bank.to_string().parse().ok(), Some(bank));
    }
}

/// A word a line.
pub fn command_line(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Cli::try_parse_from(text.lines());
    }
}

pub fn keys(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = ApiKeys::read(text);
    }
}
