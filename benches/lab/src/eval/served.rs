//! The same variants as the service serves them: a store made for the purpose, its model instance, and the
//! engine's own score, which visits blocks with a cache and draws its own noise. Another estimator of the
//! same bound, so the references are measured with it too.

use super::engines::Service;
use super::share::{Reached, Summary, bits};
use super::subjects::Subjects;
use anyhow::Result;
use choir::cli::eval::measure::{exact, lone, nats, text};
use choir::engine::{EngineHandle, MemoryPart, Sampling};
use choir::model::Place;
use choir::ops::quantized::Quantisation;
use choir::train::folder::Tensors;
use choir::train::run::Validation;
use serde::Serialize;

/// What the service reaches.
#[derive(Clone, Debug, Serialize)]
pub struct Served {
    /// As its model instance reports its memory; that includes the signs drawn from the seeds.
    pub bits: f64,
    /// Noise levels to a block.
    pub samples: usize,
    /// What the base's matrices are kept in.
    pub base_form: String,
    /// What the base in this form reaches by itself on each variant's held-out data, nats per token.
    pub bases: Vec<f64>,
    /// Base and fine-tune of each variant, by the same estimator; on the CPU both in f32.
    pub references: Vec<(Reached, Reached)>,
    #[serde(flatten)]
    pub summary: Summary,
}

/// Serves all variants compiled in, and measures those in `subjects` with `samples` noise levels to a block.
pub fn measure(
    place: &Place,
    subjects: &Subjects,
    (form, head): (Quantisation, Option<Quantisation>),
    samples: usize,
    tick: &mut dyn FnMut(&str),
) -> Result<Served> {
    let service = Service::open(place, form, head)?;
    let generation = service.engine.generation();
    let tokenizer = &generation.tokenizer;
    let for_variants =
        |part: &&MemoryPart| part.part.starts_with("bank ") || part.part.starts_with("private");
    let bytes: u64 = generation
        .memory
        .iter()
        .filter(for_variants)
        .map(|part| part.bytes)
        .sum();
    let bits = bits(
        bytes as usize,
        subjects.parameters().0,
        generation.variants.len(),
    );
    let (base_form, exact) = match place {
        Place::Host(form) => (form.to_string(), Place::Host(Quantisation::F32)),
        Place::Device(device) => (format!("{:?}", device.dtype).to_lowercase(), place.clone()),
    };
    let (mut references, mut bases, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for variant in &subjects.variants {
        tick(&format!("as served: {}", variant.name));
        let mix = vec![(variant.name.clone(), 1.0)];
        let sampling = service.engine.resolve(mix.clone())?.defaults().clone();
        let reached =
            |engine: &EngineHandle, mix| reached(engine, mix, &sampling, &variant.test, samples);
        let alone = |place: &Place, weights: &Tensors| {
            reached(
                &lone(place, &variant.config, weights, tokenizer.clone())?,
                Vec::new(),
            )
        };
        let base = subjects.weights(|_| None);
        let tuned = subjects.weights(|tensor| variant.delta.dense(tensor));
        let (exact_base, tuned) = (alone(&exact, &base)?, alone(&exact, &tuned)?);
        references.push((exact_base, tuned));
        bases.push(match place {
            Place::Host(form) if *form != Quantisation::F32 => alone(place, &base)?.nats_per_token,
            _ => exact_base.nats_per_token,
        });
        found.push(reached(&service.engine, mix)?);
    }
    let summary = Summary::new(&references, found);
    Ok(Served {
        bits,
        samples,
        base_form,
        bases,
        references,
        summary,
    })
}

fn reached(
    engine: &EngineHandle,
    mix: Vec<(String, f32)>,
    sampling: &Sampling,
    test: &Validation,
    samples: usize,
) -> Result<Reached> {
    let texts: Vec<(Vec<u32>, usize)> = (0..test.contexts.count)
        .map(|c| text(&test.contexts, c))
        .collect();
    let exact = match test.exact {
        true => Some(exact(engine, &mix, sampling, &texts)?),
        false => None,
    };
    Ok(Reached {
        nats_per_token: nats(engine, &mix, &texts, samples)?,
        exact,
    })
}
