//! Sampling settings as somebody chooses them: some, and defaults for the rest.

use super::settings::{Predictor, Sampling};
use super::{Certainty, Error, Kappa, NoiseRemoval, Psi, TimeProfile, UniformPredictor, absorbing};

/// The predictors by name. What `Ancestral` is depends on the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictorKind {
    FirstHitting,
    Ancestral,
    Confidence,
    Static,
    Sequential,
    Psi,
}

/// What is chosen; `None` where the defaults hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingParams {
    pub kind: Option<PredictorKind>,
    pub steps: Option<u32>,
    pub threshold: Option<f32>,
    pub eps: Option<f64>,
    pub noise_removal: Option<NoiseRemoval>,
    pub psi: PsiParams,
    pub block_size: Option<usize>,
    pub temperature: Option<f32>,
    pub nucleus_p: Option<f32>,
    pub top_k: Option<usize>,
    pub certainty: Option<Certainty>,
}

/// The parts of a [`Psi`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PsiParams {
    pub profile: Option<TimeProfile>,
    pub high_fraction: Option<f64>,
    pub middle_fraction: Option<f64>,
    pub high: Option<Kappa>,
    pub middle: Option<Kappa>,
    pub low: Option<Kappa>,
}

impl SamplingParams {
    /// The settings in full: what is chosen, over `defaults`, whose predictor also says which process it is.
    ///
    /// # Errors
    /// A setting that the predictor lacks or does not have; ranges are checked with the request.
    pub fn over(&self, defaults: Sampling) -> Result<Sampling, Error> {
        Ok(Sampling {
            predictor: match defaults.predictor {
                Predictor::Absorbing(default) => self.absorbing(default)?,
                Predictor::Uniform(default) => self.uniform(default)?,
            },
            block_size: self.block_size.or(defaults.block_size),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            nucleus_p: self.nucleus_p.unwrap_or(defaults.nucleus_p),
            top_k: self.top_k.or(defaults.top_k),
            certainty: self.certainty.unwrap_or(defaults.certainty),
        })
    }

    fn absorbing(&self, default: absorbing::AbsorbingPredictor) -> Result<Predictor, Error> {
        use absorbing::AbsorbingPredictor::{
            Ancestral, Confidence, FirstHitting, Sequential, Static,
        };
        if self.kind == Some(PredictorKind::Psi) {
            return Err(of_uniform("psi"));
        }
        let uniform_only = [
            ("eps", self.eps.is_some()),
            ("noise_removal", self.noise_removal.is_some()),
            ("psi", self.psi != PsiParams::default()),
        ];
        if let Some((field, _)) = uniform_only.iter().find(|(_, set)| *set) {
            return Err(bad(
                field,
                "only the uniform process has it, and this variant's is absorbing",
            ));
        }
        let (default_steps, default_threshold) = match default {
            FirstHitting => (None, None),
            Ancestral { steps } | Static { steps } | Sequential { steps } => (Some(steps), None),
            Confidence { threshold, steps } => (steps, Some(threshold)),
        };
        // A setting that the default does not have chooses the predictor that has it.
        let kind = self.kind.or(match (self.steps, self.threshold) {
            (_, Some(_)) => Some(PredictorKind::Confidence),
            (Some(_), None) if default_steps.is_none() => Some(PredictorKind::Ancestral),
            _ => None,
        });
        let kind = kind.unwrap_or(match default {
            FirstHitting => PredictorKind::FirstHitting,
            Ancestral { .. } => PredictorKind::Ancestral,
            Confidence { .. } => PredictorKind::Confidence,
            Static { .. } => PredictorKind::Static,
            Sequential { .. } => PredictorKind::Sequential,
        });
        let needed = || {
            let steps = self.steps.or(default_steps);
            steps.ok_or_else(|| bad("steps", "this predictor needs them"))
        };
        let predictor = match kind {
            PredictorKind::FirstHitting | PredictorKind::Psi => FirstHitting,
            PredictorKind::Ancestral => Ancestral { steps: needed()? },
            PredictorKind::Static => Static { steps: needed()? },
            PredictorKind::Sequential => Sequential { steps: needed()? },
            PredictorKind::Confidence => {
                let threshold = self.threshold.or(default_threshold);
                let least = matches!(default, Confidence { .. }).then_some(default_steps);
                Confidence {
                    threshold: threshold
                        .ok_or_else(|| bad("threshold", "the confidence predictor needs it"))?,
                    steps: self.steps.or(least.flatten()),
                }
            }
        };
        if self.steps.is_some() && predictor == FirstHitting {
            return Err(bad("steps", "the first-hitting predictor has none"));
        }
        if self.threshold.is_some() && !matches!(predictor, Confidence { .. }) {
            return Err(bad("threshold", "only the confidence predictor has it"));
        }
        if self.certainty.is_some() && !matches!(predictor, Confidence { .. } | Static { .. }) {
            return Err(bad("certainty", "this predictor does not reveal by it"));
        }
        Ok(predictor.into())
    }

    fn uniform(&self, default: UniformPredictor) -> Result<Predictor, Error> {
        let chosen = self.psi;
        let psi = match self.kind {
            Some(PredictorKind::FirstHitting) => {
                return Err(of_absorbing("first-hitting"));
            }
            Some(PredictorKind::Confidence) => {
                return Err(of_absorbing("confidence"));
            }
            Some(PredictorKind::Static) => return Err(of_absorbing("static")),
            Some(PredictorKind::Sequential) => {
                return Err(of_absorbing("sequential"));
            }
            Some(PredictorKind::Ancestral) if chosen != PsiParams::default() => {
                return Err(bad("psi", "the ancestral predictor has no such settings"));
            }
            Some(PredictorKind::Ancestral) => Psi::ANCESTRAL,
            Some(PredictorKind::Psi) | None => Psi {
                profile: chosen.profile.unwrap_or(default.psi.profile),
                high_fraction: chosen.high_fraction.unwrap_or(default.psi.high_fraction),
                middle_fraction: chosen
                    .middle_fraction
                    .unwrap_or(default.psi.middle_fraction),
                high: chosen.high.unwrap_or(default.psi.high),
                middle: chosen.middle.unwrap_or(default.psi.middle),
                low: chosen.low.unwrap_or(default.psi.low),
            },
        };
        if self.threshold.is_some() {
            return Err(bad("threshold", "only the confidence predictor has it"));
        }
        if self.certainty.is_some() {
            return Err(bad("certainty", "only the absorbing process has it"));
        }
        let predictor = UniformPredictor {
            steps: self.steps.unwrap_or(default.steps),
            eps: self.eps.unwrap_or(default.eps),
            noise_removal: self.noise_removal.unwrap_or(default.noise_removal),
            psi,
        };
        Ok(predictor.into())
    }
}

/// The refusal of a predictor of the uniform process by a variant of the absorbing one.
pub fn of_uniform(predictor: &str) -> Error {
    let reason = "is of the uniform process; this variant's is absorbing: first-hitting, ancestral, confidence, static or sequential";
    bad("predictor", format!("{predictor} {reason}"))
}

/// The refusal of a predictor of the absorbing process by a variant of the uniform one.
pub fn of_absorbing(predictor: &str) -> Error {
    let reason = "is of the absorbing process; this variant's is uniform: ancestral or psi";
    bad("predictor", format!("{predictor} {reason}"))
}

fn bad(field: &'static str, reason: impl Into<String>) -> Error {
    Error::Unfit {
        field,
        reason: reason.into(),
    }
}
