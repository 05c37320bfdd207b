//! A store of format 1, as it was written by the last version that wrote it: opened, served, and upgraded by its first change.

use super::*;
use choir::catalog::RemoveRequest;
use choir::store::Keep;

/// The fixture, copied so that it can be changed.
struct Former(TempDir);

impl Former {
    fn new() -> Self {
        let former = Former(tempfile::tempdir().expect("directory"));
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-format-1");
        for (file, bytes) in files(&fixture) {
            let to = former
                .0
                .path()
                .join(file.strip_prefix(&fixture).expect("below"));
            fs::create_dir_all(to.parent().expect("folder")).expect("folder");
            fs::write(to, bytes).expect("file");
        }
        former
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn manifest(&self) -> Vec<u8> {
        fs::read(self.store().join("manifest.json")).expect("manifest")
    }

    fn config(&self, store: &str) -> CatalogConfig {
        let base = BaseSource::Folder(self.0.path().join("base"));
        config(&self.0.path().join(store), base)
    }

    fn open(&self) -> (Catalog, EngineHandle) {
        serve(Catalog::open(self.config("store"), |_| {}).expect("open"))
    }
}

fn answers(catalog: &Catalog, engine: &EngineHandle) -> Vec<Vec<u32>> {
    let names = names(catalog);
    assert!(!names.is_empty());
    let ask = |name: &String| {
        let defaults = engine.generation().variants[name].defaults.clone();
        let request = Request {
            mix: vec![(name.clone(), 1.0)].into(),
            seed: Some(5),
            ..Request::new(vec![1, 2, 3], 12, defaults)
        };
        outcome(engine.submit(request).expect("submit")).1
    };
    names.iter().map(ask).collect()
}

#[test]
fn a_former_store_serves_what_a_new_one_of_the_same_deltas_does() {
    let former = Former::new();
    let before = files(&former.store());
    let (catalog, engine) = former.open();
    assert!(catalog.is_former());
    let said = answers(&catalog, &engine);
    let list = catalog.list();
    assert!(list.iter().all(|info| info.keep == Keep::Superposed));
    let unchanged: BTreeMap<_, _> = files(&former.store())
        .into_iter()
        .filter(|(path, _)| before.contains_key(path))
        .collect();
    assert_eq!(unchanged, before, "nothing is upgraded by a start");

    let config = CatalogConfig {
        keep: Some(Keep::Superposed),
        ..former.config("new")
    };
    let (new, new_engine) = serve(Catalog::open(config, |_| {}).expect("open"));
    for info in &list {
        let archive = former.store().join("variants").join(&info.name);
        let bytes = fs::read(archive.join("delta.safetensors")).expect("archive");
        let request = AddRequest {
            scale: Some(info.scale),
            tuning: Tuning {
                process: Some(info.regime.process),
                block_size: info.regime.block,
                time_conditioning: Some(info.regime.time_conditioned),
            },
            ..addition(&info.name, CheckpointSource::Bytes(bytes))
        };
        new.add(request, |_| {}).expect("add");
    }
    assert!(!new.is_former());
    let strip = |info: VariantInfo| VariantInfo { added: 0, ..info };
    let stripped =
        |catalog: &Catalog| -> Vec<_> { catalog.list().into_iter().map(strip).collect() };
    assert_eq!(stripped(&new), stripped(&catalog));
    assert_eq!(answers(&new, &new_engine), said);
    let bytes = |dir: &Path| banks(dir).into_values().collect::<Vec<_>>();
    assert_eq!(bytes(&former.0.path().join("new")), bytes(&former.store()));
}

#[test]
fn the_first_change_upgrades_a_former_store_and_keeps_its_manifest() {
    let former = Former::new();
    let manifest = former.manifest();
    let (catalog, engine) = former.open();
    let (said, names) = (answers(&catalog, &engine), names(&catalog));
    // What is refused upgrades nothing.
    let late = RemoveRequest {
        expected_generation: Some(99),
        ..RemoveRequest::default()
    };
    assert!(catalog.remove(&names[0], late).is_err());
    let dry = AddRequest {
        dry_run: true,
        ..addition("dry", CheckpointSource::Path(archive(&former, &names[0])))
    };
    catalog.add(dry, |_| {}).expect("dry run");
    assert_eq!(former.manifest(), manifest);
    let kept = former.store().join("manifest.format-1.json");
    assert!(!kept.exists() && catalog.is_former());

    catalog
        .remove(&names[0], RemoveRequest::default())
        .expect("remove");
    assert!(!catalog.is_former());
    assert_eq!(fs::read(&kept).expect("kept"), manifest);
    let written: serde_json::Value = serde_json::from_slice(&former.manifest()).expect("json");
    assert_eq!(written["format"], 2);
    let fixture = Former::new();
    let again = CheckpointSource::Path(archive(&fixture, &names[0]));
    catalog
        .add(addition(&names[0], again), |_| {})
        .expect("add");
    assert_eq!(answers(&catalog, &engine), said);
    drop((catalog, engine));
    let (catalog, engine) = former.open();
    assert!(!catalog.is_former());
    assert_eq!(answers(&catalog, &engine), said);
    assert_eq!(fs::read(&kept).expect("kept"), manifest);
}

fn archive(former: &Former, name: &str) -> PathBuf {
    former
        .store()
        .join("variants")
        .join(name)
        .join("delta.safetensors")
}

#[test]
fn a_superposed_store_is_converted_from_its_archives() {
    let place = TestDir::new();
    let (catalog, engine) = place.served();
    let before = catalog.list();
    drop((catalog, engine));
    let base = BaseSource::Folder(place.base());
    let mut told = Vec::new();
    choir::catalog::convert(&base, &place.data(), Some(8.0), |converted| {
        told.push((converted.name.to_owned(), converted.after.is_some()));
    })
    .expect("convert");
    let names: Vec<_> = before
        .iter()
        .map(|info| (info.name.clone(), true))
        .collect();
    assert_eq!(told, names);
    let config = CatalogConfig {
        keep: None,
        ..place.config()
    };
    let (catalog, engine) = serve(Catalog::open(config, |_| {}).expect("open"));
    assert_eq!(catalog.status().banks, 0);
    for (was, is) in before.iter().zip(catalog.list()) {
        assert_eq!(
            (is.keep, is.seed, &is.defaults),
            (Keep::Coded, was.seed, &was.defaults)
        );
        assert!(!answer(&engine, &is.name).is_empty());
    }
    assert!(!place.data().join("banks/body-0").exists());
    // From then on additions are coded.
    assert_eq!(add(&catalog, "four", 4).expect("add").keep, Keep::Coded);
}
