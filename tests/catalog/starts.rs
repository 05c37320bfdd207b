//! Starts: what a data directory and a base may be, and what is said of those that may not.

use super::*;
use choir::store;
use choir::train::tokenizer;

fn refused(place: &TestDir, config: CatalogConfig) -> Error {
    let before = files(place.0.path());
    let error = Catalog::open(config, |_| {}).err().expect("refused");
    assert_eq!(files(place.0.path()), before, "{error}");
    error
}

#[test]
fn a_base_in_a_folder_starts_without_variants_and_starts_again() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let (list, status) = (catalog.list(), catalog.status());
    assert_eq!((status.generation, status.variants), (3, 3));
    let answers = ["one", "two", "three"].map(|name| answer(&engine, name));
    assert_ne!(answers[0], answers[1]);
    drop((catalog, engine));
    let (catalog, engine) = serve(place.open().expect("open"));
    assert_eq!((catalog.list(), catalog.status()), (list, status));
    assert_eq!(
        ["one", "two", "three"].map(|name| answer(&engine, name)),
        answers
    );
}

#[test]
fn a_store_keeps_its_capacities() {
    let place = TestDir::new();
    let mut config = place.config();
    (config.bank_capacity, config.head_capacity) = (Some(3), Some(1));
    drop(Catalog::open(config.clone(), |_| {}).expect("open"));
    for (bank_capacity, head_capacity, field) in [
        (Some(4), Some(1), "bank_capacity"),
        (None, Some(2), "head_capacity"),
    ] {
        let other = CatalogConfig {
            bank_capacity,
            head_capacity,
            ..config.clone()
        };
        let error = refused(&place, other);
        assert!(
            matches!(&error, Error::BadField { field: named, .. } if *named == field),
            "{error}"
        );
    }
    drop(Catalog::open(config, |_| {}).expect("the same"));
    drop(place.open().expect("none asked for"));
    let place = TestDir::new();
    let mut config = place.config();
    config.bank_capacity = Some(0);
    let error = refused(&place, config);
    assert!(
        matches!(
            error,
            Error::Store(store::Error::BadOption {
                field: "bank_capacity",
                ..
            })
        ),
        "{error}"
    );
}

#[test]
fn other_peoples_directories_are_left_alone() {
    let place = TestDir::new();
    fs::create_dir(place.data()).expect("directory");
    fs::write(place.data().join("thesis.tex"), "years of work").expect("file");
    assert!(matches!(
        refused(&place, place.config()),
        Error::DataDir { .. }
    ));
    let mut config = place.config();
    config.data_dir = place.data().join("thesis.tex");
    assert!(matches!(refused(&place, config), Error::DataDir { .. }));
    fs::remove_file(place.data().join("thesis.tex")).expect("remove");
    // What a first start that was cut off leaves does not stop the second.
    fs::write(place.data().join("manifest.json.partial"), "{").expect("file");
    drop(place.open().expect("open"));
    drop(place.open().expect("open"));
}

#[test]
fn two_processes_do_not_share_a_store() {
    let place = TestDir::new();
    let first = place.open().expect("open");
    assert!(matches!(
        refused(&place, place.config()),
        Error::Store(store::Error::Locked { .. })
    ));
    drop(first);
    drop(place.open().expect("open"));
}

#[test]
fn a_base_that_cannot_be_served_is_refused_and_says_why() {
    let place = TestDir::new();
    let base = |name: &str| place.base().join(name);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(base("config.json")).expect("config")).expect("json");
    let with = |field: &str, value: serde_json::Value| {
        let mut config = config.clone();
        config[field] = value;
        config.to_string().into_bytes()
    };
    let without = |name: &str| {
        let mut tensors = TINY.tensors.clone();
        tensors.remove(name).expect("tensor");
        checkpoint(&tensors)
    };
    let misshapen = |name: &str| {
        let mut tensors = TINY.tensors.clone();
        tensors.get_mut(name).expect("tensor").0.reverse();
        checkpoint(&tensors)
    };
    let pieces =
        tokenizer::train(&["the whale was seen at noon. ".repeat(50)], 600).expect("tokenizer");
    let whole = checkpoint(&TINY.tensors);
    let bad: [(&str, Vec<u8>, &str); 17] = [
        (
            "model.safetensors",
            without("blocks.0.attn_qkv.weight"),
            "blocks.0.attn_qkv.weight",
        ),
        (
            "model.safetensors",
            without("output_layer.linear.bias"),
            "output_layer.linear.bias",
        ),
        (
            "model.safetensors",
            misshapen("blocks.0.mlp.0.weight"),
            "blocks.0.mlp.0.weight",
        ),
        (
            "model.safetensors",
            whole[..whole.len() / 2].to_vec(),
            "truncated",
        ),
        ("model.safetensors", Vec::new(), "empty"),
        ("model.safetensors", b"PK\x03\x04pytorch".to_vec(), "pickle"),
        ("config.json", b"{".to_vec(), "config.json"),
        ("config.json", b"{}".to_vec(), "config.json"),
        ("config.json", with("n_heads", 0.into()), "n_heads"),
        ("config.json", with("n_heads", 3.into()), "n_heads"),
        ("config.json", with("block_size", 0.into()), "block_size"),
        (
            "config.json",
            with("model_length", 12.into()),
            "model_length",
        ),
        (
            "config.json",
            with("hidden_dim", (1_u64 << 62).into()),
            "hidden_dim",
        ),
        ("config.json", with("n_blocks", u64::MAX.into()), "n_blocks"),
        (
            "config.json",
            with("vocab_size", "many".into()),
            "config.json",
        ),
        ("tokenizer.json", b"not a tokenizer".to_vec(), "tokenizer"),
        ("tokenizer.json", pieces.into_bytes(), "pieces"),
    ];
    for (file, content, reason) in bad {
        let good = fs::read(base(file)).expect("file");
        fs::write(base(file), content).expect("write");
        let error = refused(&place, place.config());
        assert!(
            matches!(error, Error::Base { .. }) && error.to_string().contains(reason),
            "{file}, {reason}: {error}"
        );
        fs::remove_file(base(file)).expect("remove");
        let error = refused(&place, place.config());
        assert!(
            matches!(error, Error::Base { .. }) && error.to_string().contains(file),
            "{error}"
        );
        fs::write(base(file), good).expect("write");
    }
    drop(place.open().expect("as it was"));
}

