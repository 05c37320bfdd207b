//! What is a fine-tune of a base, and what only looks like one.

use super::*;

/// A base with a square matrix.
fn square() -> NamedTensors {
    let mut base = base();
    let shape = vec![33, 33];
    let mut stream = Stream::new(Key::derive(&[b"square"]));
    let data = (0..33 * 33).map(|_| stream.normal() as f32).collect();
    base.0.insert(
        "blocks.0.attn_out.weight".to_owned(),
        NamedTensor { shape, data },
    );
    base
}

fn refused(base: &NamedTensors, tuned: &NamedTensors) -> Mismatch {
    match Relation::of(base, tuned).unwrap_err() {
        DeltaError::Mismatch(mismatch) => mismatch,
        other => panic!("{other}"),
    }
}

#[test]
fn a_transposed_matrix_is_named() {
    let base = square();
    let mut tuned = moved(&base);
    let name = "blocks.0.attn_out.weight";
    let data = &mut tuned.0.get_mut(name).unwrap().data;
    let rows = data.clone();
    for (at, value) in data.iter_mut().enumerate() {
        *value = rows[at % 33 * 33 + at / 33];
    }
    let found = refused(&base, &tuned);
    assert!(
        matches!(&found, Mismatch::UnrelatedTensor { tensor, .. } if tensor == name),
        "{found}"
    );
}

#[test]
fn an_outlier_is_named_whatever_tensor_it_is_in() {
    let base = square();
    for (name, value) in [
        (HEAD, 1e4),
        ("norm", -1e4),
        ("blocks.0.mlp.0.weight", 1e3),
        (HEAD, 1e30),
    ] {
        let mut tuned = moved(&base);
        tuned.0.get_mut(name).unwrap().data[3] = value;
        let found = refused(&base, &tuned);
        assert!(
            matches!(&found, Mismatch::Outlier { tensor, index: 3, .. } if tensor == name),
            "{name} {value}: {found}"
        );
    }
}

#[test]
fn the_base_itself_is_no_fine_tune() {
    let base = square();
    assert_eq!(refused(&base, &base.clone()), Mismatch::Same);
    let mut tuned = base.clone();
    tuned.0.get_mut("norm").unwrap().data[0] += 0.5;
    let relation = Relation::of(&base, &tuned).unwrap();
    assert_eq!((relation.moved, relation.revision), (0.0, false));
}

#[test]
fn a_delta_is_told_by_its_size() {
    let base = square();
    for (factor, revision) in [(1.1, false), (1.4, false), (1.6, true), (-0.2, false)] {
        let mut tuned = base.clone();
        for tensor in tuned.0.values_mut() {
            tensor.data.iter_mut().for_each(|value| *value *= factor);
        }
        if factor < 0.0 {
            assert!(matches!(refused(&base, &tuned), Mismatch::Unrelated { .. }));
            continue;
        }
        let relation = Relation::of(&base, &tuned).unwrap();
        assert!(
            (relation.moved - f64::from(factor - 1.0)).abs() < 1e-6,
            "{relation:?}"
        );
        assert_eq!(
            (relation.revision, relation.base),
            (revision, base.digest())
        );
    }
}

#[test]
fn tensors_of_zeros_are_related_to_anything() {
    let mut base = square();
    base.0.get_mut(HEAD).unwrap().data.fill(0.0);
    let mut tuned = moved(&base);
    tuned.0.get_mut(HEAD).unwrap().data.fill(1.0);
    assert!(!Relation::of(&base, &tuned).unwrap().revision);
    // So are those near 0, which a fine-tune made something else of.
    let away = |at: usize| if at.is_multiple_of(2) { 1e-3 } else { -1e-3 };
    for (at, value) in base.0.get_mut(HEAD).unwrap().data.iter_mut().enumerate() {
        *value = away(at);
    }
    assert!(!Relation::of(&base, &tuned).unwrap().revision);
}
