//! Sampling defaults, between the engine and the store's manifest.

use crate::engine::{Predictor, Sampling};
use crate::store::{self, SamplerDefaults};

pub(super) fn to_store(sampling: &Sampling, time_conditioning: bool) -> SamplerDefaults {
    SamplerDefaults {
        predictor: match sampling.predictor {
            Predictor::FirstHitting => store::Predictor::FirstHitting,
            Predictor::Ancestral { steps } => store::Predictor::Ancestral { steps },
            Predictor::Confidence { threshold } => store::Predictor::Confidence { threshold },
        },
        temperature: sampling.temperature,
        nucleus_p: sampling.nucleus_p,
        top_k: sampling.top_k,
        block_size: sampling.block_size,
        time_conditioning,
    }
}

pub(super) fn from_store(defaults: &SamplerDefaults) -> Sampling {
    Sampling {
        predictor: match defaults.predictor {
            store::Predictor::FirstHitting => Predictor::FirstHitting,
            store::Predictor::Ancestral { steps } => Predictor::Ancestral { steps },
            store::Predictor::Confidence { threshold } => Predictor::Confidence { threshold },
        },
        block_size: defaults.block_size,
        temperature: defaults.temperature,
        nucleus_p: defaults.nucleus_p,
        top_k: defaults.top_k,
    }
}
