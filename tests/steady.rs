//! A step like the one before it allocates next to nothing but its logits.

mod fixtures;

use choir::model::{BaseWeights, Batch, Denoiser, HostNetwork};
use fixtures::{Case, segment};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts bytes asked for.
struct Counting(AtomicUsize);

#[global_allocator]
static MEMORY: Counting = Counting(AtomicUsize::new(0));

#[allow(unsafe_code)]
// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn a_step_like_the_last_one_allocates_its_logits_only() {
    let case = Case::load("mdlm-tiny");
    let base = Arc::new(
        BaseWeights::new(
            case.config.architecture().expect("a network"),
            &case.weights,
        )
        .expect("weights"),
    );
    let network = HostNetwork::new(base, &[], Vec::new()).expect("network");
    let mut cache = network.cache(16.into(), 0).expect("cache");
    let tokens: Vec<u32> = (0..case.config.model_length as u32)
        .map(|token| token % 7)
        .collect();
    let batch = Batch {
        segments: vec![segment(&case, &tokens, 0.0); 8],
    };
    let mut used = Vec::new();
    for _ in 0..4 {
        let before = MEMORY.0.load(Ordering::Relaxed);
        let logits = network.forward(&batch, &mut cache).expect("forward");
        used.push(MEMORY.0.load(Ordering::Relaxed) - before - size_of_val(&logits.data[..]));
    }
    // What is left are keys of tables, by segment, and what threads need to take turns.
    let activations =
        batch.segments.len() * tokens.len() * case.config.hidden_dim * size_of::<f32>();
    assert!(used[0] > 10 * activations, "{used:?} do not count");
    assert!(
        used[1..].iter().all(|used| *used < activations),
        "{used:?}, activations {activations}"
    );
}
