//! `choir-lab bench gpu` on kernels that the host runs. Every part of the bench on a tiny scale: what it measures here means nothing, but all of it has run.

#[path = "../../../tests/gpu/emulated.rs"]
#[allow(dead_code, reason = "tests of kernels use all of it")]
mod emulated;
#[path = "../../../tests/gpu/rig.rs"]
#[allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "tests of kernels use all of it"
)]
mod rig;

use choir::model::{Architecture, DitConfig};
use choir_lab::bench::gpu::{KernelBench, Sizes, measure};
use clap::ValueEnum;
use serde_json::json;

use rig::Rig;

fn tiny() -> Sizes {
    let full = Sizes::full();
    let tiny = DitConfig {
        vocab_size: 70,
        model_length: 32,
        hidden_dim: 64,
        cond_dim: 8,
        n_blocks: 2,
        n_heads: 1,
        ..full.small.clone()
    };
    let decoder = json!({
        "model_type": "sdar", "vocab_size": 70, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 64, "mask_token_id": 69, "block_size": 4,
    });
    let decoder = Architecture::read(decoder.to_string().as_bytes()).unwrap();
    Sizes {
        copy: 1 << 12,
        cold: 20_000,
        gemm: 16,
        skinny: 16,
        retrieve: [48, 520],
        banks: vec![[48, 520], [70, 64]],
        sampling: vec![[3, 70]],
        small: tiny.clone(),
        large: tiny,
        decoders: vec![("tiny".to_owned(), decoder)],
        cached: 16,
        tokens: 20,
        sequences: vec![1, 2],
    }
}

#[test]
fn every_part_runs_and_reports() {
    let Some(rig) = Rig::one() else { return };
    let path = std::env::temp_dir().join(format!("choir-bench-{}.json", std::process::id()));
    let parts = KernelBench::value_variants();
    measure(rig.gpu.clone(), tiny(), 1e-9, parts, Some(path.clone())).unwrap();
    let lines: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    for part in parts {
        let name = part.to_possible_value().unwrap().get_name().to_owned();
        let of: Vec<_> = lines.iter().filter(|line| line["part"] == name).collect();
        assert!(!of.is_empty(), "{name} said nothing");
        for line in of {
            let figures = line.as_object().unwrap().values();
            assert!(
                figures
                    .clone()
                    .filter_map(|figure| figure.as_f64())
                    .any(|figure| figure > 0.0)
            );
        }
    }
}
