//! How a variant is kept is chosen when it is added: coded ones beside superposed ones, files as they are, and what is refused.

use super::*;
use choir::catalog::RemoveRequest;
use choir::store::{self, DiskWatch, Keep, Operation};
use choir::superposition::{
    CodedDelta, DeltaError, Digest, Encoding, Measured, NamedTensors, Plan, Unreadable,
};
use proptest::prelude::*;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Enough for the tiny base, of which much is too small for a code.
const BITS: f32 = 8.0;

fn named(tensors: &Tensors) -> NamedTensors {
    NamedTensors::from_safetensors(&checkpoint(tensors)).expect("tensors")
}

fn coded(seed: u64, change: impl FnOnce(&mut CodedDelta)) -> Vec<u8> {
    let network = TINY.config.architecture().expect("a network");
    let encoding = Encoding {
        plan: Plan::of(BITS.into(), network.roles()),
        ..Encoding::default()
    };
    let (base, tuned) = (named(&TINY.tensors), named(&tuned(seed)));
    let mut delta = CodedDelta::between(&base, &tuned, &encoding).expect("code");
    change(&mut delta);
    delta.to_bytes()
}

fn keep(name: &str, seed: u64, keep: Keep) -> AddRequest {
    AddRequest {
        keep: Some(keep),
        bits: (keep == Keep::Coded).then_some(BITS),
        ..addition(name, CheckpointSource::Bytes(checkpoint(&tuned(seed))))
    }
}

/// The one file of a coded variant.
fn file(place: &TestDir, name: &str) -> PathBuf {
    let all = files(&place.data().join("variants").join(name));
    let found: Vec<_> = all.into_keys().collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[test]
fn a_coded_addition_writes_one_file_and_no_other() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let (before, answers) = (
        files(&place.data()),
        ["one", "two", "three"].map(|name| answer(&engine, name)),
    );
    let added = catalog
        .add(keep("four", 4, Keep::Coded), |_| {})
        .expect("add");
    let info = added.variant;
    assert_eq!((info.keep, info.banks.len()), (Keep::Coded, 0));
    assert!(
        info.bits.is_some_and(|bits| bits <= BITS) && !info.rates.is_empty(),
        "{info:?}"
    );
    assert!(
        info.relative_error.is_some_and(|error| error < 0.3),
        "{info:?}"
    );
    assert_eq!(added.disk_bytes, info.bytes as i64);
    let changed: Vec<_> = files(&place.data())
        .into_iter()
        .filter(|(path, bytes)| before.get(path) != Some(bytes))
        .map(|(path, _)| path)
        .collect();
    let written = file(&place, "four");
    assert_eq!(
        changed,
        [place.data().join("manifest.json"), written.clone()]
    );
    let bytes = fs::read(&written).expect("file");
    let name = format!("coded-{}.safetensors", Digest::of(&bytes));
    assert!(written.ends_with(&name), "{}", written.display());
    assert_eq!(
        ["one", "two", "three"].map(|name| answer(&engine, name)),
        answers
    );
    let said = answer(&engine, "four");
    drop((catalog, engine));
    let (catalog, engine) = serve(place.open().expect("open"));
    assert_eq!(catalog.get("four").expect("four"), info);
    assert_eq!(answer(&engine, "four"), said);
    catalog
        .remove("four", RemoveRequest::default())
        .expect("remove");
    assert_eq!(files(&place.data()).len(), before.len());
    assert!(!written.exists());
}

