//! The denoiser x_theta(x_t, sigma): the DiT of BD3-LM, MDLM and Duo, its weights, and the batch it reads.

pub mod batch;
pub mod conditioning;
pub mod config;
pub mod kv_cache;
pub mod trainable;

pub use batch::{Batch, Denoiser, Logits, Mix, PageId, Segment, VariantId};
pub use config::{DitConfig, Process};
pub use trainable::{TrainBatch, Trainable};
