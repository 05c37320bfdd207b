//! Sampling defaults and the regime they go with, between the engine and the store's manifest.

use crate::engine::{Predictor, Sampling};
use crate::model::{NetworkFacts, Process, Regime};
use crate::sampler::{self, NoiseRemoval, Psi, UniformPredictor};
use crate::store::{self, SamplerDefaults, VariantRecord};

/// Sampling and regime as the store records them.
pub fn to_store(sampling: &Sampling, regime: Regime) -> SamplerDefaults {
    SamplerDefaults {
        predictor: match sampling.predictor {
            Predictor::Absorbing(sampler::Predictor::FirstHitting) => {
                store::Predictor::FirstHitting
            }
            Predictor::Absorbing(sampler::Predictor::Ancestral { steps }) => {
                store::Predictor::Ancestral { steps }
            }
            Predictor::Absorbing(sampler::Predictor::Confidence { threshold }) => {
                store::Predictor::Confidence { threshold }
            }
            Predictor::Uniform(uniform) => store::Predictor::Uniform(store::UniformPredictor {
                steps: uniform.steps,
                eps: uniform.eps,
                noise_removal: match uniform.noise_removal {
                    NoiseRemoval::Ancestral => store::NoiseRemoval::Ancestral,
                    NoiseRemoval::Greedy => store::NoiseRemoval::Greedy,
                },
                psi: psi_to_store(&uniform.psi),
            }),
        },
        temperature: sampling.temperature,
        nucleus_p: sampling.nucleus_p,
        top_k: sampling.top_k,
        block_size: match regime.process {
            Process::Absorbing => sampling.block_size,
            Process::Uniform => regime.block,
        },
        time_conditioning: regime.time_conditioned,
    }
}

pub fn from_store(defaults: &SamplerDefaults) -> Sampling {
    Sampling {
        predictor: match defaults.predictor {
            store::Predictor::FirstHitting => sampler::Predictor::FirstHitting.into(),
            store::Predictor::Ancestral { steps } => sampler::Predictor::Ancestral { steps }.into(),
            store::Predictor::Confidence { threshold } => {
                sampler::Predictor::Confidence { threshold }.into()
            }
            store::Predictor::Uniform(uniform) => UniformPredictor {
                steps: uniform.steps,
                eps: uniform.eps,
                noise_removal: match uniform.noise_removal {
                    store::NoiseRemoval::Ancestral => NoiseRemoval::Ancestral,
                    store::NoiseRemoval::Greedy => NoiseRemoval::Greedy,
                },
                psi: psi_from_store(&uniform.psi),
            }
            .into(),
        },
        block_size: defaults.block_size,
        temperature: defaults.temperature,
        nucleus_p: defaults.nucleus_p,
        top_k: defaults.top_k,
    }
}

/// What a recorded variant of this network was tuned for. The base's blocks are those of all its absorbing variants.
pub(super) fn regime(record: &VariantRecord, network: &NetworkFacts) -> Regime {
    recorded(record.process, &record.defaults, network)
}

/// The same, of a process and defaults that are not in a manifest yet.
pub(super) fn recorded(
    process: store::Process,
    defaults: &SamplerDefaults,
    network: &NetworkFacts,
) -> Regime {
    match process {
        store::Process::Absorbing => network.regime,
        store::Process::Uniform => Regime {
            process: Process::Uniform,
            block: defaults.block_size,
            time_conditioned: defaults.time_conditioning,
        },
    }
}

pub fn process_to_store(process: Process) -> store::Process {
    match process {
        Process::Absorbing => store::Process::Absorbing,
        Process::Uniform => store::Process::Uniform,
    }
}

pub(super) fn process_from_store(process: store::Process) -> Process {
    match process {
        store::Process::Absorbing => Process::Absorbing,
        store::Process::Uniform => Process::Uniform,
    }
}

fn psi_to_store(psi: &Psi) -> store::Psi {
    use sampler::{Kappa as From, TimeProfile};
    use store::Kappa as To;
    let kappa = |kappa| match kappa {
        From::PurePosterior => To::PurePosterior,
        From::PureCorrector => To::PureCorrector,
        From::Constant(kappa) => To::Constant(kappa),
        From::ConstantRemdm { eta } => To::ConstantRemdm { eta },
        From::MaxCapped { eta } => To::MaxCapped { eta },
        From::MaxRescale { eta } => To::MaxRescale { eta },
        From::MaxRescaleOnce { eta } => To::MaxRescaleOnce { eta },
    };
    store::Psi {
        profile: match psi.profile {
            TimeProfile::Linear => store::TimeProfile::Linear,
            TimeProfile::Pause { time } => store::TimeProfile::Pause { time },
            TimeProfile::PauseAtAlpha { alpha } => store::TimeProfile::PauseAtAlpha { alpha },
        },
        high_fraction: psi.high_fraction,
        middle_fraction: psi.middle_fraction,
        high: kappa(psi.high),
        middle: kappa(psi.middle),
        low: kappa(psi.low),
    }
}

fn psi_from_store(psi: &store::Psi) -> Psi {
    use sampler::{Kappa as To, TimeProfile};
    use store::Kappa as From;
    let kappa = |kappa| match kappa {
        From::PurePosterior => To::PurePosterior,
        From::PureCorrector => To::PureCorrector,
        From::Constant(kappa) => To::Constant(kappa),
        From::ConstantRemdm { eta } => To::ConstantRemdm { eta },
        From::MaxCapped { eta } => To::MaxCapped { eta },
        From::MaxRescale { eta } => To::MaxRescale { eta },
        From::MaxRescaleOnce { eta } => To::MaxRescaleOnce { eta },
    };
    Psi {
        profile: match psi.profile {
            store::TimeProfile::Linear => TimeProfile::Linear,
            store::TimeProfile::Pause { time } => TimeProfile::Pause { time },
            store::TimeProfile::PauseAtAlpha { alpha } => TimeProfile::PauseAtAlpha { alpha },
        },
        high_fraction: psi.high_fraction,
        middle_fraction: psi.middle_fraction,
        high: kappa(psi.high),
        middle: kappa(psi.middle),
        low: kappa(psi.low),
    }
}
