//! The denoiser x_theta(x_t, sigma): the DiT of BD3-LM, MDLM and Duo, its weights, and the batch it reads.

pub mod attention;
pub mod batch;
pub mod conditioning;
pub mod config;
pub mod dit;
pub mod facts;
pub mod gpu;
pub mod kv_cache;
pub mod linear;
mod modulation;
pub mod place;
mod plan;
pub mod profile;
mod tables;
pub mod tokenizer;
pub mod train_batch;
pub mod trainable;
pub mod variant;
pub mod weights;
mod workspace;

pub use batch::{Batch, Denoiser, Logits, Mix, Outcome, PageId, Segment, VariantId};
pub use config::DitConfig;
pub use dit::Dit;
pub use facts::{CacheShape, NetworkFacts, Process, Regime};
pub use place::Place;
pub use train_batch::{SoftTokens, TrainBatch};
pub use trainable::{Differentiable, Trainable};
pub use weights::{BaseWeights, ServedBank, VariantWeights};
