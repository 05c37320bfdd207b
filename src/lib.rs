//! Choir: one base diffusion language model and many full fine-tunes of it, kept as seed-defined
//! superpositions, read back per request and sampled with block diffusion.
//!
//! `cli` stands on `server`, that on `catalog`, that on `engine` and `store`; `engine` on `model` and `sampler`, `store` on
//! `superposition`; `train` stands beside `engine`. `tests/layering.rs` holds every direction.

#![deny(unsafe_code)] // allowed where it says why
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::todo,
        clippy::dbg_macro
    )
)]

pub mod catalog;
pub mod checkpoint;
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

/// The generated code of `proto/choir/v1`, for `server` and the command line's client.
#[allow(missing_docs, clippy::all)]
pub mod pb {
    tonic::include_proto!("choir.v1");

    /// The encoded descriptor set, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/choir.v1.bin"));
}
