use std::collections::BTreeMap;

use super::*;

fn facts() -> BaseFacts {
    BaseFacts {
        digest: Digest([1; 32]),
        tokenizer: Digest([2; 32]),
        shapes: BTreeMap::new(),
    }
}

#[test]
fn names_that_are_safe_in_a_path_are_allowed() {
    let longest = "x".repeat(64);
    for name in [
        "a",
        "kjv",
        "devils-dictionary",
        "v1-2_b",
        "0",
        "Base2",
        &longest,
    ] {
        check_name(name).unwrap();
    }
}

#[test]
fn other_names_are_refused_and_not_repeated_at_length() {
    let long = "x".repeat(10_000);
    let bad = [
        "", ".", "..", ".hidden", "v1.2", "-flag", "_x", "a/b", "a\\b", "../up", "a b", "a\0",
        "a\n", "é", "base", "BASE", &long,
    ];
    for name in bad {
        let error = check_name(name).unwrap_err();
        assert!(matches!(error, Error::BadName { .. }), "{name:?}");
        assert!(error.to_string().len() < 300);
    }
}

#[test]
fn bank_names_are_read_back() {
    for kind in BankKind::ALL {
        let id = BankId { kind, number: 12 };
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    for text in ["", "body", "body-", "body-x", "tail-1", "head--1"] {
        assert!(text.parse::<BankId>().is_err(), "{text}");
    }
}

/// A manifest in which `members` are in banks, by name, seed and bank numbers.
fn manifest(members: &[(&str, u64, u32)]) -> Manifest {
    let mut manifest = Manifest::empty(&facts(), Options::default());
    for (name, seed, number) in members {
        let id = BankId {
            kind: BankKind::Body,
            number: *number,
        };
        let file = FileRecord::by_digest("private", b"");
        let bank = manifest.banks.entry(id).or_insert(BankRecord {
            generation: 1,
            members: vec![],
            file: file.clone(),
        });
        bank.members.push((*name).to_owned());
        let record = VariantRecord {
            kept: StoredAs::Superposed {
                banks: vec![id],
                private: file,
                archive: None,
            },
            transform: TransformRecord::of(Keep::Superposed),
            seed: *seed,
            scales: Scales::all(0.7),
            process: StoredProcess::Absorbing,
            defaults: SamplerDefaults::default(),
            delta: Digest([3; 32]),
            source: "somewhere \"quoted\"".to_owned(),
            added: 1_700_000_000,
            quality: Some(Quality {
                cosine: Some(0.51234),
                relative_error: 1.7,
            }),
            share: None,
            manner: None,
            moved: None,
        };
        manifest.variants.insert((*name).to_owned(), record);
    }
    manifest
}

#[test]
fn a_variant_goes_into_the_emptiest_bank_that_can_take_its_seed() {
    let full = [("a", 1, 0), ("b", 2, 0), ("c", 3, 0), ("d", 4, 0)];
    let place = |members: &[_], seed| manifest(members).place(BankKind::Body, seed, 1).number;
    assert_eq!(place(&[], 9), 0);
    assert_eq!(place(&full[..3], 9), 0);
    assert_eq!(place(&full, 9), 1);
    assert_eq!(
        place(&full[..3], 2),
        1,
        "never beside a variant of the same seed"
    );
    assert_eq!(
        place(&[("e", 5, 2)], 9),
        2,
        "an existing bank before a new one"
    );
    assert_eq!(place(&[("e", 5, 1)], 5), 0, "the first free number");
    assert_eq!(manifest(&full).place(BankKind::Head, 9, 1).number, 0);
    let uneven = [
        ("a", 1, 0),
        ("b", 2, 0),
        ("c", 3, 1),
        ("d", 4, 3),
        ("e", 5, 3),
    ];
    assert_eq!(place(&uneven, 9), 1);
    assert_eq!(place(&uneven, 3), 0, "the emptiest has its seed");
    let coming = |coming| manifest(&uneven).place(BankKind::Body, 9, coming).number;
    assert_eq!(
        (coming(7), coming(8)),
        (1, 2),
        "no more banks than all will need, and as many at once"
    );
}

#[test]
fn a_manifest_is_read_back_and_its_size_is_bounded() {
    let manifest = manifest(&[("a", u64::MAX, 0), ("b", 2, 0)]);
    let file = manifest_file::encode(&manifest).unwrap();
    assert_eq!(manifest_file::decode(&file).unwrap(), (manifest, 2));
    assert!(serde_json::from_slice::<serde_json::Value>(&file).is_ok());
    assert!(file.len() < 2 * 1500, "{}", file.len());
}

#[test]
fn no_flipped_bit_of_a_manifest_goes_unnoticed() {
    let file = manifest_file::encode(&manifest(&[("a", 1, 0)])).unwrap();
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(
            matches!(manifest_file::decode(&damaged), Err(Error::Corrupt { .. })),
            "byte {at}"
        );
        assert!(
            matches!(
                manifest_file::decode(&file[..at]),
                Err(Error::Corrupt { .. })
            ),
            "cut at {at}"
        );
    }
}

/// Encodes JSON fields with a checksum that fits them.
fn forged(fields: &str) -> Vec<u8> {
    format!(
        "{{\n  \"sha256\": \"{}\",{fields}\n",
        Digest::of(fields.as_bytes())
    )
    .into_bytes()
}

#[test]
fn manifests_that_make_no_sense_are_refused() {
    let error = manifest_file::decode(&forged("\"format\": 9, \"anything\": []}")).unwrap_err();
    assert!(matches!(error, Error::Format { found: 9 }), "{error}");
    assert!(error.to_string().contains("format 9"), "{error}");
    for fields in ["", "}", "\"format\": 1}", "\"format\": 1,"] {
        assert!(
            matches!(
                manifest_file::decode(&forged(fields)),
                Err(Error::Corrupt { .. })
            ),
            "{fields}"
        );
    }
    let mut outside = manifest(&[("a", 1, 0)]);
    let record = outside.variants.remove("a").unwrap();
    outside.variants.insert("../a".to_owned(), record);
    let mut unknown_member = manifest(&[("a", 1, 0)]);
    unknown_member.variants.clear();
    let mut no_bank = manifest(&[("a", 1, 0)]);
    no_bank.banks.clear();
    let named = |name: &str| {
        let mut manifest = manifest(&[("a", 1, 0)]);
        for bank in manifest.banks.values_mut() {
            bank.file.name = name.to_owned();
        }
        manifest
    };
    let (up, hidden, empty) = (named("../1.safetensors"), named(".1"), named(""));
    for bad in [outside, unknown_member, no_bank, up, hidden, empty] {
        let file = manifest_file::encode(&bad).unwrap();
        assert!(matches!(
            manifest_file::decode(&file),
            Err(Error::Corrupt { .. })
        ));
    }
}

#[test]
fn a_store_of_something_else_is_refused() {
    let manifest = manifest(&[]);
    manifest.check(&facts()).unwrap();
    let other = BaseFacts {
        digest: Digest([9; 32]),
        ..facts()
    };
    assert!(matches!(
        manifest.check(&other),
        Err(Error::OtherBase { .. })
    ));
    let other = BaseFacts {
        tokenizer: Digest([9; 32]),
        ..facts()
    };
    assert!(matches!(
        manifest.check(&other),
        Err(Error::OtherTokenizer { .. })
    ));
    let mut later = self::manifest(&[("a", 1, 0)]);
    later.check(&facts()).unwrap();
    for record in later.variants.values_mut() {
        record.transform.version += 1;
    }
    assert!(matches!(
        later.check(&facts()),
        Err(Error::OtherTransform { .. })
    ));
}
