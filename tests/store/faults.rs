//! A disk that fails: at every single operation of a change, once or for good.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use choir::store::{DiskWatch, Operation};

use super::*;

/// Fails operation `at` (counted from 0), and all after it where `for_good`, once armed.
struct FullDisk {
    armed: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
}

impl FullDisk {
    fn new(at: u32, for_good: bool) -> (FullDisk, DiskWatch) {
        let disk = FullDisk {
            armed: Arc::default(),
            done: Arc::default(),
        };
        let (armed, done) = (disk.armed.clone(), disk.done.clone());
        let watch: DiskWatch = Box::new(move |_, _| {
            if !armed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let now = done.fetch_add(1, Ordering::Relaxed);
            let fails = now == at || (for_good && now > at);
            if fails {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            }
        });
        (disk, watch)
    }
}

/// Copies a store that no process has open.
fn copy(from: &Path, to: &Path) {
    for file in files_in(from) {
        let to = to.join(&file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from.join(file), to).unwrap();
    }
}

/// Runs `change` with a fault at its first operation, its second, and so on until it gets through untouched. It
/// must either fail and change nothing or succeed; then the variants are those that `after` has made of the ones before.
fn every_fault(
    change: impl Fn(&mut Store) -> Result<Commit, Error>,
    after: impl Fn(&mut BTreeMap<String, Delta>),
) {
    let original = tempfile::tempdir().unwrap();
    let mut store = create(original.path());
    let mut deltas = BTreeMap::new();
    for k in 1..4 {
        let name = format!("v{k}");
        add(&mut store, &name, k).unwrap();
        deltas.insert(name, delta(k));
    }
    add_coded(&mut store, "coded", 8).unwrap();
    deltas.insert("coded".into(), delta(8));
    let mut changed = deltas.clone();
    after(&mut changed);
    let before = store.manifest().clone();
    drop(store);
    // One fault alone need not fail a removal, which has room kept for it and tries again.
    let mut failures = 0;
    for for_good in [false, true] {
        for at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            copy(original.path(), dir.path());
            let (disk, watch) = FullDisk::new(at, for_good);
            let mut store = Store::open_watched(dir.path(), facts(), Some(watch)).unwrap();
            disk.armed.store(true, Ordering::Relaxed);
            let outcome = change(&mut store);
            disk.armed.store(false, Ordering::Relaxed);
            match &outcome {
                Ok(commit) => assert_eq!(commit.generation, before.generation + 1),
                Err(Error::Io { source, .. }) => {
                    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
                    assert_eq!(*store.manifest(), before);
                    failures += 1;
                }
                Err(other) => panic!("{other}"),
            }
            let found = store.manifest().clone();
            drop(store);
            // What a new start finds is what the open store said, whole and without strays.
            let mut store = Store::open(dir.path(), facts()).unwrap();
            assert_eq!(*store.manifest(), found, "operation {at}");
            assert_whole(&store, if outcome.is_ok() { &changed } else { &deltas });
            // And the change that failed can be made again.
            if outcome.is_err() && at % 4 == 0 {
                change(&mut store).unwrap();
                assert_whole(&store, &changed);
            }
            if disk.done.load(Ordering::Relaxed) <= at {
                break;
            }
        }
    }
    assert!(failures >= 4, "{failures}");
}

#[test]
fn a_full_disk_leaves_nothing_half_added() {
    every_fault(
        |store| add(store, "new", 9),
        |deltas| drop(deltas.insert("new".into(), delta(9))),
    );
}

#[test]
fn a_full_disk_leaves_nothing_half_removed() {
    every_fault(
        |store| remove(store, "v2"),
        |deltas| drop(deltas.remove("v2")),
    );
}

#[test]
fn a_full_disk_leaves_nothing_half_replaced() {
    every_fault(
        |store| replace(store, delta(2).digest(), variant("v2", 9)),
        |deltas| drop(deltas.insert("v2".into(), delta(9))),
    );
}

#[test]
fn a_full_disk_leaves_nothing_half_coded() {
    every_fault(
        |store| add_coded(store, "new", 9),
        |deltas| drop(deltas.insert("new".into(), delta(9))),
    );
    every_fault(
        |store| remove(store, "coded"),
        |deltas| drop(deltas.remove("coded")),
    );
    every_fault(
        |store| {
            replace(
                store,
                coded(8).delta().about.source,
                coded_variant("coded", 9),
            )
        },
        |deltas| drop(deltas.insert("coded".into(), delta(9))),
    );
    every_fault(
        |store| replace(store, delta(2).digest(), coded_variant("v2", 9)),
        |deltas| drop(deltas.insert("v2".into(), delta(9))),
    );
}

#[test]
fn a_store_that_cannot_be_created_can_be_created_later() {
    for at in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let (disk, watch) = FullDisk::new(at, true);
        disk.armed.store(true, Ordering::Relaxed);
        assert!(matches!(
            Store::create_watched(dir.path(), facts(), Options::default(), Some(watch)),
            Err(Error::Io { .. })
        ));
        assert!(!Store::exists(dir.path()));
        assert_whole(&create(dir.path()), &BTreeMap::new());
    }
}

/// New files lie beside the old ones, and the manifest is the last of all.
#[test]
fn the_rename_of_the_manifest_is_the_commit_point() {
    let dir = tempfile::tempdir().unwrap();
    drop(create(dir.path()));
    let steps = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = steps.clone();
    let watch: DiskWatch = Box::new(move |operation, path| {
        seen.lock().unwrap().push((operation, path.to_owned()));
        Ok(())
    });
    let mut store = Store::open_watched(dir.path(), facts(), Some(watch)).unwrap();
    add(&mut store, "one", 1).unwrap();
    remove(&mut store, "one").unwrap();
    let steps = steps.lock().unwrap();
    for (operation, path) in steps.iter() {
        let in_place = matches!(
            operation,
            Operation::CreateFile | Operation::Write | Operation::Sync
        );
        assert!(
            !in_place || path.extension().is_some_and(|end| end == "partial"),
            "{operation:?} {}",
            path.display()
        );
    }
    let renames: Vec<_> = steps
        .iter()
        .filter(|(operation, _)| *operation == Operation::Rename)
        .collect();
    let manifests = renames
        .iter()
        .filter(|(_, path)| path.ends_with("manifest.json.partial"))
        .count();
    assert_eq!(manifests, 2);
    assert!(renames.last().unwrap().1.ends_with("manifest.json.partial"));
}
