//! Comparing and coding a fine-tune holds a tensor at a time, not the checkpoint.

use choir::checkpoint::Checkpoint;
use choir::model::Architecture;
use choir::model::architecture::published::Published;
use choir::rng::{Key, Stream};
use choir::superposition::{CodedDelta, Delta, Encoding, Relation};
use choir::train::folder::{Precision, serialize};
use serde_json::json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes held, and the most there were.
struct Meter {
    now: AtomicUsize,
    most: AtomicUsize,
}

#[global_allocator]
static MEMORY: Meter = Meter {
    now: AtomicUsize::new(0),
    most: AtomicUsize::new(0),
};

#[allow(unsafe_code)]
// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = self.now.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        self.most.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `work` gives, and the most bytes that it held at once besides what was there before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = MEMORY.now.load(Ordering::Relaxed);
    MEMORY.most.store(before, Ordering::Relaxed);
    let made = work();
    (made, MEMORY.most.load(Ordering::Relaxed) - before)
}

const LAYERS: usize = 24;
/// The largest tensor inside: gate and up.
const LARGEST: usize = 2 * 160 * 128;

fn network() -> Architecture {
    let config = json!({"model_type": "sdar", "vocab_size": 300, "hidden_size": 128, "intermediate_size": 160,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000, "max_position_embeddings": 32, "mask_token_id": 299});
    Architecture::read(config.to_string().as_bytes()).expect("a network")
}

/// Random weights, and what a fine-tune makes of them.
fn write(network: &Architecture, path: &Path, tuned: bool) {
    let mut named = Vec::new();
    for spec in &network.tensors {
        let mut noise = Stream::new(Key::derive(&[spec.name.as_bytes()]));
        for (name, rows) in &spec.parts {
            let mut shape = spec.shape.clone();
            shape[0] = *rows;
            let value = |_| {
                let (base, delta) = (noise.normal(), noise.normal());
                (if tuned { base + 0.1 * delta } else { base }) as f32
            };
            let data = (0..shape.iter().product::<usize>()).map(value).collect();
            named.push((name.clone(), shape, data, Precision::Bf16));
        }
    }
    std::fs::write(path, serialize(&named, None).expect("a file")).expect("write");
}

#[test]
fn a_fine_tune_is_compared_and_coded_one_tensor_at_a_time() {
    let folder = tempfile::tempdir().expect("folder");
    let network = network();
    let paths = ["base.safetensors", "tuned.safetensors"].map(|name| folder.path().join(name));
    write(&network, &paths[0], false);
    write(&network, &paths[1], true);
    let all = 4 * network.facts().parameters;
    let bound = 12 * 4 * LARGEST;
    assert!(4 * bound < all, "else there is nothing to see");
    let ((base, tuned), opened) = peak(|| {
        let open = |path| {
            let checkpoint = Checkpoint::open(path).expect("a checkpoint");
            Published::new(&network, checkpoint).expect("the network's")
        };
        (open(&paths[0]), open(&paths[1]))
    });
    assert!(opened < bound, "{opened} bytes to open them");
    let (relation, compared) = peak(|| Relation::of(&base, &tuned).expect("a fine-tune"));
    assert!(compared < bound, "{compared} bytes to compare, of {all}");
    let encoding = Encoding::default();
    let coded = || CodedDelta::differences(relation.base, &base, &tuned, &encoding);
    let (coded, held) = peak(|| coded().expect("a code"));
    assert!(
        held < bound + 2 * coded.bytes(),
        "{held} bytes to code, of {all}"
    );
    // Its eight bits are held.
    let (delta, held) = peak(|| Delta::differences(relation.base, &base, &tuned).expect("a delta"));
    let kept: usize = delta
        .matrices
        .values()
        .map(|matrix| matrix.values.len())
        .sum();
    assert!(held < bound + 2 * kept, "{held} bytes to round, of {all}");
}
