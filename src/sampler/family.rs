//! What the published samplers of each family do, and what they are run with where nobody says anything else.

use super::absorbing::AbsorbingPredictor;
use super::{Certainty, Convention, Crossing, LastBlock, Sampling, StepSplit};

/// Tokens of an answer's window, and steps of it, of A2D's masked checkpoints (`MDLMSamplerConfig`).
const A2D_WINDOW: usize = 128;

impl Convention {
    /// Of the family that `model_type` names; BD3-LM's for one that is not known here.
    pub fn of(model_type: &str) -> Self {
        match model_type {
            "sdar" => Convention {
                crossing: Crossing::Kept,
                share: StepSplit::Equal,
                last_block: LastBlock::Whole,
            },
            "a2d-qwen2" | "a2d-qwen3" => Convention {
                crossing: Crossing::Kept,
                share: StepSplit::Rounded,
                last_block: LastBlock::Cut,
            },
            _ => Convention::default(),
        }
    }
}

impl Sampling {
    /// What the family that `model_type` names is run with by its own code; `block`: tokens denoised together, where the
    /// checkpoint is block-causal. `None` for a family whose process says it all.
    pub fn of_family(model_type: &str, block: Option<usize>) -> Option<Self> {
        let steps = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        match model_type {
            // generate.py: dynamic, at least an equal share.
            "sdar" => Some(Sampling {
                certainty: Certainty::Filtered,
                ..Sampling::plain(
                    AbsorbingPredictor::Confidence {
                        threshold: 0.85,
                        steps: block.map(steps),
                    }
                    .into(),
                )
            }),
            // BD3LMSampler and MDLMSampler: one token a step, greedily.
            "a2d-qwen2" | "a2d-qwen3" => Some(Sampling {
                temperature: 0.0,
                block_size: block.is_none().then_some(A2D_WINDOW),
                certainty: Certainty::Drawn,
                ..Sampling::plain(
                    AbsorbingPredictor::Static {
                        steps: steps(block.unwrap_or(A2D_WINDOW)),
                    }
                    .into(),
                )
            }),
            _ => None,
        }
    }
}
