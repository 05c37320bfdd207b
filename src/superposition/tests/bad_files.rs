use super::*;

fn mismatch(change: impl Fn(&mut NamedTensors)) -> Mismatch {
    let mut tuned = fine_tuned(1);
    change(&mut tuned);
    match Delta::between(&base(), &tuned).unwrap_err() {
        DeltaError::Mismatch(mismatch) => mismatch,
        other => panic!("{other}"),
    }
}

#[test]
fn a_checkpoint_of_other_tensors_is_refused_by_name() {
    let tensor = || HEAD.to_owned();
    assert_eq!(
        mismatch(|t| drop(t.0.remove(HEAD))),
        Mismatch::Missing { tensor: tensor() }
    );
    let extra = NamedTensor {
        shape: vec![1],
        data: vec![0.0],
    };
    let error = mismatch(|t| drop(t.0.insert("spare".to_owned(), extra.clone())));
    assert_eq!(
        error,
        Mismatch::Extra {
            tensor: "spare".to_owned()
        }
    );
    let error = mismatch(|t| t.0.get_mut(HEAD).unwrap().shape = vec![33, 9]);
    assert_eq!(
        error,
        Mismatch::Shape {
            tensor: tensor(),
            expected: vec![9, 33],
            found: vec![33, 9]
        }
    );
    for value in [f32::NAN, f32::INFINITY] {
        let error = mismatch(|t| t.0.get_mut(HEAD).unwrap().data[5] = value);
        assert_eq!(
            error,
            Mismatch::NotFinite {
                tensor: tensor(),
                index: 5
            }
        );
    }
}

#[test]
fn a_checkpoint_of_another_base_is_refused() {
    let other = tensors("another", 1, 1.0);
    assert!(matches!(
        Delta::between(&base(), &other),
        Err(DeltaError::Mismatch(Mismatch::Unrelated { .. }))
    ));
    assert!(matches!(
        pack(&base(), &other, 32),
        Err(DeltaError::Mismatch(Mismatch::Unrelated { .. }))
    ));
    let packed = pack(&other, &moved(&other), 32).unwrap();
    let refused = Delta::read(&base(), &packed).unwrap_err();
    assert!(
        matches!(refused, DeltaError::Mismatch(Mismatch::OtherBase { .. })),
        "{refused}"
    );
    let archive = Delta {
        base: other.digest(),
        ..delta(1)
    }
    .to_archive();
    let refused = Delta::read(&base(), &archive).unwrap_err();
    assert!(
        matches!(refused, DeltaError::Mismatch(Mismatch::OtherBase { .. })),
        "{refused}"
    );
}

fn unreadable(bytes: &[u8]) -> Unreadable {
    match Delta::read(&base(), bytes) {
        Err(DeltaError::Unreadable(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_are_no_safetensors_are_named() {
    assert!(matches!(unreadable(b""), Unreadable::Empty));
    assert!(matches!(
        unreadable(b"PK\x03\x04\x14\x00archive/data.pkl"),
        Unreadable::Pickle
    ));
    assert!(matches!(
        unreadable(b"\x80\x02}q\x00(X\x05\x00\x00\x00"),
        Unreadable::Pickle
    ));
    assert!(matches!(
        unreadable(b"\x80\x04\x95\x10\x00\x00"),
        Unreadable::Pickle
    ));
    assert!(matches!(
        unreadable(b"GGUF\x03\x00\x00\x00 and so on"),
        Unreadable::Foreign { .. }
    ));
    assert!(matches!(
        unreadable(b"\x08\x00\x00\x00\x00\x00\x00\x00not json"),
        Unreadable::Malformed { .. }
    ));
}

#[test]
fn every_truncation_is_refused() {
    let whole = [
        checkpoint(&fine_tuned(1)),
        delta(1).to_archive(),
        pack(&base(), &fine_tuned(1), 32).unwrap(),
    ];
    for file in whole {
        for end in (1..file.len()).step_by(97).chain([file.len() - 1]) {
            assert!(
                matches!(unreadable(&file[..end]), Unreadable::WrongLength),
                "{end} of {}",
                file.len()
            );
        }
        assert!(matches!(
            unreadable(&[&file[..], &[0]].concat()),
            Unreadable::Trailing { bytes: 1 }
        ));
    }
}

/// Whatever is in a file, reading it ends in an answer.
#[test]
fn damaged_bytes_never_panic() {
    let mut stream = Stream::new(Key::derive(&[b"damage"]));
    for file in [
        delta(1).to_archive(),
        pack(&base(), &fine_tuned(1), 32).unwrap(),
        bank(2).to_bytes(),
    ] {
        for _ in 0..2000 {
            let mut damaged = file.clone();
            let header = usize::from(u16::from_le_bytes([file[0], file[1]]));
            for _ in 0..=stream.below(3) {
                let at = stream.below(header + 40);
                damaged[at] = b"0123456789\",:[]{}xIFU\x00\xff"[stream.below(23)];
            }
            let _ = Delta::read(&base(), &damaged);
            let _ = Delta::from_archive(&damaged);
            let _ = Bank::from_bytes(&damaged);
            let _ = Private::from_bytes(&damaged);
        }
    }
}

fn encode(names: &[&str], values: container::Values<'_>, shape: &[usize]) -> Vec<u8> {
    let [name] = names else { panic!("one name") };
    let entry = container::Entry {
        name: (*name).to_owned(),
        shape: shape.to_vec(),
        values,
    };
    container::encode(&BTreeMap::new(), vec![entry])
}

#[test]
fn odd_tensors_are_refused() {
    let integers = encode(&["norm"], container::Values::I32(&[1; 7]), &[7]);
    assert!(matches!(unreadable(&integers), Unreadable::Dtype { .. }));
    let nothing = encode(&["norm"], container::Values::F32(&[]), &[0]);
    assert!(matches!(
        unreadable(&nothing),
        Unreadable::NoElements { .. }
    ));
    let one = [0.0];
    let entry = |name: &str| container::Entry {
        name: name.to_owned(),
        shape: vec![1],
        values: container::Values::F32(&one),
    };
    let twice = container::encode(
        &BTreeMap::new(),
        vec![entry("norm"), entry("backbone.norm")],
    );
    assert!(matches!(unreadable(&twice), Unreadable::Twice { .. }));
}

#[test]
fn a_directory_and_a_missing_file_are_named() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(
        read_file(directory.path()),
        Err(Unreadable::Directory)
    ));
    assert!(matches!(
        read_file(&directory.path().join("none")),
        Err(Unreadable::Io(_))
    ));
}
