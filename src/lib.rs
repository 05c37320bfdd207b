//! Choir serves one base diffusion language model and many full fine-tunes of it ("variants") in little more memory than the base.
//!
//! A variant is a *delta* to every matrix of the base. Deltas are kept in few bits, by themselves or many in one *superposition*, and read back while a request is
//! evaluated: on the activations, so that rows of any variants share the products with the base. Clients pick a variant for each request; operators add and
//! remove variants while the service runs.
//!
//! # Where to begin
//!
//! - [`catalog::Catalog::open`] opens a store of variants and gives the [`engine::Generation`] that it serves; [`catalog::Catalog::add`] and
//!   [`catalog::Catalog::remove`] change both.
//! - [`engine::Engine::start`] serves a generation on a thread of its own; [`engine::EngineHandle::submit`] asks for text.
//! - [`server::serve`] puts both on the wire; [`pb`] has the protocol's messages and the client.
//! - [`client`] is a connection to a server, [`load`] many clients at once and what became of their requests.
//! - [`train`] makes bases and variants.
//!
//! `examples/library.rs` goes from a checkpoint to text in sixty lines, `examples/client.rs` asks a server. The program's own wiring is [`cli::serve`].
//!
//! # Who may know what
//!
//! `cli` stands on `server`, that on `catalog`, that on `engine` and `store`; `engine` on `model` and `sampler`, `store` on
//! `superposition`; `train` stands beside `engine`. A sampler never calls the model: it is a state machine that says what it wants evaluated. The engine knows
//! neither files nor the wire. `tests/layering.rs` holds every direction, `docs/architecture.md` has the picture.

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
pub mod client;
pub mod engine;
pub mod load;
pub mod model;
pub mod sampler;
pub mod server;
pub mod store;
pub mod superposition;
pub mod telemetry;
pub mod train;

pub use choir_ops::{self as ops, rng, transform};

/// The generated code of `proto/inference`, for `server`.
#[allow(missing_docs, clippy::all)]
pub mod kserve {
    tonic::include_proto!("inference");

    /// The encoded descriptor set, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
}

/// The generated code of `proto/choir/v1`, for `server`, `client` and those above them.
#[allow(missing_docs, clippy::all)]
pub mod pb {
    tonic::include_proto!("choir.v1");

    /// The encoded descriptor set, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/choir.v1.bin"));
}