#[test]
fn a_coded_file_is_kept_as_it_is() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let bytes = coded(4, |_| {});
    let source = || CheckpointSource::Bytes(bytes.clone());
    let refused = |request: AddRequest, wanted: &str| {
        let error = catalog.add(request, |_| {}).expect_err("refused");
        assert!(
            matches!(&error, Error::BadField { field, .. } if *field == wanted),
            "{error}"
        );
    };
    let other = AddRequest {
        seed: Some(1),
        ..addition("new", source())
    };
    refused(other, "seed");
    let other = AddRequest {
        bits: Some(1.0),
        ..addition("new", source())
    };
    refused(other, "bits");
    let other = AddRequest {
        keep: Some(Keep::Superposed),
        ..addition("new", source())
    };
    refused(other, "keep");
    let text = AddRequest {
        check_text: Some("a text".into()),
        ..addition("new", source())
    };
    refused(text, "check_text");

    let info = catalog
        .add(addition("new", source()), |_| {})
        .expect("add")
        .variant;
    assert_eq!(fs::read(file(&place, "new")).expect("file"), bytes);
    let own = CodedDelta::from_bytes(&bytes).expect("read");
    assert_eq!((info.keep, info.seed), (Keep::Coded, own.seed));
    let same = AddRequest {
        seed: Some(info.seed),
        bits: info.bits,
        keep: Some(Keep::Coded),
        ..addition("same", source())
    };
    catalog.add(same, |_| {}).expect("what it says itself");
    // The checkpoint itself, coded here, is the same variant.
    catalog
        .add(keep("here", 4, Keep::Coded), |_| {})
        .expect("add");
    let here = catalog.get("here").expect("here");
    assert_eq!(
        (here.seed, &here.delta_digest),
        (info.seed, &info.delta_digest)
    );
    assert_eq!(answer(&engine, "here"), answer(&engine, "new"));
    assert_eq!(answer(&engine, "same"), answer(&engine, "new"));
}

#[test]
fn coded_files_that_are_not_whole_or_not_of_this_base_are_refused() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let before = (catalog.list(), files(&place.data()));
    let add = |bytes: Vec<u8>| {
        let error = catalog.add(addition("new", CheckpointSource::Bytes(bytes)), |_| {});
        let error = error.expect_err("refused");
        assert_eq!((catalog.list(), files(&place.data())), before, "{error}");
        match error {
            Error::Checkpoint { source, .. } => source,
            other => panic!("{other}"),
        }
    };
    let whole = coded(4, |_| {});
    let cut = add(whole[..whole.len() - 9].to_vec());
    assert!(
        matches!(cut, DeltaError::Unreadable(Unreadable::WrongLength)),
        "{cut}"
    );
    let other = add(coded(4, |delta| delta.base = Digest([7; 32])));
    assert!(matches!(other, DeltaError::Mismatch(_)), "{other}");
    // One character of the header for another: the file keeps its length.
    let header = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole
            .windows(from.len())
            .position(|found| found == from.as_bytes());
        let mut bytes = whole.clone();
        let at = at.unwrap_or_else(|| panic!("no {from}"));
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        add(bytes)
    };
    let table = header(r#""table":"1""#, r#""table":"9""#);
    assert!(table.to_string().contains("table"), "{table}");
    let layout = header(r#""layout":"1""#, r#""layout":"9""#);
    assert!(layout.to_string().contains("layout"), "{layout}");
    // A bit of the tensors, and a letter of the header.
    for at in [whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        let damaged = add(flipped);
        assert!(matches!(damaged, DeltaError::Damaged), "{damaged}");
    }
    let source = header(r#""source":""#, r#""sourcf":""#);
    assert!(matches!(source, DeltaError::Damaged), "{source}");
    assert_eq!(engine.generation().number, 3);
}

#[test]
fn a_flipped_bit_of_a_coded_variant_in_the_store_is_never_served() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    catalog
        .add(keep("four", 4, Keep::Coded), |_| {})
        .expect("add");
    drop((catalog, engine));
    let path = file(&place, "four");
    let whole = fs::read(&path).expect("file");
    for at in [whole.len() / 3, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&path, flipped).expect("write");
        let error = place.open().err().expect("refused");
        assert!(
            matches!(&error, Error::Store(store::Error::Corrupt { path: named, .. }) if *named == path),
            "{error}"
        );
    }
    fs::write(&path, whole).expect("write");
    place.open().expect("open");
}

