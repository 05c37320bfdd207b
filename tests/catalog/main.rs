//! The catalog over the model compiled in and over a tiny base in a folder: starts, changes, and all that is refused.

mod beside;
mod changes;
mod decoders;
mod device;
mod embedded;
mod former;
mod kept;
mod packing;
mod processes;
mod refusals;
mod starts;
#[path = "../fixtures/tiny.rs"]
mod tiny;

use choir::catalog::{
    AddRequest, BaseSource, Beside, Catalog, CatalogConfig, CheckpointSource, Error, Tuning,
    VariantInfo,
};
use choir::engine::{
    Engine, EngineConfig, EngineHandle, Event, EventStream, Generation, Request, Sampling,
    SamplingParams,
};
use choir::model::{DitConfig, Place};
use choir::ops::quantized::Quantisation;
use choir::store::Keep;
use choir::train::folder::{Precision, Tensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tiny::{TINY, checkpoint, noise, tuned};

/// A directory with the tiny base in `base`, and room for a store and for checkpoints.
struct TestDir(TempDir);

impl TestDir {
    fn new() -> Self {
        let place = TestDir(tempfile::tempdir().expect("directory"));
        TINY.write(&place.base(), Precision::F32).expect("base");
        place
    }

    fn base(&self) -> PathBuf {
        self.0.path().join("base")
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// Writes a checkpoint's file into a folder of its own.
    fn file(&self, folder: &str, bytes: &[u8]) -> PathBuf {
        let folder = self.0.path().join(folder);
        fs::create_dir_all(&folder).expect("folder");
        let path = folder.join("model.safetensors");
        fs::write(&path, bytes).expect("checkpoint");
        path
    }

    fn config(&self) -> CatalogConfig {
        config(&self.data(), BaseSource::Folder(self.base()))
    }

    fn open(&self) -> Result<(Catalog, Generation), Error> {
        Catalog::open(self.config(), |_| {})
    }

    /// An open catalog with variants `one`, `two` and `three`, and an engine that serves it.
    fn served(&self) -> (Catalog, EngineHandle) {
        let (catalog, engine) = serve(self.open().expect("open"));
        for (seed, name) in (1..).zip(["one", "two", "three"]) {
            add(&catalog, name, seed).expect("add");
        }
        (catalog, engine)
    }
}

fn config(data: &Path, base: BaseSource) -> CatalogConfig {
    CatalogConfig {
        bank_form: Quantisation::Q4K,
        keep: Some(Keep::Superposed),
        ..CatalogConfig::new(data, base)
    }
}

fn serve((catalog, generation): (Catalog, Generation)) -> (Catalog, EngineHandle) {
    let config = EngineConfig {
        kv_bytes: 8 << 20,
        threads: 1,
        ..EngineConfig::default()
    };
    let engine = Engine::start(config, generation).expect("engine");
    catalog.attach(engine.clone());
    (catalog, engine)
}

fn addition(name: &str, source: CheckpointSource) -> AddRequest {
    AddRequest::new(name, source)
}

fn add(catalog: &Catalog, name: &str, seed: u64) -> Result<VariantInfo, Error> {
    let addition = addition(name, CheckpointSource::Bytes(checkpoint(&tuned(seed))));
    Ok(catalog.add(addition, |_| {})?.variant)
}

fn request(variant: Option<&str>, max_tokens: usize) -> Request {
    Request {
        mix: variant
            .iter()
            .map(|name| ((*name).to_owned(), 1.0))
            .collect::<Vec<_>>()
            .into(),
        seed: Some(5),
        ..Request::new(vec![1, 2, 3], max_tokens, Sampling::default())
    }
}

/// The generation that answered and the tokens of the answer.
fn outcome(mut events: EventStream) -> (u64, Vec<u32>) {
    let (mut number, mut all) = (None, Vec::new());
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Started { generation, .. } => number = Some(generation),
            Event::Block { tokens, .. } => all.extend(tokens),
            Event::Step { .. } => {}
            Event::Finished(_) => return (number.expect("a start"), all),
            Event::Failed(error) => panic!("{error}"),
        }
    }
    panic!("no end")
}

fn answer(engine: &EngineHandle, variant: &str) -> Vec<u32> {
    outcome(engine.submit(request(Some(variant), 24)).expect("submit")).1
}

fn names(catalog: &Catalog) -> Vec<String> {
    catalog.list().into_iter().map(|info| info.name).collect()
}

/// Every file below `dir`, where that is there, and what is in it.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut left) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).expect("file"));
            }
        }
    }
    found
}

/// The content of every bank, by its folder: the file's name is the generation that wrote it.
fn banks(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let named = files(&data.join("banks")).into_iter();
    named
        .map(|(path, bytes)| (path.parent().expect("folder").to_owned(), bytes))
        .collect()
}
