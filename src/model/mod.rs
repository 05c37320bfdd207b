//! The denoiser x_theta(x_t, sigma): the DiT of BD3-LM, MDLM and Duo, its weights, and the batch it reads.

pub mod architecture;
pub mod attention;
pub mod base;
pub mod batch;
pub mod conditioning;
pub mod denoiser;
pub mod error;
pub mod facts;
pub mod gpu;
pub mod host;
pub mod kv_cache;
pub mod linear;
mod modulation;
pub mod place;
mod plan;
pub mod profile;
mod tables;
pub mod target;
pub mod tokenizer;
pub mod train_batch;
pub mod trainable;
pub mod variant;
pub mod weights;
mod workspace;

pub use architecture::Architecture;
pub use architecture::dit::DitConfig;
pub use base::BaseWeights;
pub use batch::{Batch, Logits, Mix, Outcome, PageId, Segment, VariantId};
pub use denoiser::Denoiser;
pub use error::{Error, Result};
pub use facts::{CacheShape, Grid, NetworkFacts, Process, Regime};
pub use host::HostNetwork;
pub use place::Place;
pub use train_batch::{SoftTokens, TrainBatch};
pub use trainable::{Differentiable, Trainable};
pub use weights::{ServedBank, VariantWeights};
