//! The ways to sample from a variant that are compared.

use choir::engine::{Predictor, Sampling};
use choir::model::{DitConfig, Process};
use choir::sampler::{self, NoiseRemoval, UniformPredictor};

/// One way.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    pub sampler: &'static str,
    /// To the whole sequence, or to a block.
    pub steps: Option<u32>,
    pub sampling: Sampling,
}

pub struct SamplerSettings {
    /// Steps of whole sequences.
    pub steps: Vec<u32>,
    /// Tokens of a sequence, the one that begins it included.
    pub positions: usize,
    pub temperature: f32,
    pub nucleus_p: f32,
}

/// What is measured of a variant with this configuration. A sequence of n blocks gives each of them the n-th part of the
/// `steps` + 1 evaluations that a whole sequence takes; where that is none at all, or what fewer steps give already,
/// there is nothing to measure.
pub fn ways(config: &DitConfig, settings: &SamplerSettings) -> Vec<Way> {
    let units = config
        .block()
        .map_or(1, |block| settings.positions.div_ceil(block)) as u32;
    let mut shares: Vec<u32> = settings
        .steps
        .iter()
        .map(|steps| steps.saturating_add(1) / units)
        .collect();
    shares.dedup();
    let way = |sampler, steps, predictor: Predictor| Way {
        sampler,
        steps,
        sampling: Sampling {
            temperature: settings.temperature,
            nucleus_p: settings.nucleus_p,
            ..Sampling::plain(predictor)
        },
    };
    match config.process() {
        Process::Uniform => [
            ("uniform, greedy tail", NoiseRemoval::Greedy),
            ("uniform, ancestral tail", NoiseRemoval::Ancestral),
        ]
        .into_iter()
        .flat_map(|(name, noise_removal)| {
            shares.iter().filter(|share| **share > 1).map(move |share| {
                let steps = share - 1; // noise removal is one more
                let predictor = UniformPredictor {
                    steps,
                    noise_removal,
                    ..UniformPredictor::default()
                };
                (name, steps, predictor)
            })
        })
        .map(|(name, steps, predictor)| way(name, Some(steps), predictor.into()))
        .collect(),
        Process::Absorbing => {
            let ancestral = shares.iter().filter(|share| **share > 0).map(|&steps| {
                let predictor = sampler::AbsorbingPredictor::Ancestral { steps };
                way("blocks, ancestral", Some(steps), predictor.into())
            });
            let first_hitting = way(
                "blocks, first-hitting",
                None,
                sampler::AbsorbingPredictor::FirstHitting.into(),
            );
            ancestral.chain([first_hitting]).collect()
        }
    }
}
