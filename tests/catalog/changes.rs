//! Additions and removals while an engine serves.

use super::*;
use choir::catalog::{AdditionStage, RemoveRequest};
use choir::store::{self, DiskWatch, Operation};
use choir::{engine, sampler};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn remove(catalog: &Catalog, name: &str) -> Result<u64, Error> {
    catalog.remove(name, RemoveRequest::default())
}

#[test]
fn what_is_removed_and_added_again_gives_the_same_banks() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let (before, list) = (banks(&place.data()), catalog.list());
    let answers = ["one", "two", "three"].map(|name| answer(&engine, name));
    assert_eq!(remove(&catalog, "two").expect("remove"), 4);
    assert_eq!(names(&catalog), ["one", "three"]);
    assert_ne!(banks(&place.data()), before);
    let mut stages = Vec::new();
    let source = CheckpointSource::Path(place.file("two", &checkpoint(&tuned(2))));
    let info = catalog
        .add(addition("two", source), |progress| stages.push(progress))
        .expect("add")
        .variant;
    assert_eq!(banks(&place.data()), before);
    assert_eq!(
        ["one", "two", "three"].map(|name| answer(&engine, name)),
        answers
    );
    let first = list.iter().find(|info| info.name == "two").expect("two");
    assert_eq!(
        (info.seed, &info.delta_digest, &info.banks),
        (first.seed, &first.delta_digest, &first.banks)
    );
    assert!(
        info.source.ends_with("two/model.safetensors"),
        "{}",
        info.source
    );
    assert!(
        stages.is_sorted_by(|a, b| a.fraction <= b.fraction),
        "{stages:?}"
    );
    let mut stages: Vec<AdditionStage> =
        stages.into_iter().map(|progress| progress.stage).collect();
    stages.dedup();
    use AdditionStage::*;
    assert_eq!(
        stages,
        [
            Reading,
            Comparing,
            Accumulating,
            Measuring,
            Writing,
            Publishing
        ]
    );
}

#[test]
fn modulation_tables_are_counted_and_shared_by_generations() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let bytes = || -> u64 {
        let memory = catalog.status().memory.into_iter();
        memory
            .filter(|part| part.part == "modulation tables")
            .map(|part| part.bytes)
            .sum()
    };
    add(&catalog, "four", 4).expect("add");
    assert_eq!(bytes(), 0);
    let before = answer(&engine, "one");
    let once = bytes();
    assert!(once > 0);
    for _ in 0..4 {
        // Whoever shares a bank with who comes and goes is read from another bank each time.
        remove(&catalog, "two").expect("remove");
        answer(&engine, "one");
        add(&catalog, "two", 2).expect("add");
        assert_eq!(answer(&engine, "one"), before);
    }
    // Those in force, those before, and those of a request that has just ended.
    let several = bytes();
    assert!(several <= 3 * once, "{several} of {once}");
    // The bank is full: this one goes into another, and is the only change.
    add(&catalog, "five", 5).expect("add");
    assert_eq!(answer(&engine, "one"), before);
    assert!(
        (once..=several).contains(&bytes()),
        "{} of {several}",
        bytes()
    );
}

/// What a change costs does not depend on how much there is that it does not change.
#[test]
fn a_change_reads_nothing_of_variants_that_it_does_not_change() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    for file in files(&place.data().join("variants")).into_keys() {
        let private = file.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("private")
        });
        if private {
            fs::remove_file(file).expect("private tensors");
        }
    }
    add(&catalog, "four", 4).expect("add");
    remove(&catalog, "two").expect("remove");
    for name in ["one", "three", "four"] {
        assert!(!answer(&engine, name).is_empty());
    }
    drop((catalog, engine));
    assert!(place.open().is_err(), "a start reads them all");
}

#[test]
fn what_the_operator_chooses_is_kept() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let defaults = SamplingParams {
        threshold: Some(0.5),
        temperature: Some(0.25),
        nucleus_p: Some(0.5),
        top_k: Some(7),
        block_size: Some(8),
        ..SamplingParams::default()
    };
    let sampling = Sampling {
        predictor: sampler::AbsorbingPredictor::Confidence {
            threshold: 0.5,
            steps: None,
        }
        .into(),
        temperature: 0.25,
        nucleus_p: 0.5,
        top_k: Some(7),
        block_size: Some(8),
        certainty: sampler::Certainty::Best,
    };
    let chosen = AddRequest {
        seed: Some(77),
        scale: Some(0.5),
        defaults,
        expected_generation: Some(3),
        ..addition("chosen", CheckpointSource::Bytes(checkpoint(&tuned(4))))
    };
    let info = catalog.add(chosen, |_| {}).expect("add").variant;
    assert_eq!(
        (info.seed, info.scale, &info.defaults),
        (77, 0.5, &sampling)
    );
    assert_eq!(engine.generation().variants["chosen"].defaults, sampling);
    drop((catalog, engine));
    let (catalog, generation) = place.open().expect("open");
    assert_eq!(catalog.get("chosen").expect("chosen"), info);
    assert_eq!(generation.variants["chosen"].defaults, sampling);
}

