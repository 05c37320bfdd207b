//! How tokens are drawn, as requests, variants and stores have it. A predictor's serialised form is part of the store's format.

use serde::{Deserialize, Serialize};

use super::{Certainty, UniformPredictor, absorbing};

/// How noise becomes text: a predictor of the variant's own process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Predictor {
    Uniform(UniformPredictor),
    #[serde(untagged)]
    Absorbing(absorbing::AbsorbingPredictor),
}

impl Predictor {
    /// Evaluations that make so many tokens in blocks, or windows, of `block_size`: at least, and at most.
    pub fn evaluations(self, tokens: usize, block_size: usize) -> (u32, u32) {
        let blocks = tokens.div_ceil(block_size);
        let (least, most) = match self {
            Predictor::Absorbing(predictor) => predictor.evaluations(tokens, blocks),
            Predictor::Uniform(predictor) => {
                let steps = predictor.steps as usize;
                (blocks * steps, blocks * (steps + 1))
            }
        };
        let fits = |evaluations| u32::try_from(evaluations).unwrap_or(u32::MAX);
        (fits(least), fits(most))
    }
}

impl From<absorbing::AbsorbingPredictor> for Predictor {
    fn from(predictor: absorbing::AbsorbingPredictor) -> Self {
        Predictor::Absorbing(predictor)
    }
}

impl From<UniformPredictor> for Predictor {
    fn from(predictor: UniformPredictor) -> Self {
        Predictor::Uniform(predictor)
    }
}

/// How tokens are drawn. Refused where out of range: `temperature` in 0 ..= 100 (0 takes the most
/// likely token), `nucleus_p` in (0, 1], `top_k` and `steps` at least 1, `threshold` in (0, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    pub predictor: Predictor,
    pub temperature: f32,
    pub nucleus_p: f32,
    pub top_k: Option<usize>,
    /// Tokens denoised together: must be the variant's own where that is block-causal, and absent means the variant's own. Where a
    /// variant of the absorbing process denoises whole texts: the answer's windows, revealed from left to right.
    pub block_size: Option<usize>,
    /// What a position is revealed by, where the predictor reveals by certainty.
    pub certainty: Certainty,
}

impl Sampling {
    /// All tokens as the network gives them.
    pub fn plain(predictor: Predictor) -> Self {
        Sampling {
            predictor,
            temperature: 1.0,
            nucleus_p: 1.0,
            top_k: None,
            block_size: None,
            certainty: Certainty::Best,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{Kappa, NoiseRemoval, Psi, TimeProfile};

    #[test]
    fn predictors_come_back() {
        let uniform = UniformPredictor {
            steps: 8,
            eps: 1e-5,
            noise_removal: NoiseRemoval::Greedy,
            psi: Psi {
                profile: TimeProfile::PauseAtAlpha { alpha: 0.9 },
                high_fraction: 0.25,
                middle_fraction: 0.5,
                high: Kappa::PurePosterior,
                middle: Kappa::Constant(0.5),
                low: Kappa::MaxCapped { eta: 0.1 },
            },
        };
        let old = concat!(
            r#"{"uniform":{"steps":8,"eps":1e-5,"noise_removal":"greedy","psi":{"#,
            r#""profile":{"pause_at_alpha":{"alpha":0.9}},"high_fraction":0.25,"middle_fraction":0.5,"#,
            r#""high":"pure_posterior","middle":{"constant":0.5},"low":{"max_capped":{"eta":0.1}}}}}"#
        );
        let predictor = Predictor::from(uniform);
        let old: serde_json::Value = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_value(predictor).unwrap(), old);
        let first = Predictor::from(absorbing::AbsorbingPredictor::FirstHitting);
        assert_eq!(serde_json::to_string(&first).unwrap(), r#""first_hitting""#);
        for predictor in [
            predictor,
            first,
            absorbing::AbsorbingPredictor::Ancestral { steps: 3 }.into(),
            absorbing::AbsorbingPredictor::Static { steps: 4 }.into(),
            absorbing::AbsorbingPredictor::Sequential { steps: 4 }.into(),
            absorbing::AbsorbingPredictor::Confidence {
                threshold: 0.5,
                steps: Some(2),
            }
            .into(),
        ] {
            let text = serde_json::to_string(&predictor).unwrap();
            assert_eq!(serde_json::from_str::<Predictor>(&text).unwrap(), predictor);
        }
    }
}
