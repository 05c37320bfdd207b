//! What an addition or a removal is refused for, and that nothing has changed then.

use super::*;
use choir::catalog::RemoveRequest;
use choir::store;
use choir::superposition::{DeltaError, HEAD, Mismatch, NamedTensors, Unreadable, pack};

/// A served place that says of every change whether it was refused without a trace.
struct Refusing {
    place: TestDir,
    catalog: Catalog,
    engine: EngineHandle,
    before: (Vec<VariantInfo>, BTreeMap<PathBuf, Vec<u8>>),
}

impl Refusing {
    fn new() -> Self {
        let place = TestDir::new();
        let (catalog, engine) = place.served();
        let before = (catalog.list(), files(&place.data()));
        Refusing {
            place,
            catalog,
            engine,
            before,
        }
    }

    fn change<T>(&self, change: impl FnOnce(&Catalog) -> Result<T, Error>) -> Error {
        let error = change(&self.catalog).err().expect("refused");
        assert_eq!(
            (self.catalog.list(), files(&self.place.data())),
            self.before,
            "{error}"
        );
        assert_eq!(self.engine.generation().number, 3, "{error}");
        error
    }

    fn add(&self, request: AddRequest) -> Error {
        self.change(|catalog| catalog.add(request, |_| {}))
    }

    /// A checkpoint that is refused for what is in it.
    fn mismatch(&self, bytes: Vec<u8>) -> Mismatch {
        match self.add(addition("new", CheckpointSource::Bytes(bytes))) {
            Error::Checkpoint {
                source: DeltaError::Mismatch(mismatch),
                ..
            } => mismatch,
            other => panic!("{other}"),
        }
    }

    /// A file that is refused for its form.
    fn unreadable(&self, source: CheckpointSource) -> Unreadable {
        let named = match &source {
            CheckpointSource::Path(path) => path.display().to_string(),
            CheckpointSource::Bytes(_) | CheckpointSource::Spooled(_) => "uploaded".into(),
        };
        match self.add(addition("new", source)) {
            Error::Checkpoint {
                source: DeltaError::Unreadable(unreadable),
                origin,
            } => {
                assert_eq!(origin, named);
                unreadable
            }
            other => panic!("{other}"),
        }
    }
}

fn good() -> CheckpointSource {
    CheckpointSource::Bytes(checkpoint(&tuned(4)))
}

#[test]
fn checkpoints_that_do_not_match_the_base_are_refused_by_tensor() {
    let refusing = Refusing::new();
    let changed = |change: fn(&mut Tensors)| {
        let mut tensors = tuned(4);
        change(&mut tensors);
        refusing.mismatch(checkpoint(&tensors))
    };
    let mismatch = changed(|tensors| drop(tensors.remove("blocks.0.mlp.2.weight")));
    assert!(
        matches!(&mismatch, Mismatch::Missing { tensor } if tensor == "blocks.0.mlp.2.weight"),
        "{mismatch}"
    );
    let mismatch = changed(|tensors| drop(tensors.insert("lora_A".into(), (vec![1], vec![1.0]))));
    assert!(
        matches!(&mismatch, Mismatch::Extra { tensor } if tensor == "lora_A"),
        "{mismatch}"
    );
    let mismatch = changed(|tensors| tensors.get_mut(HEAD).expect("head").0.reverse());
    assert!(
        matches!(&mismatch, Mismatch::Shape { tensor, .. } if tensor == HEAD),
        "{mismatch}"
    );
    let mismatch = changed(|tensors| tensors.get_mut(HEAD).expect("head").1[5] = f32::NAN);
    assert!(
        matches!(&mismatch, Mismatch::NotFinite { tensor, index: 5 } if tensor == HEAD),
        "{mismatch}"
    );
    let other = noise(&TINY.config, 99, 0.3);
    let mismatch = refusing.mismatch(checkpoint(&other));
    assert!(matches!(mismatch, Mismatch::Unrelated { .. }), "{mismatch}");
    // A packed delta says which base it is for.
    let named =
        |tensors: &Tensors| NamedTensors::from_safetensors(&checkpoint(tensors)).expect("tensors");
    let packed = pack(&named(&tuned(1)), &named(&tuned(4)), 32).expect("pack");
    let mismatch = refusing.mismatch(packed);
    assert!(matches!(mismatch, Mismatch::OtherBase { .. }), "{mismatch}");
    let packed = pack(&named(&TINY.tensors), &named(&tuned(4)), 32).expect("pack");
    refusing
        .catalog
        .add(addition("new", CheckpointSource::Bytes(packed)), |_| {})
        .expect("its own base");
}

