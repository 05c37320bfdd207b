//! A2D: autoregressive Qwen models made into diffusion ones, of whole sequences (`mdlm`) or of blocks that are counted from
//! the prompt's end (`bd3lm`). Their configuration does not say which; the mask is a token that the tokenizer adds.

use super::qwen::{Body, config as read_config};
use super::{Architecture, ConfigError};
use crate::model::facts::Grid;

pub fn qwen3(config: &[u8]) -> Result<Architecture, ConfigError> {
    read_config(config)?.network(&Body {
        qk_norm: true,
        bias: false,
        grid: Grid::PromptEnd,
    })
}

pub fn qwen2(config: &[u8]) -> Result<Architecture, ConfigError> {
    read_config(config)?.network(&Body {
        qk_norm: false,
        bias: true,
        grid: Grid::PromptEnd,
    })
}
