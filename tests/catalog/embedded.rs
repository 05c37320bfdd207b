//! The model compiled in: its variants are there after the first start and stay.

use super::*;
use choir::catalog::base::shipped;
use choir::catalog::{RemoveRequest, Stage};

#[test]
fn the_first_start_seeds_the_store_and_the_second_serves_the_same() {
    let dir = tempfile::tempdir().expect("directory");
    let mut stages = Vec::new();
    let first = Catalog::open(config(dir.path(), BaseSource::Embedded), |progress| {
        stages.push(progress)
    })
    .expect("open");
    assert!(
        stages.is_sorted_by(|a, b| a.fraction <= b.fraction),
        "{stages:?}"
    );
    assert_eq!(
        stages.last().map(|last| last.stage),
        Some(Stage::Publishing)
    );
    let (catalog, engine) = serve(first);
    let shipped = shipped().expect("shipped");
    let mut expected: Vec<_> = shipped.iter().map(|one| one.name.to_owned()).collect();
    expected.sort();
    assert_eq!(names(&catalog), expected);
    for info in catalog.list() {
        assert!(
            info.archived && info.cosine > Some(0.3) && info.relative_error.is_some(),
            "{info:?}"
        );
    }
    let before = (catalog.list(), catalog.status(), banks(dir.path()));
    assert_eq!(
        (before.1.generation, before.1.variants),
        (1, expected.len())
    );
    let answers = ["kjv", "roman"].map(|name| answer(&engine, name));
    drop((catalog, engine));

    let (catalog, engine) =
        serve(Catalog::open(config(dir.path(), BaseSource::Embedded), |_| {}).expect("open"));
    assert_eq!(
        (catalog.list(), catalog.status(), banks(dir.path())),
        before
    );
    assert_eq!(["kjv", "roman"].map(|name| answer(&engine, name)), answers);

    // Taken out and added again from what was shipped: the same bits.
    let kjv = shipped.iter().find(|one| one.name == "kjv").expect("kjv");
    catalog
        .remove("kjv", RemoveRequest::default())
        .expect("remove");
    assert_ne!(banks(dir.path()), before.2);
    let again = addition("kjv", Source::Bytes(kjv.packed.to_vec()));
    let again = catalog.add(again, |_| {}).expect("add").variant;
    assert_eq!(banks(dir.path()), before.2);
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