#[test]
fn files_that_are_no_checkpoints_are_refused_by_their_form() {
    let refusing = Refusing::new();
    let whole = checkpoint(&tuned(4));
    let bytes = |bytes: &[u8]| refusing.unreadable(CheckpointSource::Bytes(bytes.to_vec()));
    assert!(matches!(bytes(&[]), Unreadable::Empty));
    assert!(matches!(
        bytes(b"PK\x03\x04archive/data.pkl"),
        Unreadable::Pickle
    ));
    assert!(matches!(
        bytes(&[0x80, 2, b'}', b'q', 0, b'.']),
        Unreadable::Pickle
    ));
    assert!(matches!(
        bytes(&whole[..whole.len() - 1]),
        Unreadable::WrongLength
    ));
    assert!(matches!(
        bytes(&[&whole[..], &[0]].concat()),
        Unreadable::Trailing { bytes: 1 }
    ));
    for malformed in [&whole[..7], &whole[..100], b"hello", &[0xFF; 64]] {
        bytes(malformed);
    }
    let path = |path: &Path| refusing.unreadable(CheckpointSource::Path(path.to_owned()));
    assert!(matches!(
        path(refusing.place.0.path()),
        Unreadable::NoWeights { .. }
    ));
    assert!(matches!(
        path(Path::new("/no/such/file")),
        Unreadable::Io(_)
    ));
    assert!(matches!(path(Path::new("")), Unreadable::Io(_)));
    assert!(matches!(
        path(&refusing.place.file("empty", b"")),
        Unreadable::Empty
    ));
    let vast = refusing.place.file("vast", b"");
    let far = choir::checkpoint::available().map_or(1 << 40, |bytes| 4 * bytes);
    (std::fs::File::options().write(true).open(&vast))
        .and_then(|file| file.set_len(far))
        .expect("a file with a hole");
    path(&vast); // by its first bytes: the rest costs nothing
    let half = refusing.place.file("half", &whole[..whole.len() / 2]);
    assert!(matches!(path(&half), Unreadable::WrongLength));
    #[cfg(unix)]
    assert!(matches!(path(Path::new("/dev/zero")), Unreadable::NotAFile));
}

#[test]
fn a_checkpoint_beside_another_tokenizer_or_configuration_is_refused() {
    let refusing = Refusing::new();
    let path = refusing.place.file("tuned", &checkpoint(&tuned(4)));
    let add = || refusing.add(addition("new", CheckpointSource::Path(path.clone())));
    let beside = |name: &str| path.with_file_name(name);
    let mut other: serde_json::Value = serde_json::from_str(&TINY.tokenizer).expect("tokenizer");
    let pieces = other["model"]["vocab"].as_object_mut().expect("pieces");
    {
        let mut ids = pieces.values_mut();
        std::mem::swap(ids.next().expect("id"), ids.next().expect("id"));
    }
    fs::write(beside("tokenizer.json"), other.to_string()).expect("write");
    let error = add();
    assert!(matches!(error, Error::OtherTokenizer { .. }), "{error}");
    fs::write(beside("tokenizer.json"), &TINY.tokenizer).expect("write");
    for (field, change) in [
        (
            "states",
            (|config| config.model_type = "duo".into()) as fn(&mut DitConfig),
        ),
        ("block_size", |config| config.block_size = Some(4)),
        ("time_conditioning", |config| {
            config.time_conditioning = Some(true)
        }),
        ("n_heads", |config| config.n_heads = 4),
    ] {
        let mut config = TINY.config.clone();
        change(&mut config);
        let config = serde_json::to_vec(&config).expect("json");
        fs::write(beside("config.json"), config).expect("write");
        let error = add();
        assert!(
            matches!(&error, Error::OtherConfig { field: named, .. } if *named == field),
            "{error}"
        );
    }
    fs::write(beside("config.json"), "{}").expect("write");
    assert!(matches!(
        refusing.unreadable(CheckpointSource::Path(path.clone())),
        Unreadable::Malformed { .. }
    ));
    fs::copy(
        refusing.place.base().join("config.json"),
        beside("config.json"),
    )
    .expect("copy");
    refusing
        .catalog
        .add(
            addition("new", CheckpointSource::Path(path.clone())),
            |_| {},
        )
        .expect("the same beside");
}

