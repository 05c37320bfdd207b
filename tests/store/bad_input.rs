//! What is refused, and that nothing changes then.

use choir::superposition::Mismatch;

use super::*;

/// A store with two variants.
fn filled(dir: &Path) -> Store {
    let mut store = create(dir);
    add(&mut store, "one", 1).unwrap();
    add(&mut store, "two", 2).unwrap();
    store
}

fn refuse(change: impl FnOnce(&mut Store) -> Result<Commit, Error>) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path());
    let before = (store.manifest().clone(), files_in(dir.path()));
    let error = change(&mut store).unwrap_err();
    assert_eq!((store.manifest().clone(), files_in(dir.path())), before);
    drop(store);
    assert_eq!(
        *Store::open(dir.path(), facts()).unwrap().manifest(),
        before.0
    );
    error
}

#[test]
fn names_are_refused() {
    for taken in ["one", "ONE"] {
        assert!(
            matches!(refuse(|store| add(store, taken, 3)), Error::NameTaken { name } if name == "one")
        );
    }
    let long = "x".repeat(10_000);
    for bad in ["", "../one", "a/b", ".a", "a\u{7}b", "base", &long] {
        assert!(
            matches!(refuse(|store| add(store, bad, 3)), Error::BadName { .. }),
            "{bad:?}"
        );
    }
    for unknown in ["three", "base", "../one", &long] {
        assert!(
            matches!(
                refuse(|store| remove(store, unknown)),
                Error::UnknownVariant { .. }
            ),
            "{unknown:?}"
        );
    }
}

#[test]
fn a_generation_that_has_moved_is_refused() {
    let moved = |error| {
        matches!(
            error,
            Error::GenerationMoved {
                expected: 1,
                current: 2
            }
        )
    };
    assert!(moved(refuse(|store| store.add(
        variant("three", 3),
        Some(1),
        &mut |_| {}
    ))));
    assert!(moved(refuse(|store| store.remove(
        "one",
        None,
        Some(1),
        &mut |_| {}
    ))));
}

#[test]
fn a_replacement_of_what_is_gone_is_refused() {
    let error = refuse(|store| replace(store, delta(2).digest(), variant("one", 3)));
    assert!(
        matches!(error, Error::DeltaMoved { expected, found, .. }
            if expected == delta(2).digest() && found == delta(1).digest()),
        "{error}"
    );
    let error = refuse(|store| replace(store, delta(3).digest(), variant("three", 4)));
    assert!(matches!(error, Error::UnknownVariant { .. }), "{error}");
}

#[test]
fn a_delta_of_another_base_is_refused() {
    let with = |change: fn(&mut Delta)| {
        let mut changed = delta(3);
        change(&mut changed);
        let mut three = variant("three", 3);
        three.content = Content::Superposed {
            delta: Box::new(changed),
            seed: None,
        };
        refuse(|store| store.add(three, None, &mut |_| {}))
    };
    let error = with(|delta| delta.base = Digest([7; 32]));
    assert!(
        matches!(error, Error::Mismatch(Mismatch::OtherBase { .. })),
        "{error}"
    );
    let error = with(|delta| drop(delta.matrices.remove(HEAD)));
    assert!(matches!(error, Error::Mismatch(Mismatch::Missing { tensor }) if tensor == HEAD));
    let error = with(|delta| delta.vectors.get_mut("norm").unwrap().shape = vec![1, 7]);
    assert!(matches!(error, Error::Mismatch(Mismatch::Shape { tensor, .. }) if tensor == "norm"));
    let error = with(|delta| {
        drop(delta.vectors.insert(
            "extra".to_owned(),
            NamedTensor {
                shape: vec![1],
                data: vec![0.0],
            },
        ))
    });
    assert!(matches!(error, Error::Mismatch(Mismatch::Extra { tensor }) if tensor == "extra"));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let mut three = variant("three", 3);
    three.scales = Scales::all(f32::NAN);
    assert!(matches!(
        refuse(|store| store.add(three, None, &mut |_| {})),
        Error::BadScale { .. }
    ));
    for (bank_capacity, head_capacity, bad) in [
        (0, 1, "bank_capacity"),
        (1, 0, "head_capacity"),
        (1, 1025, "head_capacity"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            bank_capacity,
            head_capacity,
            ..Options::default()
        };
        let refused = Store::create(dir.path(), facts(), options).err().unwrap();
        assert!(matches!(refused, Error::BadOption { field, .. } if field == bad));
    }
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = create(dir.path());
    assert!(matches!(
        Store::open(dir.path(), facts()),
        Err(Error::Locked { .. })
    ));
    drop(store);
    assert!(matches!(
        Store::create(dir.path(), facts(), Options::default()),
        Err(Error::Exists { .. })
    ));
    Store::open(dir.path(), facts()).unwrap();
}

#[test]
fn a_directory_without_a_store_or_of_another_base_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Store::open(dir.path(), facts()),
        Err(Error::NotAStore { .. })
    ));
    assert!(matches!(
        Store::open(&dir.path().join("none"), facts()),
        Err(Error::NotAStore { .. })
    ));
    drop(filled(dir.path()));
    let other = BaseFacts {
        digest: Digest([1; 32]),
        ..facts()
    };
    assert!(matches!(
        Store::open(dir.path(), other),
        Err(Error::OtherBase { .. })
    ));
    let other = BaseFacts {
        tokenizer: Digest([1; 32]),
        ..facts()
    };
    assert!(matches!(
        Store::open(dir.path(), other),
        Err(Error::OtherTokenizer { .. })
    ));
    Store::open(dir.path(), facts()).unwrap();
}

#[test]
fn every_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path());
    add_coded(&mut store, "coded", 3).unwrap();
    let files: Vec<_> = store
        .files()
        .into_iter()
        .chain([PathBuf::from("manifest.json")])
        .collect();
    assert_eq!(files.len(), 3 + 2 * 2 + 1 + 1); // a body, two heads; a delta and what is private of each; a code; the manifest
    drop(store);
    for file in files {
        let path = dir.path().join(&file);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() * 3 / 4] ^= 4;
        for damaged in [
            Some(&flipped[..]),
            Some(&whole[..whole.len() / 2]),
            Some(&b""[..]),
            None,
        ] {
            match damaged {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None if file.ends_with("manifest.json") => continue, // then there is no store
                None => fs::remove_file(&path).unwrap(),
            }
            match Store::open(dir.path(), facts()).err() {
                Some(Error::Corrupt { path, .. }) => {
                    assert!(
                        path.ends_with(&file),
                        "{} for {}",
                        path.display(),
                        file.display()
                    )
                }
                other => panic!("{}: {other:?}", file.display()),
            }
        }
        fs::write(&path, whole).unwrap();
        Store::open(dir.path(), facts()).unwrap();
    }
}

/// Damage that comes while the store is open is found when the file is read.
#[test]
fn damage_under_an_open_store_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = filled(dir.path());
    let bank = store
        .files()
        .into_iter()
        .find(|path| path.starts_with("banks/body-0"))
        .unwrap();
    fs::write(dir.path().join(&bank), b"something else").unwrap();
    for error in [
        add(&mut store, "three", 3).unwrap_err(),
        remove(&mut store, "one").unwrap_err(),
    ] {
        assert!(matches!(error, Error::Corrupt { path, .. } if path.ends_with(&bank)));
    }
    assert_eq!(store.manifest().generation, 2);
}