#[test]
fn changes_are_published_and_running_requests_keep_their_generation() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let long = |name| engine.submit(request(Some(name), 200)).expect("submit");
    let before = outcome(long("two"));
    assert_eq!(before.0, 3);
    let running: Vec<_> = (0..12).map(|_| long("two")).collect();
    remove(&catalog, "two").expect("remove");
    let error = engine.submit(request(Some("two"), 8)).expect_err("refused");
    assert_eq!(error, engine::Error::UnknownVariant { name: "two".into() });
    add(&catalog, "four", 4).expect("add");
    assert_eq!(engine.generation().number, 5);
    assert_eq!(outcome(long("four")).0, 5);
    for events in running {
        assert_eq!(outcome(events), before);
    }
}

#[test]
fn two_additions_at_once_wait_for_each_other() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let at_once = |names: [&str; 2]| {
        std::thread::scope(|scope| {
            let catalog = &catalog;
            let threads = [(names[0], 10), (names[1], 11)];
            let threads = threads.map(|(name, seed)| scope.spawn(move || add(catalog, name, seed)));
            threads.map(|thread| thread.join().expect("thread"))
        })
    };
    let both = at_once(["left", "right"]);
    assert!(both.iter().all(Result::is_ok), "{both:?}");
    assert_eq!(engine.generation().number, 5);
    let one = at_once(["same", "same"]);
    let taken =
        |result: &Result<_, _>| matches!(result, Err(Error::Store(store::Error::NameTaken { .. })));
    assert_eq!(
        one.iter().filter(|result| taken(result)).count(),
        1,
        "{one:?}"
    );
    assert_eq!(
        one.iter().filter(|result| result.is_ok()).count(),
        1,
        "{one:?}"
    );
    assert_eq!(
        names(&catalog),
        ["left", "one", "right", "same", "three", "two"]
    );
    assert_eq!(
        (engine.generation().number, catalog.status().generation),
        (6, 6)
    );
    for name in names(&catalog) {
        // A text may end by itself, and which of the two deltas became "same" is a race's outcome.
        assert!(!answer(&engine, &name).is_empty());
    }
}

#[test]
fn a_store_without_an_archive_asks_for_the_delta_again() {
    let place = TestDir::new();
    let bare = CatalogConfig {
        archive: false,
        ..place.config()
    };
    let (catalog, engine) = serve(Catalog::open(bare, |_| {}).expect("open"));
    let info = add(&catalog, "one", 1).expect("add");
    assert!(!info.archived && info.cosine.is_some(), "{info:?}");
    add(&catalog, "two", 2).expect("add");
    let before = (names(&catalog), files(&place.data()));
    let error = remove(&catalog, "one").expect_err("refused");
    assert!(
        matches!(error, Error::Store(store::Error::DeltaNeeded { .. })),
        "{error}"
    );
    let with = |seed| RemoveRequest {
        delta: Some(CheckpointSource::Bytes(checkpoint(&tuned(seed)))),
        expected_generation: None,
    };
    let error = catalog.remove("one", with(2)).expect_err("refused");
    assert!(
        matches!(error, Error::Store(store::Error::OtherDelta { .. })),
        "{error}"
    );
    assert_eq!((names(&catalog), files(&place.data())), before);
    catalog.remove("one", with(1)).expect("remove");
    assert_eq!(names(&catalog), ["two"]);
    assert_eq!(answer(&engine, "two").len(), 24);
}

/// The disk is full at every operation of an addition in turn: nothing changes, until it gets through.
#[test]
fn a_full_disk_changes_nothing() {
    let place = TestDir::new();
    drop(place.served());
    // Operations until the disk is full.
    let left = Arc::new(AtomicU32::new(u32::MAX));
    let counter = left.clone();
    let watch: DiskWatch = Box::new(move |operation, _| {
        let count = |left: u32| left.checked_sub(1);
        match counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) {
            Ok(_) => Ok(()),
            Err(_) if operation == Operation::Remove => Ok(()), // which a full disk allows
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    });
    let (catalog, engine) =
        serve(Catalog::open_watched(place.config(), Some(watch), |_| {}).expect("open"));
    let (content, text) = (files(&place.data()), answer(&engine, "two"));
    let before = (catalog.list(), catalog.status(), engine.generation().number);
    let mut failures = 0;
    for operations in 0.. {
        left.store(operations, Ordering::Relaxed);
        let outcome = add(&catalog, "four", 4);
        left.store(u32::MAX, Ordering::Relaxed);
        match outcome {
            Ok(_) => break,
            Err(Error::Store(store::Error::Io { source, .. })) => {
                assert_eq!(source.kind(), io::ErrorKind::StorageFull)
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!(
            (catalog.list(), catalog.status(), engine.generation().number),
            before
        );
        assert_eq!(
            files(&place.data()),
            content,
            "after {operations} operations"
        );
        if operations % 8 == 0 {
            assert_eq!(answer(&engine, "two"), text);
        }
        failures += 1;
    }
    assert!(failures > 10, "{failures}");
    assert_eq!((names(&catalog).len(), engine.generation().number), (4, 4));
}