#[test]
fn budgets_that_hold_no_plan_and_what_a_checkpoint_cannot_be_are_refused() {
    let place = TestDir::new();
    let (catalog, _engine) = place.served();
    for bits in [0.01, 0.0, -1.0, f32::NAN, f32::INFINITY] {
        let request = AddRequest {
            bits: Some(bits),
            ..keep("new", 4, Keep::Coded)
        };
        let error = catalog.add(request, |_| {}).expect_err("refused");
        assert!(
            matches!(error, Error::BadField { field: "bits", .. }),
            "{bits}: {error}"
        );
    }
    let superposed = AddRequest {
        bits: Some(2.0),
        ..keep("new", 4, Keep::Superposed)
    };
    let error = catalog.add(superposed, |_| {}).expect_err("refused");
    assert!(
        matches!(error, Error::BadField { field: "bits", .. }),
        "{error}"
    );
    let thin = catalog
        .add(keep("new", 4, Keep::LowRank), |_| {})
        .expect_err("refused");
    assert!(
        matches!(thin, Error::BadField { field: "keep", .. }),
        "{thin}"
    );
}

#[test]
fn a_budget_that_nobody_asked_for_is_no_reason_to_refuse() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let request = AddRequest {
        bits: None,
        ..keep("new", 4, Keep::Coded)
    };
    let info = catalog.add(request, |_| {}).expect("add").variant;
    assert!(info.bits > Some(1.05), "{info:?}");
    answer(&engine, "new");
}

