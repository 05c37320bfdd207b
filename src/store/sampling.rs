//! What the store records of a variant's process, and of how its text is sampled.

use serde::{Deserialize, Serialize};

/// The corruption process a variant was trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    Absorbing,
    Uniform,
}

/// How noise becomes text, where a request does not choose: a predictor of the variant's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Predictor {
    #[default]
    FirstHitting,
    Ancestral {
        steps: u32,
    },
    Confidence {
        threshold: f32,
    },
    Uniform(UniformPredictor),
}

/// Of the uniform process: a Psi-sampler, its steps, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UniformPredictor {
    pub steps: u32,
    pub eps: f64,
    pub noise_removal: NoiseRemoval,
    pub psi: Psi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseRemoval {
    Ancestral,
    Greedy,
}

/// How time runs, and the share of the posterior in each of three parts of the steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Psi {
    pub profile: TimeProfile,
    pub high_fraction: f64,
    pub middle_fraction: f64,
    pub high: Kappa,
    pub middle: Kappa,
    pub low: Kappa,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeProfile {
    Linear,
    Pause { time: f64 },
    PauseAtAlpha { alpha: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kappa {
    PurePosterior,
    PureCorrector,
    Constant(f64),
    ConstantRemdm { eta: f64 },
    MaxCapped { eta: f64 },
    MaxRescale { eta: f64 },
    MaxRescaleOnce { eta: f64 },
}

/// What a request gets that does not choose. Every number is finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerDefaults {
    pub predictor: Predictor,
    pub temperature: f32,
    pub nucleus_p: f32,
    pub top_k: Option<usize>,
    /// Of the uniform process: tokens denoised together, or the whole sequence where absent. Of the absorbing one: the base's,
    /// whether said or not.
    pub block_size: Option<usize>,
    /// Whether the variant is told the noise level.
    pub time_conditioning: bool,
}

impl Default for SamplerDefaults {
    fn default() -> Self {
        SamplerDefaults {
            predictor: Predictor::default(),
            temperature: 1.0,
            nucleus_p: 1.0,
            top_k: None,
            block_size: None,
            time_conditioning: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As stores were written before there was another process.
    #[test]
    fn earlier_records_are_still_read() {
        let text = r#"{"predictor": {"confidence": {"threshold": 0.5}}, "temperature": 0.9, "nucleus_p": 0.95,
            "top_k": null, "block_size": null, "time_conditioning": false}"#;
        let defaults: SamplerDefaults = serde_json::from_str(text).unwrap();
        assert_eq!(defaults.predictor, Predictor::Confidence { threshold: 0.5 });
        let text = text.replace(
            r#"{"confidence": {"threshold": 0.5}}"#,
            r#""first_hitting""#,
        );
        let defaults: SamplerDefaults = serde_json::from_str(&text).unwrap();
        assert_eq!(defaults.predictor, Predictor::FirstHitting);
    }

    #[test]
    fn a_predictor_of_the_uniform_process_comes_back() {
        let kappas = [
            Kappa::PurePosterior,
            Kappa::Constant(0.5),
            Kappa::MaxCapped { eta: 0.1 },
        ];
        let [high, middle, low] = kappas;
        let predictor = Predictor::Uniform(UniformPredictor {
            steps: 8,
            eps: 1e-5,
            noise_removal: NoiseRemoval::Greedy,
            psi: Psi {
                profile: TimeProfile::PauseAtAlpha { alpha: 0.9 },
                high_fraction: 0.25,
                middle_fraction: 0.5,
                high,
                middle,
                low,
            },
        });
        let text = serde_json::to_string(&predictor).unwrap();
        assert_eq!(serde_json::from_str::<Predictor>(&text).unwrap(), predictor);
    }
}
