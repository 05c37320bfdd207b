//! Whatever reads bytes from outside, on the corpus of `fuzz/` and on what becomes of it by chance: so many inputs of each target in
//! the suite, so many seconds where CHOIR_FUZZ_SECONDS says so. An input that is a finding is written down, and named.

mod memory;
mod mutation;
#[path = "../../fuzz/targets.rs"]
mod targets;

use choir::rng::{Key, Stream};
use choir::superposition::{CodedDelta, Delta, Encoding, Plan, pack};
use prost::Message;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};
use targets::{BASE, TARGETS, Target, tensors};

/// Inputs of each target in the suite.
const INPUTS: u64 = 3000;
/// Inputs that share a thread.
const BATCH: u64 = 1000;
/// Bytes that a target may hold at once beside so many for each byte of its input.
const HELD: usize = 64 << 20;
const HELD_PER_BYTE: usize = 4096;

/// The corpus of a target: files, and what is made here since it would go stale.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut files: Vec<_> = match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.expect("entry").path()).collect(),
        Err(_) => Vec::new(),
    };
    files.sort();
    let mut corpus: Vec<Vec<u8>> = files
        .iter()
        .map(|file| fs::read(file).expect("file"))
        .collect();
    let packed = || pack(&BASE, &tensors(2.0), 32).expect("pack");
    match name {
        "packed" => corpus.push(packed()),
        "coded" => {
            let plan = Plan {
                bits: 4.0,
                at_least: true,
                low_rank: true,
                ..Plan::default()
            };
            let encoding = Encoding {
                plan,
                ..Encoding::default()
            };
            let coded = CodedDelta::between(&*BASE, &tensors(2.0), &encoding);
            corpus.push(coded.expect("a code").to_bytes());
        }
        "container" => {
            corpus.push(packed());
            let delta = Delta::between(&*BASE, &tensors(2.0)).expect("delta");
            corpus.push(delta.to_archive());
        }
        "protobuf" => corpus.push([&[0], &messages()[..]].concat()),
        _ => {}
    }
    assert!(!corpus.is_empty(), "{name} has no corpus");
    corpus
}

/// A request with a field of every kind.
fn messages() -> Vec<u8> {
    choir::pb::GenerateRequest {
        prompt: "And it came to pass".into(),
        mix: vec![choir::pb::VariantWeight {
            name: "kjv".into(),
            weight: Some(0.5),
        }],
        max_tokens: Some(7),
        stop: vec!["\n".into()],
        stop_ids: vec![1, 70_000],
        seed: Some(u64::MAX),
        sampling: Some(choir::pb::Sampling::default()),
        ..Default::default()
    }
    .encode_to_vec()
}

fn run(name: &str, target: Target, input: &[u8]) {
    let most = HELD + HELD_PER_BYTE * input.len();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let held = memory::most_held_by(|| target(input));
        assert!(held <= most, "it held {held} bytes");
    }));
    if let Err(panic) = ended {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("finding-{name}"));
        fs::write(&path, input).expect("a finding");
        eprintln!("{name}: see {}", path.display());
        std::panic::resume_unwind(panic);
    }
}

/// Panics are printed without a backtrace: reading the symbols for one holds more than a target may.
fn print_panics_alone() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
}

fn fuzz(name: &str) {
    print_panics_alone();
    let (_, target) = *(TARGETS.iter().find(|(target, _)| *target == name)).expect("a target");
    let corpus = corpus(name);
    corpus.iter().for_each(|input| run(name, target, input));
    let seconds = std::env::var("CHOIR_FUZZ_SECONDS").ok();
    let seconds =
        seconds.map(|seconds| Duration::from_secs(seconds.parse().expect("CHOIR_FUZZ_SECONDS")));
    let seed = std::env::var("CHOIR_FUZZ_SEED").unwrap_or_default();
    let mut chance = Stream::new(Key::derive(&[b"fuzz", name.as_bytes(), seed.as_bytes()]));
    let (begun, mut inputs) = (Instant::now(), 0);
    while seconds.map_or(inputs < INPUTS, |seconds| begun.elapsed() < seconds) {
        // A thread of their own: tokenizers leave some bytes behind on each thread that they were used on.
        let some = || {
            for _ in 0..BATCH {
                run(name, target, &mutation::of(&corpus, &mut chance));
            }
        };
        std::thread::scope(|scope| scope.spawn(some).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        inputs += BATCH;
    }
    println!("{name}: {inputs} inputs");
}

/// A test for each target, by its name.
macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })*

        #[test]
        fn targets_are_all_run() {
            let run = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|(name, _)| name), run);
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            for name in run {
                assert!(folder.join(format!("{name}.rs")).is_file(), "{name} is none of cargo-fuzz's");
            }
        }
    };
}

targets! {
    container packed coded manifest config tokenizer template protobuf http notation command_line keys adapter
}

/// Whoever sends words that nobody else has must not fill the memory of the threads that read them.
#[test]
fn words_that_were_seen_are_remembered_within_bounds() {
    let file = include_bytes!("../../models/base/tokenizer.json");
    let tokenizer = choir::model::tokenizer::Tokenizer::from_bytes(file).expect("a tokenizer");
    let mut chance = Stream::new(Key::derive(&[b"words"]));
    let held = memory::most_held_by(|| {
        for _ in 0..12_000 {
            let letter = |_| char::from(b'a' + chance.below(26) as u8);
            let word: String = (0..250).map(letter).collect();
            tokenizer.encode(&word).expect("tokens");
        }
    });
    assert!(held < 16 << 20, "{held} bytes");
}