#[test]
fn names_numbers_and_generations_are_refused() {
    let refusing = Refusing::new();
    for taken in ["one", "ONE"] {
        let error = refusing.add(addition(taken, good()));
        assert!(
            matches!(error, Error::Store(store::Error::NameTaken { .. })),
            "{error}"
        );
    }
    let long = "x".repeat(10_000);
    for bad in [
        "", "..", "../one", "a/b", "a\\b", ".hidden", "a\u{7}b", "ü", "base", &long,
    ] {
        let error = refusing.add(addition(bad, good()));
        assert!(
            matches!(error, Error::Store(store::Error::BadName { .. })),
            "{error}"
        );
        assert!(error.to_string().len() < 300, "{error}");
        let error = refusing.change(|catalog| catalog.remove(bad, RemoveRequest::default()));
        assert!(
            matches!(error, Error::Store(store::Error::UnknownVariant { .. })),
            "{error}"
        );
        let error = refusing.change(|catalog| catalog.get(bad));
        assert!(
            matches!(error, Error::Store(store::Error::UnknownVariant { .. })),
            "{error}"
        );
    }
    for scale in [f32::NAN, f32::INFINITY] {
        let scaled = AddRequest {
            scale: Some(scale),
            ..addition("new", good())
        };
        let error = refusing.add(scaled);
        assert!(
            matches!(error, Error::Store(store::Error::BadScale { .. })),
            "{error}"
        );
    }
    for defaults in [
        SamplingParams {
            temperature: Some(f32::NAN),
            ..SamplingParams::default()
        },
        SamplingParams {
            block_size: Some(5),
            ..SamplingParams::default()
        },
        SamplingParams {
            steps: Some(0),
            ..SamplingParams::default()
        },
    ] {
        let with = AddRequest {
            defaults,
            ..addition("new", good())
        };
        let error = refusing.add(with);
        assert!(
            matches!(
                error,
                Error::BadField {
                    field: "defaults",
                    ..
                }
            ),
            "{error}"
        );
    }
    for expected in [0, 2, 4, u64::MAX] {
        let moved = |error: Error| match error {
            Error::Store(store::Error::GenerationMoved {
                expected,
                current: 3,
            }) => expected,
            other => panic!("{other}"),
        };
        let late = AddRequest {
            expected_generation: Some(expected),
            ..addition("new", good())
        };
        assert_eq!(moved(refusing.add(late)), expected);
        let late = RemoveRequest {
            expected_generation: Some(expected),
            ..RemoveRequest::default()
        };
        assert_eq!(
            moved(refusing.change(|catalog| catalog.remove("one", late))),
            expected
        );
    }
}

/// The base's weights are read again for every addition; they must still be the ones that are served.
#[test]
fn a_base_that_changed_under_the_catalog_is_noticed() {
    let refusing = Refusing::new();
    let weights = refusing.place.base().join("model.safetensors");
    fs::write(&weights, checkpoint(&tuned(9))).expect("write");
    let error = refusing.add(addition("new", good()));
    assert!(matches!(error, Error::Base { .. }), "{error}");
    fs::write(&weights, checkpoint(&TINY.tensors)).expect("write");
    refusing
        .catalog
        .add(addition("new", good()), |_| {})
        .expect("as it was");
}
