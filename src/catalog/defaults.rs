//! Sampling defaults and the regime they go with, between the engine and the store's manifest.

use crate::engine::Sampling;
use crate::model::tokenizer::GenerationConfig;
use crate::model::{NetworkFacts, Process, Regime};
use crate::store::{self, Blocks, SamplerDefaults, VariantRecord};

/// What a checkpoint is sampled with where nobody says otherwise: what its family's own code does, with the temperature and filters
/// of the `generation_config.json` that came with it.
pub fn usual(network: &NetworkFacts, regime: Regime, said: Option<&GenerationConfig>) -> Sampling {
    let family = Sampling::of_family(network.family, regime.block);
    let mut sampling = family.unwrap_or_else(|| Sampling::of(regime.process));
    let Some(said) = said else { return sampling };
    sampling.top_k = said.top_k.filter(|&k| k > 0).or(sampling.top_k);
    sampling.nucleus_p = said.top_p.unwrap_or(sampling.nucleus_p);
    sampling.temperature = match said.do_sample {
        Some(false) => 0.0,
        _ => said.temperature.unwrap_or(sampling.temperature),
    };
    sampling
}

/// Sampling and regime as the store records them.
pub fn to_store(sampling: &Sampling, regime: Regime, network: &NetworkFacts) -> SamplerDefaults {
    let mut defaults = SamplerDefaults::new(sampling, regime.time_conditioned);
    if regime.process == Process::Uniform {
        defaults.block_size = regime.block;
    } else if regime.block != network.regime.block {
        defaults.blocks = Some(regime.block.map_or(Blocks::Whole, Blocks::Of));
    }
    defaults
}

/// What a recorded variant of this network was tuned for.
pub(super) fn regime(record: &VariantRecord, network: &NetworkFacts) -> Regime {
    recorded(record.process, &record.defaults, network)
}

/// The same, of a process and defaults that are not in a manifest yet.
pub(super) fn recorded(
    process: store::StoredProcess,
    defaults: &SamplerDefaults,
    network: &NetworkFacts,
) -> Regime {
    match process {
        store::StoredProcess::Absorbing => Regime {
            block: match defaults.blocks {
                None => network.regime.block,
                Some(Blocks::Whole) => None,
                Some(Blocks::Of(block)) => Some(block),
            },
            ..network.regime
        },
        store::StoredProcess::Uniform => Regime {
            process: Process::Uniform,
            block: defaults.block_size,
            grid: network.regime.grid,
            time_conditioned: defaults.time_conditioning,
        },
    }
}

pub fn process_to_store(process: Process) -> store::StoredProcess {
    match process {
        Process::Absorbing => store::StoredProcess::Absorbing,
        Process::Uniform => store::StoredProcess::Uniform,
    }
}

pub(super) fn process_from_store(process: store::StoredProcess) -> Process {
    match process {
        store::StoredProcess::Absorbing => Process::Absorbing,
        store::StoredProcess::Uniform => Process::Uniform,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CacheShape, Grid};
    use crate::sampler::{AbsorbingPredictor, Certainty};

    fn network(family: &'static str, block: Option<usize>) -> NetworkFacts {
        NetworkFacts {
            family,
            slides: false,
            rows: 320,
            tokens: 318,
            mask: Some(317),
            context: 512,
            regime: Regime {
                process: Process::Absorbing,
                grid: Grid::Start,
                block,
                time_conditioned: false,
            },
            hidden: 64,
            parameters: 1,
            cache: CacheShape {
                layers: 1,
                heads: 2,
                head_dim: 32,
            },
        }
    }

    #[test]
    fn a_family_is_run_as_its_own_code_does_unless_its_files_say_otherwise() {
        let sdar = network("sdar", Some(4));
        let usually = usual(&sdar, sdar.regime, None);
        let dynamic = AbsorbingPredictor::Confidence {
            threshold: 0.85,
            steps: Some(4),
        };
        assert_eq!(usually.predictor, dynamic.into());
        assert_eq!(
            (usually.temperature, usually.certainty),
            (1.0, Certainty::Filtered)
        );
        let said = br#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#;
        let said = GenerationConfig::parse(said).unwrap();
        let told = usual(&sdar, sdar.regime, Some(&said));
        assert_eq!(
            (told.temperature, told.top_k, told.nucleus_p, told.predictor),
            (0.6, Some(20), 0.95, dynamic.into())
        );
        let greedy = GenerationConfig::parse(br#"{"do_sample": false, "top_k": 0}"#).unwrap();
        let told = usual(&sdar, sdar.regime, Some(&greedy));
        assert_eq!((told.temperature, told.top_k), (0.0, None));
    }

    #[test]
    fn blocks_that_are_not_the_bases_are_recorded() {
        let network = network("a2d-qwen3", None);
        for block in [None, Some(32)] {
            let regime = Regime {
                block,
                ..network.regime
            };
            let sampling = usual(&network, regime, None);
            let defaults = to_store(&sampling, regime, &network);
            assert_eq!(defaults.blocks, block.map(Blocks::Of));
            assert_eq!(
                recorded(store::StoredProcess::Absorbing, &defaults, &network),
                regime
            );
            assert_eq!(defaults.sampling(), sampling);
        }
    }

    #[test]
    fn every_usual_setting_is_one_that_requests_may_have() {
        let a2d = |block| network("a2d-qwen3", block);
        for network in [
            network("sdar", Some(64)),
            a2d(Some(32)),
            a2d(None),
            network("dit", Some(4)),
        ] {
            let usually = usual(&network, network.regime, None);
            crate::engine::check_sampling(&network, network.regime, &usually).unwrap();
        }
    }
}
