//! How tokens are drawn, of which process.

use crate::model::Process;
pub use crate::sampler::settings::{Predictor, Sampling};
use crate::sampler::{self, UniformPredictor};

impl Predictor {
    pub fn process(&self) -> Process {
        match self {
            Predictor::Absorbing(_) => Process::Absorbing,
            Predictor::Uniform(_) => Process::Uniform,
        }
    }
}

impl Sampling {
    /// What a variant of this process gets that says nothing.
    pub fn of(process: Process) -> Self {
        Sampling::plain(match process {
            Process::Absorbing => sampler::AbsorbingPredictor::FirstHitting.into(),
            Process::Uniform => UniformPredictor::default().into(),
        })
    }
}

impl Default for Sampling {
    /// Of the absorbing process.
    fn default() -> Self {
        Sampling::of(Process::Absorbing)
    }
}
