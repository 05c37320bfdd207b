//! Engines to measure with: the service with all variants compiled in, and one set of weights alone.

use anyhow::Result;
use choir::catalog::{BaseSource, Catalog, CatalogConfig};
use choir::cli::scratch::Scratch;
use choir::engine::{Engine, EngineConfig, EngineHandle, Generation, Sampling};
use choir::model::tokenizer::Tokenizer;
use choir::model::{DitConfig, Place, place};
use choir::ops::quantized::Form;
use choir::train::folder::Tensors;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Requests handed in at once, at most.
pub const IN_FLIGHT: usize = 64;

/// A store made for the purpose, with all variants compiled in. It lasts as long as this.
pub struct Service {
    pub engine: EngineHandle,
    _catalog: Catalog,
    _scratch: Scratch,
}

impl Service {
    pub fn open(place: &Place, bank_form: Form, head_form: Option<Form>) -> Result<Self> {
        let scratch = Scratch::new("eval");
        let config = CatalogConfig {
            data_dir: scratch.path().to_owned(),
            base: BaseSource::Embedded,
            bank_capacity: None,
            head_capacity: None,
            place: place.clone(),
            bank_form,
            head_form,
            archive: true,
        };
        let (catalog, generation) = Catalog::open(config, |_| ())?;
        Ok(Self {
            engine: start(generation)?,
            _catalog: catalog,
            _scratch: scratch,
        })
    }
}

/// Weights as a base without variants.
pub fn lone(
    place: &Place,
    config: &DitConfig,
    weights: &Tensors,
    tokenizer: Arc<Tokenizer>,
) -> Result<EngineHandle> {
    let base = place::Base::new(place, config.clone(), weights)?;
    start(Generation {
        number: 0,
        denoiser: base.instance([], [])?.denoiser,
        tokenizer,
        defaults: Sampling::of(config.process()),
        variants: BTreeMap::new(),
        memory: Vec::new(),
    })
}

fn start(generation: Generation) -> Result<EngineHandle> {
    let config = EngineConfig {
        queue: IN_FLIGHT,
        unread: usize::MAX, // streams are read one after the other
        ..EngineConfig::default()
    };
    Ok(Engine::start(config, generation)?)
}
