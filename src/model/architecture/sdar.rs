//! SDAR (dense): a Qwen3 body, block-causal from position 0.

use super::qwen::{Body, QwenConfig, config as read_config};
use super::{Architecture, ConfigError};
use crate::model::facts::Grid;

/// Where an older copy of the configuration does not say them.
const MASK: u32 = 151_669;
const BLOCK: usize = 4;

pub fn read(config: &[u8]) -> Result<Architecture, ConfigError> {
    let mut config: QwenConfig = read_config(config)?;
    config.mask_token_id.get_or_insert(MASK);
    config.block_size.get_or_insert(BLOCK);
    config.network(&Body {
        qk_norm: true,
        bias: false,
        grid: Grid::Start,
    })
}
