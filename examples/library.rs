//! Choir without a server: opens a store, adds a variant to it, and generates with that variant.
//!
//! ```text
//! cargo run --example library -- models/variants/roman.safetensors "roman M C M X C I V ="
//! ```

use choir::catalog::{AddRequest, BaseSource, Catalog, CatalogConfig, CheckpointSource};
use choir::engine::{Engine, EngineConfig, Event, Request};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (checkpoint, prompt) = match (words.next(), words.next()) {
        (Some(checkpoint), Some(prompt)) => (checkpoint, prompt),
        _ => return Err("a checkpoint and a prompt".into()),
    };
    let dir = tempfile::tempdir()?;
    let config = CatalogConfig::new(
        dir.path().join("store"),
        BaseSource::Embedded, // or Folder: config.json, tokenizer.json, model.safetensors
    );
    let (catalog, generation) = Catalog::open(config, |_| {})?;
    let engine = Engine::start(EngineConfig::default(), generation)?;
    catalog.attach(engine.clone()); // from here on a change is served as soon as it is committed
    let name = "mine";
    let request = AddRequest::new(name, CheckpointSource::Path(checkpoint.into()));
    let added = catalog.add(request, |_| {})?;
    let variant = added.variant;
    eprintln!(
        "{name}, {}: relative error {:.3}",
        variant.keep,
        variant.relative_error.unwrap_or(f32::NAN)
    );

    // Names are resolved once; what they mean leases the generation that the text is made on.
    let mine = engine.resolve(vec![(name.to_owned(), 1.0)])?;
    let tokenizer = &mine.lease.tokenizer;
    let mut tokens: Vec<u32> = tokenizer.begin().into_iter().collect();
    tokens.extend(tokenizer.encode(&prompt)?);
    let sampling = mine.defaults().clone();
    let request = Request {
        stop: vec!["\n".to_owned()],
        mix: mine.into(),
        ..Request::new(tokens, 64, sampling)
    };
    let mut events = engine.submit(request)?;
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Block { text, .. } => print!("{text}"),
            Event::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
    println!();
    Ok(())
}
