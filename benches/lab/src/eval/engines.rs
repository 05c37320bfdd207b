//! The service with all variants compiled in, to measure it.

use anyhow::Result;
use choir::catalog::{BaseSource, Catalog, CatalogConfig};
use choir::cli::eval::measure::engine;
use choir::cli::scratch::ScratchStore;
use choir::engine::EngineHandle;
use choir::model::Place;
use choir::ops::quantized::Quantisation;

/// A store made for the purpose, with all variants compiled in. It lasts as long as this.
pub struct Service {
    pub engine: EngineHandle,
    _catalog: Catalog,
    _scratch: ScratchStore,
}

impl Service {
    pub fn open(
        place: &Place,
        bank_form: Quantisation,
        head_form: Option<Quantisation>,
    ) -> Result<Self> {
        let scratch = ScratchStore::new("eval");
        let config = CatalogConfig {
            place: place.clone(),
            bank_form,
            head_form,
            ..CatalogConfig::new(scratch.path(), BaseSource::Embedded)
        };
        let (catalog, generation) = Catalog::open(config, |_| ())?;
        Ok(Self {
            engine: engine(generation)?,
            _catalog: catalog,
            _scratch: scratch,
        })
    }
}
