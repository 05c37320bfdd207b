//! `choir-lab random-model`: checkpoints of published shapes with random weights, to try sizes without downloads.

use anyhow::{Context, Result, bail};
use choir::model::Architecture;
use choir::model::architecture::MatrixRole;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Write a checkpoint of a published shape with random weights, in bf16 and in shards, or a fine-tune of one.
#[derive(Args, Debug)]
pub struct RandomModelArgs {
    /// sdar (tiny, 1.7b, 4b, 8b), a2d-qwen3 (0.6b) or a2d-qwen2 (0.5b).
    family: String,
    size: String,
    /// A new folder.
    out: PathBuf,
    /// Two checkpoints of one seed are the same but for what a fine-tune changes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Makes it a fine-tune: every weight moves by up to this share of the weights' own size.
    #[arg(long, default_value_t = 0.0)]
    change: f32,
    /// Which fine-tune.
    #[arg(long, default_value_t = 1)]
    tuned: u64,
    /// Tokens to a block, instead of the family's.
    #[arg(long)]
    block: Option<usize>,
    /// A shard is closed once it has this many MiB.
    #[arg(long, default_value_t = 2048)]
    shard_mib: usize,
}

/// hidden, layers, heads, kv heads, head_dim, intermediate, rows
type Shape = [usize; 7];

const SHAPES: [(&str, &str, Shape); 6] = [
    ("sdar", "tiny", [64, 2, 4, 2, 32, 128, 151_936]),
    ("sdar", "1.7b", [2048, 28, 16, 8, 128, 6144, 151_936]),
    ("sdar", "4b", [2560, 36, 32, 8, 128, 9728, 151_936]),
    ("sdar", "8b", [4096, 36, 32, 8, 128, 12_288, 151_936]),
    ("a2d-qwen3", "0.6b", [1024, 28, 16, 8, 128, 3072, 151_936]),
    ("a2d-qwen2", "0.5b", [896, 24, 14, 2, 64, 4864, 151_936]),
];

/// The `config.json` of a published shape.
pub fn config(family: &str, size: &str, block: Option<usize>) -> Result<Value> {
    let known = SHAPES
        .iter()
        .find(|known| (known.0, known.1) == (family, size));
    let Some((_, _, [hidden, layers, heads, kv_heads, head_dim, inner, rows])) = known else {
        let known: Vec<_> = SHAPES
            .map(|(family, size, _)| format!("{family} {size}"))
            .into();
        bail!("no shape {family} {size}; known are {}", known.join(", "));
    };
    let mut config = json!({
        "model_type": family, "vocab_size": rows, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "intermediate_size": inner, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
        "tie_word_embeddings": family != "sdar", "hidden_act": "silu", "mask_token_id": 151_669,
        "eos_token_id": [151_645, 151_643], "torch_dtype": "bfloat16",
    });
    if let Some(block) = block.or((family == "sdar").then_some(4)) {
        config["block_size"] = block.into();
    }
    Ok(config)
}

pub fn run(args: RandomModelArgs) -> Result<()> {
    let config = config(&args.family, &args.size, args.block)?;
    let architecture = Architecture::read(config.to_string().as_bytes())?;
    std::fs::create_dir(&args.out).with_context(|| args.out.display().to_string())?;
    std::fs::write(args.out.join("config.json"), config.to_string())?;
    let mut parts = Vec::new();
    for spec in &architecture.tensors {
        for (name, rows) in &spec.parts {
            let mut shape = spec.shape.clone();
            shape[0] = *rows;
            parts.push(PublishedTensor {
                name: name.clone(),
                role: spec.role,
                shape,
            });
        }
    }
    let mut shards: Vec<Vec<PublishedTensor>> = vec![Vec::new()];
    let mut room = args.shard_mib << 20;
    for part in parts {
        if room < part.bytes() && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            room = args.shard_mib << 20;
        }
        room = room.saturating_sub(part.bytes());
        shards.last_mut().expect("there is one").push(part);
    }
    let count = shards.len();
    let mut map = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        write(&args.out.join(&name), shard, &args)?;
        map.extend(shard.iter().map(|part| (part.name.clone(), name.clone())));
    }
    if count > 1 {
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(
            args.out.join("model.safetensors.index.json"),
            index.to_string(),
        )?;
    }
    println!(
        "{} parameters in {count} files",
        architecture.facts().parameters
    );
    Ok(())
}

/// A published tensor.
struct PublishedTensor {
    name: String,
    role: MatrixRole,
    shape: Vec<usize>,
}

impl PublishedTensor {
    fn bytes(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }

    /// What its weights are spread around, and how far.
    fn spread(&self) -> (f32, f32) {
        match (self.role, &self.shape[..]) {
            (_, [_]) if !matches!(self.role, MatrixRole::QkvBias) => (1.0, 0.1),
            (MatrixRole::Embedding, _) => (0.0, 0.1),
            (_, shape) => (0.0, 1.7 / (shape[shape.len() - 1] as f32).sqrt()),
        }
    }
}

fn write(path: &Path, parts: &[PublishedTensor], args: &RandomModelArgs) -> Result<()> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for part in parts {
        let place = [end, end + part.bytes()];
        end = place[1];
        let entry = json!({"dtype": "BF16", "shape": part.shape, "data_offsets": place});
        header.insert(part.name.clone(), entry);
    }
    let mut header = Value::from(header).to_string();
    header.extend(std::iter::repeat_n(
        ' ',
        header.len().next_multiple_of(8) - header.len(),
    ));
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for part in parts {
        let (middle, spread) = part.spread();
        let mut own = Words::new(args.seed, &part.name);
        let mut change = Words::new(args.seed ^ args.tuned.rotate_left(32), &part.name);
        for _ in 0..part.bytes() / 2 {
            let moved = if args.change > 0.0 {
                args.change * change.next()
            } else {
                0.0
            };
            let value = middle + spread * (own.next() + moved);
            file.write_all(&half::bf16::from_f32(value).to_le_bytes())?;
        }
    }
    Ok(file
        .into_inner()
        .map_err(|error| error.into_error())?
        .sync_all()?)
}

/// Even numbers within -1 and 1: SplitMix64, since billions of them are needed and none has to be secret.
struct Words(u64);

impl Words {
    fn new(seed: u64, name: &str) -> Self {
        let bytes = name.bytes();
        Words(bytes.fold(seed, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        }))
    }

    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z >> 40) as f32 / (1 << 23) as f32) - 1.0
    }
}
