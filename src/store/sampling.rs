//! What the store records of a variant's process, and of how its text is sampled.

use serde::{Deserialize, Serialize};

use crate::sampler::settings::{Predictor, Sampling};
use crate::sampler::{self, Certainty};

/// The corruption process a variant was trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredProcess {
    Absorbing,
    Uniform,
}

/// What a request gets that does not choose. Every number is finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerDefaults {
    pub predictor: Predictor,
    pub temperature: f32,
    pub nucleus_p: f32,
    pub top_k: Option<usize>,
    /// Of the uniform process: tokens denoised together, or the whole sequence where absent. Of the absorbing one: as requests
    /// have it.
    pub block_size: Option<usize>,
    /// Whether the variant is told the noise level.
    pub time_conditioning: bool,
    #[serde(default = "best", skip_serializing_if = "is_best")]
    pub certainty: Certainty,
    /// Of the absorbing process: in which blocks the variant is denoised, where these are not the base's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Blocks>,
}

/// What a variant sees and makes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// The whole text.
    Whole,
    /// So many tokens.
    Of(usize),
}

/// What records were written without.
fn best() -> Certainty {
    Certainty::Best
}

fn is_best(certainty: &Certainty) -> bool {
    *certainty == Certainty::Best
}

impl SamplerDefaults {
    pub fn new(sampling: &Sampling, time_conditioning: bool) -> Self {
        SamplerDefaults {
            predictor: sampling.predictor,
            temperature: sampling.temperature,
            nucleus_p: sampling.nucleus_p,
            top_k: sampling.top_k,
            block_size: sampling.block_size,
            time_conditioning,
            certainty: sampling.certainty,
            blocks: None,
        }
    }

    pub fn sampling(&self) -> Sampling {
        Sampling {
            predictor: self.predictor,
            temperature: self.temperature,
            nucleus_p: self.nucleus_p,
            top_k: self.top_k,
            block_size: self.block_size,
            certainty: self.certainty,
        }
    }
}

impl Default for SamplerDefaults {
    fn default() -> Self {
        let predictor = sampler::AbsorbingPredictor::FirstHitting.into();
        SamplerDefaults::new(&Sampling::plain(predictor), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As stores were written at first.
    #[test]
    fn records_without_a_certainty_come_back_as_they_were() {
        let text = concat!(
            r#"{"predictor":{"confidence":{"threshold":0.5}},"temperature":0.9,"nucleus_p":0.95,"#,
            r#""top_k":null,"block_size":null,"time_conditioning":false}"#
        );
        let defaults: SamplerDefaults = serde_json::from_str(text).unwrap();
        let predictor = sampler::AbsorbingPredictor::Confidence {
            threshold: 0.5,
            steps: None,
        };
        assert_eq!(defaults.predictor, predictor.into());
        assert_eq!(defaults.certainty, Certainty::Best);
        assert_eq!(serde_json::to_string(&defaults).unwrap(), text);
        let drawn = text.replace("false}", r#"false,"certainty":"drawn"}"#);
        let defaults: SamplerDefaults = serde_json::from_str(&drawn).unwrap();
        assert_eq!(defaults.certainty, Certainty::Drawn);
        assert_eq!(SamplerDefaults::new(&defaults.sampling(), false), defaults);
        let blocks = text.replace("false}", r#"false,"blocks":{"of":32}}"#);
        let defaults: SamplerDefaults = serde_json::from_str(&blocks).unwrap();
        assert_eq!(defaults.blocks, Some(Blocks::Of(32)));
        assert_eq!(serde_json::to_string(&defaults).unwrap(), blocks);
        let unknown = text.replace("false}", r#"false,"more":1}"#);
        assert!(serde_json::from_str::<SamplerDefaults>(&unknown).is_err());
    }
}
