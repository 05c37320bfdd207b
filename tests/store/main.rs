//! The store on a disk: any sequence of operations, any place to die, every way to be damaged.

mod bad_input;
mod changes;
mod crash;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use choir::rng::{Key, Stream};
use choir::store::{
    BankKind, BaseFacts, CodedFile, Commit, Content, Error, NewVariant, Options, SamplerDefaults,
    Scales, Store, StoredProcess,
};
use choir::superposition::{Bank, Delta, Digest, HEAD, NamedTensor, NamedTensors, Private, Scheme};
use choir::superposition::{CodedDelta, Encoding, Plan};

fn tensors(purpose: &str, seed: u64, size: f64) -> NamedTensors {
    let mut stream = Stream::new(Key::derive(&[purpose.as_bytes(), &seed.to_le_bytes()]));
    let shapes: [(&str, &[usize]); 5] = [
        ("blocks.0.attn.weight", &[64, 64]),
        ("blocks.0.mlp.0.weight", &[6, 70]),
        ("norm", &[7]),
        (HEAD, &[9, 33]),
        ("vocab_embed.embedding", &[9, 5]),
    ];
    let tensor = |(name, shape): (&str, &[usize])| {
        let data = (0..shape.iter().product())
            .map(|_| (size * stream.normal()) as f32)
            .collect();
        (
            name.to_owned(),
            NamedTensor {
                shape: shape.to_vec(),
                data,
            },
        )
    };
    NamedTensors(shapes.into_iter().map(tensor).collect())
}

fn base() -> NamedTensors {
    tensors("base", 0, 1.0)
}

fn facts() -> BaseFacts {
    BaseFacts::of(&base(), Digest::of(b"tokenizer"))
}

fn delta(seed: u64) -> Delta {
    let (base, mut tuned) = (base(), tensors("tuned", seed, 0.05));
    for (name, tensor) in &mut tuned.0 {
        tensor
            .data
            .iter_mut()
            .zip(&base.0[name].data)
            .for_each(|(delta, base)| *delta += base);
    }
    Delta::between(&base, &tuned).unwrap()
}

fn variant(name: &str, k: u64) -> NewVariant {
    NewVariant {
        name: name.to_owned(),
        content: Content::Superposed {
            delta: Box::new(delta(k)),
            seed: None,
        },
        source: format!("fine-tune {k}"),
        process: StoredProcess::Absorbing,
        defaults: SamplerDefaults::default(),
        manner: None,
        moved: None,
        scales: Scales::default(),
    }
}

/// Fine-tune `k` in a code.
fn coded(k: u64) -> CodedFile {
    let (facts, delta) = (facts(), delta(k));
    let encoding = Encoding {
        plan: Plan {
            bits: 8.0, // most of these matrices are too small for a code
            ..Plan::default()
        },
        ..Encoding::default()
    };
    let dense = |name: &str| Ok(delta.dense(name).unwrap());
    CodedFile::of(CodedDelta::encode(facts.digest, &facts.shapes, &encoding, dense).unwrap())
}

fn coded_variant(name: &str, k: u64) -> NewVariant {
    NewVariant {
        content: Content::Coded(coded(k)),
        ..variant(name, k)
    }
}

fn create(dir: &Path) -> Store {
    Store::create(dir, facts(), Options::default()).unwrap()
}

fn add(store: &mut Store, name: &str, k: u64) -> Result<Commit, Error> {
    store.add(variant(name, k), None, &mut |_| {})
}

fn add_coded(store: &mut Store, name: &str, k: u64) -> Result<Commit, Error> {
    store.add(coded_variant(name, k), None, &mut |_| {})
}

/// Puts `by` in the place of the variant of its name, whose delta is to be `expected`.
fn replace(store: &mut Store, expected: Digest, by: NewVariant) -> Result<Commit, Error> {
    store.replace_if(by, expected, None, &mut |_| {}, |_| Ok(()))
}

fn remove(store: &mut Store, name: &str) -> Result<Commit, Error> {
    store.remove(name, None, None, &mut |_| {})
}

/// All fine-tunes of these tests.
static DELTAS: LazyLock<BTreeMap<u64, Delta>> =
    LazyLock::new(|| (0..20).map(|k| (k, delta(k))).collect());

/// Every file under `dir`, relative to it.
fn files_in(dir: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut directories = vec![dir.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    files
}

/// The bank made anew from its members, in the opposite order.
fn rebuilt(
    store: &Store,
    kind: BankKind,
    members: &[String],
    deltas: &BTreeMap<String, Delta>,
) -> Bank {
    let of_kind = |name: &str| (name == HEAD) == (kind == BankKind::Head);
    let shapes = facts().shapes.into_iter().filter(|(name, _)| of_kind(name));
    let options = store.manifest().options;
    let capacity = if kind == BankKind::Head {
        options.head_capacity
    } else {
        options.bank_capacity
    };
    let matrices =
        shapes.filter_map(|(name, shape)| Some((name, <[usize; 2]>::try_from(shape).ok()?)));
    let mut bank = Bank::new(capacity, Scheme::default(), matrices);
    for member in members.iter().rev() {
        bank.accumulate(&deltas[member], store.manifest().variants[member].seed)
            .unwrap();
    }
    bank
}

/// Checks that a store is one whole generation: every bank byte for byte what its members give, every private
/// tensor its delta's, and no file too many.
fn assert_whole(store: &Store, deltas: &BTreeMap<String, Delta>) {
    let (manifest, dir) = (store.manifest(), store.directory());
    for (id, record) in &manifest.banks {
        let bank = rebuilt(store, id.kind, &record.members, deltas);
        let file = dir.join(format!("banks/{id}/{}.safetensors", record.generation));
        assert!(
            fs::read(file).unwrap() == bank.to_bytes(),
            "{id} of generation {}",
            manifest.generation
        );
        assert!(!record.members.is_empty() && record.members.len() <= bank.capacity);
    }
    assert!(manifest.variants.keys().eq(deltas.keys()));
    for (name, record) in &manifest.variants {
        if let Some(file) = record.coded() {
            let k = DELTAS.iter().find(|(_, delta)| **delta == deltas[name]);
            let expected = coded(*k.unwrap().0);
            assert_eq!(
                store.load_coded(name).unwrap().as_ref(),
                Some(expected.delta())
            );
            assert_eq!(record.delta, expected.delta().about.source);
            assert_eq!(
                (file.bits, record.seed),
                (expected.bits(&facts()), expected.delta().seed)
            );
            continue;
        }
        assert_eq!(record.banks().len(), 2);
        assert_eq!(
            store.load_private(name).unwrap(),
            Some(Private::of(&deltas[name]))
        );
        assert_eq!(record.delta, deltas[name].digest());
        let archived = store.load_delta(name).unwrap();
        assert_eq!(
            archived,
            manifest.options.archive.then(|| deltas[name].clone())
        );
    }
    let mut expected: BTreeSet<_> = store.files().into_iter().collect();
    expected.extend(["manifest.json", "lock"].map(PathBuf::from));
    assert_eq!(files_in(dir), expected);
}