#[test]
fn the_share_that_a_file_says_is_enforced() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let said = coded(4, |delta| {
        delta.about.measured = Some(Measured {
            share: 0.97,
            method: "as its maker measured".into(),
            text: Digest([3; 32]),
        });
    });
    let with = |least| AddRequest {
        min_share: Some(least),
        ..addition("new", CheckpointSource::Bytes(said.clone()))
    };
    let error = catalog.add(with(0.98), |_| {}).expect_err("refused");
    assert!(
        matches!(
            error,
            Error::ShareBelow {
                share: 0.97,
                least: 0.98,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!((names(&catalog).len(), engine.generation().number), (3, 3));
    let share = catalog
        .add(with(0.96), |_| {})
        .expect("add")
        .variant
        .share
        .expect("share");
    assert_eq!(
        (share.share, &share.method[..]),
        (0.97, "as its maker measured")
    );
    let unknown = AddRequest {
        min_share: Some(0.5),
        ..addition("other", CheckpointSource::Bytes(coded(5, |_| {})))
    };
    let error = catalog.add(unknown, |_| {}).expect_err("refused");
    assert!(
        matches!(
            error,
            Error::BadField {
                field: "min_share",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_text_on_which_the_fine_tune_gains_nothing_measures_nothing() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    // So small a change gains or loses next to nothing on any text.
    let mut barely = TINY.tensors.clone();
    for (name, (_, delta)) in noise(&TINY.config, 4, 1e-6) {
        let (_, values) = barely.get_mut(&name).expect("tensor");
        for (value, delta) in values.iter_mut().zip(delta) {
            *value += delta;
        }
    }
    let request = AddRequest {
        check_text: Some("the whale was seen at noon. ".repeat(4)),
        keep: Some(Keep::Coded),
        bits: Some(BITS),
        ..addition("new", CheckpointSource::Bytes(checkpoint(&barely)))
    };
    let error = catalog.add(request, |_| {}).expect_err("refused");
    assert!(
        matches!(
            error,
            Error::BadField {
                field: "check_text",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!((names(&catalog).len(), engine.generation().number), (3, 3));
}

#[test]
fn a_coded_variant_is_removed_on_a_full_disk() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    catalog
        .add(keep("four", 4, Keep::Coded), |_| {})
        .expect("add");
    drop((catalog, engine));
    // Full, until the reserve is given up; reading and removing work.
    let full = Arc::new(AtomicBool::new(false));
    let (flag, lock) = (full.clone(), place.data().join("lock"));
    let watch: DiskWatch = Box::new(move |operation, _| {
        let writes = matches!(operation, Operation::CreateFile | Operation::Write);
        let left = fs::metadata(&lock).map_or(0, |file| file.len());
        match writes && flag.load(Ordering::Relaxed) && left > 0 {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    });
    let opened = Catalog::open_watched(place.config(), Some(watch), |_| {}).expect("open");
    let (catalog, engine) = serve(opened);
    full.store(true, Ordering::Relaxed);
    let error = catalog
        .add(keep("five", 5, Keep::Coded), |_| {})
        .expect_err("full");
    assert!(
        matches!(error, Error::Store(store::Error::Io { .. })),
        "{error}"
    );
    let reserve = || fs::metadata(place.data().join("lock")).expect("lock").len();
    assert!(reserve() > 0, "an addition is not what it is for");
    let path = file(&place, "four");
    catalog
        .remove("four", RemoveRequest::default())
        .expect("remove");
    assert!(!path.exists());
    assert_eq!(names(&catalog), ["one", "three", "two"]);
    full.store(false, Ordering::Relaxed);
    assert_eq!(engine.generation().number, catalog.status().generation);
    drop((catalog, engine));
    assert_eq!(
        names(&place.open().expect("open").0),
        ["one", "three", "two"]
    );
    assert!(reserve() > 0, "made anew");
}

#[test]
fn one_addition_that_is_removed_at_once_is_told_as_it_was() {
    let place = TestDir::new();
    let (catalog, _engine) = place.served();
    std::thread::scope(|scope| {
        let remover = scope.spawn(|| {
            for _ in 0..20 {
                while catalog.remove("brief", RemoveRequest::default()).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        for _ in 0..20 {
            let info = catalog
                .add(keep("brief", 4, Keep::Coded), |_| {})
                .expect("add")
                .variant;
            assert_eq!(info.name, "brief");
            while catalog.get("brief").is_ok() {
                std::thread::yield_now();
            }
        }
        remover.join().expect("remover");
    });
}

/// A step of the property below: which name, and what becomes of it.
#[derive(Clone, Copy, Debug)]
enum StoreChange {
    Put(usize, u64, bool),
    Remove(usize),
}

fn step() -> impl Strategy<Value = StoreChange> {
    prop_oneof![
        3 => (0usize..4, 0u64..6, any::<bool>()).prop_map(|(at, seed, coded)| StoreChange::Put(at, seed, coded)),
        1 => (0usize..4).prop_map(StoreChange::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4) })]

    /// Whoever comes, goes or is replaced, coded or superposed: the texts of the coded ones stay what they were.
    #[test]
    fn nobody_changes_what_a_coded_variant_says(steps in prop::collection::vec(step(), 4..9)) {
        let place = TestDir::new();
        let (catalog, engine) = serve(place.open().expect("open"));
        let mut texts: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for step in steps {
            let name = |at: usize| ["a", "b", "c", "d"][at].to_owned();
            match step {
                StoreChange::Put(at, seed, coded) => {
                    let (name, how) = (name(at), if coded { Keep::Coded } else { Keep::Superposed });
                    let there = catalog.get(&name).ok();
                    let digest = there.and_then(|info| Digest::parse(&info.delta_digest));
                    let request = AddRequest { replaces: digest, ..keep(&name, seed, how) };
                    catalog.add(request, |_| {}).expect("put");
                    texts.remove(&name);
                    if coded {
                        texts.insert(name.clone(), answer(&engine, &name));
                    }
                }
                StoreChange::Remove(at) => {
                    let removed = catalog.remove(&name(at), RemoveRequest::default()).is_ok();
                    prop_assert!(removed || !texts.contains_key(&name(at)));
                    texts.remove(&name(at));
                }
            }
            for (name, text) in &texts {
                prop_assert_eq!(&answer(&engine, name), text, "{}", name);
            }
        }
    }
}