#[test]
fn a_store_of_another_base_or_tokenizer_is_refused() {
    let place = TestDir::new();
    drop(place.served());
    let file = place.base().join("tokenizer.json");
    let good = fs::read(&file).expect("tokenizer");
    fs::write(&file, [&good[..], b"\n"].concat()).expect("write");
    let error = refused(&place, place.config());
    assert!(
        matches!(error, Error::Store(store::Error::OtherTokenizer { .. })),
        "{error}"
    );
    fs::write(&file, good).expect("write");
    fs::write(
        place.base().join("model.safetensors"),
        checkpoint(&tuned(9)),
    )
    .expect("write");
    let error = refused(&place, place.config());
    assert!(
        matches!(error, Error::Store(store::Error::OtherBase { .. })),
        "{error}"
    );
}

#[test]
fn damage_on_the_disk_is_found_at_the_start_and_named() {
    let place = TestDir::new();
    drop(place.served());
    let damaged = files(&place.data());
    let damaged = damaged.iter().filter(|(path, _)| !path.ends_with("lock"));
    for (path, good) in damaged {
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        fs::write(path, flipped).expect("write");
        match refused(&place, place.config()) {
            Error::Store(store::Error::Corrupt { path: named, .. }) => {
                assert!(path.ends_with(&named), "{named:?}")
            }
            other => panic!("{}: {other}", path.display()),
        }
        fs::write(path, good).expect("write");
    }
    drop(place.open().expect("as it was"));
}

/// Changes one weight of the base, in a file of the same size and, where asked, the same time.
fn change_base(place: &TestDir, same_time: bool) -> Vec<u8> {
    let path = place.base().join("model.safetensors");
    let time = fs::metadata(&path).expect("file").modified().expect("time");
    let before = fs::read(&path).expect("weights");
    let mut changed = before.clone();
    let middle = changed.len() / 8 * 4 + 2; // of a weight: what is last only goes with them
    changed[middle] ^= 1;
    fs::write(&path, changed).expect("weights");
    let file = fs::File::options().write(true).open(&path).expect("file");
    let time = if same_time {
        time
    } else {
        time + std::time::Duration::from_secs(1)
    };
    file.set_modified(time).expect("time");
    before
}

#[test]
fn a_rounded_base_is_read_from_the_stores_copy_until_its_files_change() {
    let place = TestDir::new();
    let config = CatalogConfig {
        place: Place::Host(Quantisation::Q8_0),
        ..place.config()
    };
    let open = |check_base| {
        let config = CatalogConfig {
            check_base,
            ..config.clone()
        };
        Catalog::open(config, |_| {})
    };
    let copy = place.data().join("base/q8_0.safetensors");
    let (catalog, engine) = serve(open(false).expect("open"));
    add(&catalog, "one", 1).expect("add");
    let answers = [
        answer(&engine, "one"),
        outcome(engine.submit(request(None, 24)).expect("submit")).1,
    ];
    drop((catalog, engine));
    let kept = fs::read(&copy).expect("a copy");

    // One copy, of the form that was served last.
    let other = CatalogConfig {
        place: Place::Host(Quantisation::Bf16),
        ..config.clone()
    };
    drop(Catalog::open(other, |_| {}).expect("in another form"));
    let copies = || {
        let folder = fs::read_dir(place.data().join("base")).expect("copies");
        let names = folder.map(|copy| copy.expect("a copy").file_name());
        names.collect::<Vec<_>>()
    };
    assert_eq!(copies(), ["bf16.safetensors"]);
    drop(open(false).expect("in the form before"));
    assert_eq!(copies(), ["q8_0.safetensors"]);
    assert_eq!(fs::read(&copy).expect("a copy"), kept);

    // From the copy: the same weights, which the published file is not asked for.
    change_base(&place, true);
    let (catalog, engine) = serve(open(false).expect("the copy is trusted"));
    assert_eq!(
        [
            answer(&engine, "one"),
            outcome(engine.submit(request(None, 24)).expect("submit")).1
        ],
        answers
    );
    drop((catalog, engine));
    let refused = |check_base| {
        let error = open(check_base).err().expect("another base");
        let other = matches!(error, Error::Store(store::Error::OtherBase { .. }));
        assert!(other, "{error}");
    };
    refused(true);
    change_base(&place, false);
    drop(open(false).expect("changed back, and read anew"));
    change_base(&place, false);
    refused(false); // the time is another
    change_base(&place, false);

    // A copy that was cut is made again, and one that cannot be made is missed by nobody.
    fs::write(&copy, &kept[..kept.len() / 2]).expect("cut");
    drop(open(false).expect("read anew"));
    assert_eq!(fs::read(&copy).expect("a copy").len(), kept.len());
    fs::remove_file(&copy).expect("remove");
    fs::create_dir(&copy).expect("in its place");
    let (_catalog, engine) = serve(open(false).expect("without"));
    assert_eq!(
        [
            answer(&engine, "one"),
            outcome(engine.submit(request(None, 24)).expect("submit")).1
        ],
        answers
    );
}
