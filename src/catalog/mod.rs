//! What an operator does: a store transaction, then a publish.

pub mod error;

use std::path::PathBuf;

pub use error::Error;

use crate::engine::{EngineHandle, Generation, MemoryPart, Sampling};

/// Where the base comes from.
#[derive(Clone, Debug)]
pub enum BaseSource {
    /// The model compiled into the binary, with its deltas for the first start.
    Embedded,
    /// A folder in the published layout: config.json, model.safetensors, tokenizer.json.
    Folder(PathBuf),
}

/// The form in which weights are served from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    F32,
    Q8_0,
    /// `q4_K` where the inner size is a multiple of 256, else `q4_0`.
    Q4,
}

/// Settings of a catalog.
#[derive(Clone, Debug)]
pub struct CatalogConfig {
    pub data_dir: PathBuf,
    pub base: BaseSource,
    /// Variants to a bank; of the output head's banks in `head_capacity`.
    pub bank_capacity: usize,
    pub head_capacity: usize,
    pub bank_form: Form,
    /// Keep every delta in the store, so that a variant can be removed without giving it again.
    pub archive: bool,
}

/// A checkpoint: a fine-tune's weights in the published layout, or a packed delta.
#[derive(Clone, Debug)]
pub enum Source {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct AddRequest {
    pub name: String,
    /// The first 8 bytes of the SHA-256 of the delta where absent.
    pub seed: Option<u64>,
    pub source: Source,
    /// The scale c of the retrieved delta; 1 where absent.
    pub scale: Option<f32>,
    pub defaults: Option<Sampling>,
    /// Refuse unless the store is at this generation.
    pub expected_generation: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct RemoveRequest {
    /// The checkpoint again, where the store archives no delta.
    pub delta: Option<Source>,
    pub expected_generation: Option<u64>,
}

/// How far an operation has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    pub stage: Stage,
    /// Of the whole operation, 0 to 1.
    pub fraction: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Reading,
    Comparing,
    Accumulating,
    Measuring,
    Writing,
    Publishing,
}

/// A variant as operators see it.
#[derive(Clone, Debug, PartialEq)]
pub struct VariantInfo {
    pub name: String,
    pub seed: u64,
    pub scale: f32,
    pub banks: Vec<String>,
    /// Cosine of the retrieved with the true delta, and relative error, over all superposed tensors.
    pub cosine: f64,
    pub relative_error: f64,
    pub source: String,
    /// Hex SHA-256 of the delta.
    pub delta_digest: String,
    pub archived: bool,
    /// Seconds since 1970.
    pub added: u64,
    pub defaults: Sampling,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub generation: u64,
    pub memory: Vec<MemoryPart>,
    pub variants: usize,
    pub banks: usize,
}

/// The store and what is served from it. All methods block (call them off the runtime); changes wait for each other.
pub struct Catalog {}

impl Catalog {
    /// Opens or makes the store and builds the model instance of its generation.
    pub fn open(_config: CatalogConfig, _progress: impl FnMut(Progress)) -> Result<(Catalog, Generation), Error> {
        Err(Error::NotAttached)
    }

    /// Where committed changes are published from now on.
    pub fn attach(&self, _engine: EngineHandle) {}

    pub fn add(&self, _request: AddRequest, _progress: impl FnMut(Progress)) -> Result<VariantInfo, Error> {
        Err(Error::NotAttached)
    }

    /// Returns the new generation.
    pub fn remove(&self, _name: &str, _request: RemoveRequest) -> Result<u64, Error> {
        Err(Error::NotAttached)
    }

    pub fn list(&self) -> Vec<VariantInfo> {
        Vec::new()
    }

    pub fn get(&self, name: &str) -> Result<VariantInfo, Error> {
        Err(Error::UnknownVariant { name: name.into() })
    }

    pub fn status(&self) -> Status {
        Status {
            generation: 0,
            memory: Vec::new(),
            variants: 0,
            banks: 0,
        }
    }
}
