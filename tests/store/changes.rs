//! What a change does when all goes well.

use choir::store::CommitStage;
use proptest::prelude::*;

use super::*;

#[test]
fn ten_variants_fill_three_banks_and_ten_heads() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = create(dir.path());
    let names: Vec<_> = (0..10).map(|k| format!("v{k}")).collect();
    for (k, name) in names.iter().enumerate() {
        let commit = add(&mut store, name, k as u64).unwrap();
        assert_eq!(commit.generation, k as u64 + 1);
        assert_eq!(
            commit.changed_banks,
            store.manifest().variants[name].banks()
        );
    }
    let sizes: Vec<_> = store
        .manifest()
        .banks
        .iter()
        .map(|(id, bank)| (id.to_string(), bank.members.len()))
        .collect();
    let sizes: Vec<_> = sizes
        .iter()
        .map(|(id, members)| (&id[..], *members))
        .collect();
    let heads: Vec<_> = (0..10).map(|k| format!("head-{k}")).collect();
    let heads: Vec<_> = heads.iter().map(|id| (&id[..], 1)).collect();
    assert_eq!(
        sizes,
        [&[("body-0", 4), ("body-1", 4), ("body-2", 2)][..], &heads].concat()
    );

    let record = &store.manifest().variants["v3"];
    assert_eq!(record.seed, delta(3).digest().seed());
    assert_eq!(record.source, "fine-tune 3");
    let manifest = fs::metadata(dir.path().join("manifest.json"))
        .unwrap()
        .len();
    assert!(manifest < 10 * 4096, "{manifest}");

    for (k, name) in names.iter().enumerate() {
        let commit = remove(&mut store, name).unwrap();
        assert_eq!(
            commit.dropped_banks.len() + commit.changed_banks.len(),
            2,
            "{k}"
        );
    }
    assert!(store.manifest().banks.is_empty());
    assert_whole(&store, &BTreeMap::new());
}

#[test]
fn adding_all_at_once_is_one_generation_and_spreads_them_evenly() {
    let (one, all) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut one, mut all) = (create(one.path()), create(all.path()));
    for k in 0..4 {
        add(&mut one, &format!("v{k}"), k).unwrap();
    }
    let mut stages = Vec::new();
    let variants = (0..4).map(|k| variant(&format!("v{k}"), k)).collect();
    let commit = all
        .add_all(variants, Some(0), &mut |stage| stages.push(stage))
        .unwrap();
    assert_eq!(commit.generation, 1);
    assert_eq!(
        stages,
        [
            CommitStage::Accumulating,
            CommitStage::Measuring,
            CommitStage::Writing,
            CommitStage::Committing
        ]
    );
    for (id, record) in &one.manifest().banks {
        let other = &all.manifest().banks[id].file;
        assert_eq!(record.file.sha256, other.sha256, "{id}");
    }
    for (name, record) in &one.manifest().variants {
        assert_eq!(
            record.quality,
            all.manifest().variants[name].quality,
            "{name}"
        );
    }
    let variants = (4..7).map(|k| variant(&format!("v{k}"), k)).collect();
    all.add_all(variants, None, &mut |_| {}).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut whole = create(dir.path());
    whole
        .add_all(
            (0..7).map(|k| variant(&format!("v{k}"), k)).collect(),
            None,
            &mut |_| {},
        )
        .unwrap();
    let members = |store: &Store| -> Vec<_> {
        let body = store
            .manifest()
            .banks
            .iter()
            .filter(|(id, _)| id.kind == BankKind::Body);
        body.map(|(_, record)| record.members.len()).collect()
    };
    assert_eq!((members(&all), members(&whole)), (vec![4, 3], vec![4, 3]));
    let first = |store: &Store| store.manifest().variants["v1"].banks()[0].number;
    assert_eq!(
        (first(&all), first(&whole)),
        (0, 1),
        "in turn where all are known"
    );
    // One that fails takes the others with it.
    let variants = vec![variant("new", 8), variant("v1", 9)];
    let taken = all.add_all(variants, None, &mut |_| {}).unwrap_err();
    assert!(matches!(taken, Error::NameTaken { .. }));
    assert_eq!(all.manifest().variants.len(), 7);
}

