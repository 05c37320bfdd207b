//! Choir: one base diffusion language model and many full fine-tunes of it, kept as seed-defined
//! superpositions, read back per request and sampled with block diffusion.
//!
//! The modules are listed from the top down: each uses only those below it
//! (`tests/layering.rs` holds that).

pub mod catalog;
pub mod cli;
pub mod engine;
pub mod model;
pub mod ops;
pub mod rng;
pub mod sampler;
pub mod server;
pub mod store;
pub mod superposition;
pub mod telemetry;
pub mod train;
pub mod transform;
