//! The model compiled in: its variants are there after the first start and stay.

use super::*;
use choir::catalog::base::shipped;
use choir::catalog::{AdditionStage, RemoveRequest};

/// The files of all variants; there is no bank.
fn kept(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    assert!(banks(data).is_empty());
    files(&data.join("variants"))
}

/// As a start without options does.
fn embedded(data: &Path) -> CatalogConfig {
    CatalogConfig {
        keep: None,
        ..config(data, BaseSource::Embedded)
    }
}

#[test]
fn the_first_start_seeds_the_store_and_the_second_serves_the_same() {
    let dir = tempfile::tempdir().expect("directory");
    let mut stages = Vec::new();
    let first =
        Catalog::open(embedded(dir.path()), |progress| stages.push(progress)).expect("open");
    assert!(
        stages.is_sorted_by(|a, b| a.fraction <= b.fraction),
        "{stages:?}"
    );
    assert_eq!(
        stages.last().map(|last| last.stage),
        Some(AdditionStage::Publishing)
    );
    let (catalog, engine) = serve(first);
    let shipped = shipped().expect("shipped");
    let mut expected: Vec<_> = shipped.iter().map(|one| one.name.to_owned()).collect();
    expected.sort();
    assert_eq!(names(&catalog), expected);
    for info in catalog.list() {
        assert_eq!((info.keep, info.banks.len()), (Keep::Coded, 0), "{info:?}");
        assert!(
            info.bits.is_some_and(|bits| bits <= 1.05) && info.relative_error < Some(0.9),
            "{info:?}"
        );
        // What its maker measured goes with it.
        assert!(
            info.share.is_some_and(|share| share.share > 0.96),
            "{}",
            info.name
        );
    }
    let before = (catalog.list(), catalog.status(), kept(dir.path()));
    assert_eq!(
        (before.1.generation, before.1.variants),
        (1, expected.len())
    );
    let answers = ["kjv", "roman"].map(|name| answer(&engine, name));
    drop((catalog, engine));

    let (catalog, engine) = serve(Catalog::open(embedded(dir.path()), |_| {}).expect("open"));
    assert_eq!((catalog.list(), catalog.status(), kept(dir.path())), before);
    assert_eq!(["kjv", "roman"].map(|name| answer(&engine, name)), answers);

    // They lie there as they were shipped; taken out and added again they are the same.
    for one in &shipped {
        assert!(
            before.2.values().any(|bytes| bytes == one.packed),
            "{}",
            one.name
        );
    }
    let kjv = shipped.iter().find(|one| one.name == "kjv").expect("kjv");
    catalog
        .remove("kjv", RemoveRequest::default())
        .expect("remove");
    assert_ne!(kept(dir.path()), before.2);
    let again = addition("kjv", CheckpointSource::Bytes(kjv.packed.to_vec()));
    let again = catalog.add(again, |_| {}).expect("add").variant;
    assert_eq!(kept(dir.path()), before.2);
    assert_eq!(answer(&engine, "kjv"), answers[0]);
    let first = before
        .0
        .into_iter()
        .find(|info| info.name == "kjv")
        .expect("kjv");
    let comparable = VariantInfo {
        source: first.source.clone(),
        added: first.added,
        ..again
    };
    assert_eq!(comparable, first);
}

#[test]
fn a_superposed_store_is_made_of_the_same_variants() {
    let dir = tempfile::tempdir().expect("directory");
    let opened = Catalog::open(config(dir.path(), BaseSource::Embedded), |_| {});
    let (catalog, engine) = serve(opened.expect("open"));
    for info in catalog.list() {
        assert_eq!(info.keep, Keep::Superposed, "{}", info.name);
        assert!(
            info.archived && info.cosine > Some(0.3) && info.relative_error.is_some(),
            "{info:?}"
        );
    }
    let before = (banks(dir.path()), answer(&engine, "kjv"));
    // From its archive: the same bits.
    let kjv = fs::read_dir(dir.path().join("variants/kjv")).expect("folder");
    let archive = kjv
        .map(|file| file.expect("file").path())
        .find(|path| path.to_string_lossy().contains("delta-"))
        .expect("an archive");
    let archive = fs::read(archive).expect("archive");
    let seed = catalog.get("kjv").expect("kjv").seed;
    catalog
        .remove("kjv", RemoveRequest::default())
        .expect("remove");
    assert_ne!(banks(dir.path()), before.0);
    let again = AddRequest {
        seed: Some(seed),
        ..addition("kjv", CheckpointSource::Bytes(archive))
    };
    catalog.add(again, |_| {}).expect("add");
    assert_eq!((banks(dir.path()), answer(&engine, "kjv")), before);
}