#[test]
fn quality_falls_with_every_member_of_a_bank_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = create(dir.path());
    add(&mut store, "a", 0).unwrap();
    let quality = |store: &Store, name: &str| store.manifest().variants[name].quality.unwrap();
    let alone = quality(&store, "a");
    assert!(
        alone.cosine > Some(0.9999) && alone.relative_error < 0.01,
        "{alone:?}"
    );
    for k in 1..4 {
        let before = quality(&store, "a");
        add(&mut store, &format!("v{k}"), k).unwrap();
        let after = quality(&store, "a");
        assert!(
            after.cosine < before.cosine && after.relative_error > before.relative_error,
            "{before:?} {after:?}"
        );
    }
    let crowded = quality(&store, "v2");
    remove(&mut store, "a").unwrap();
    assert!(quality(&store, "v2").cosine > crowded.cosine);
    for k in [1, 3] {
        remove(&mut store, &format!("v{k}")).unwrap();
    }
    assert!(quality(&store, "v2").cosine > Some(0.9999));
}

#[test]
fn a_scale_is_measured_with() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = create(dir.path());
    let mut half = variant("half", 1);
    half.scales = Scales::all(0.5);
    store.add(half, None, &mut |_| {}).unwrap();
    let quality = store.manifest().variants["half"].quality.unwrap();
    assert!(
        quality.cosine > Some(0.9999) && (quality.relative_error - 0.5).abs() < 0.01,
        "{quality:?}"
    );
}

#[test]
fn variants_of_one_seed_never_share_a_bank() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = create(dir.path());
    // The same delta under two names has the same seed where none is chosen.
    add(&mut store, "one", 1).unwrap();
    add(&mut store, "twin", 1).unwrap();
    let banks = |name: &str| store.manifest().variants[name].banks().to_vec();
    assert!(banks("one").iter().all(|id| !banks("twin").contains(id)));
}

#[test]
fn without_an_archive_removal_needs_the_very_delta() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        archive: false,
        ..Options::default()
    };
    let mut store = Store::create(dir.path(), facts(), options).unwrap();
    for k in 0..3 {
        add(&mut store, &format!("v{k}"), k).unwrap();
    }
    let deltas: BTreeMap<_, _> = (0..3).map(|k| (format!("v{k}"), delta(k))).collect();
    assert_whole(&store, &deltas);
    let mut remove = |delta| store.remove("v1", delta, None, &mut |_| {});
    assert!(matches!(remove(None), Err(Error::DeltaNeeded { .. })));
    assert!(matches!(
        remove(Some(delta(2))),
        Err(Error::OtherDelta { .. })
    ));
    remove(Some(delta(1))).unwrap();
    let mut deltas = deltas;
    deltas.remove("v1");
    assert_whole(&store, &deltas);
    drop(store);
    assert_whole(&Store::open(dir.path(), facts()).unwrap(), &deltas);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    /// After any sequence of adding, removing and adding again, every bank is byte for byte what its members give.
    #[test]
    fn any_sequence_of_changes_leaves_only_its_members(
        operations in prop::collection::vec((0u64..7, any::<bool>(), any::<bool>()), 1..14),
        bank_capacity in 1usize..5,
        head_capacity in 1usize..4,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { bank_capacity, head_capacity, ..Options::default() };
        let mut store = Store::create(dir.path(), facts(), options).unwrap();
        let mut deltas = BTreeMap::new();
        for (k, code, reopen) in operations {
            let name = format!("v{k}");
            if deltas.remove(&name).is_some() {
                remove(&mut store, &name).unwrap();
            } else {
                if code {
                    let before = files_in(dir.path());
                    let commit = add_coded(&mut store, &name, k).unwrap();
                    prop_assert!(commit.changed_banks.is_empty());
                    prop_assert_eq!(files_in(dir.path()).len(), before.len() + 1);
                } else {
                    add(&mut store, &name, k).unwrap();
                }
                deltas.insert(name, delta(k));
            }
            assert_whole(&store, &deltas);
            if reopen {
                let before = store.manifest().clone();
                drop(store);
                store = Store::open(dir.path(), facts()).unwrap();
                prop_assert_eq!(store.manifest(), &before);
            }
        }
    }
}
