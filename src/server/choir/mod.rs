//! `choir.v1` over gRPC: the full interface.

mod admin;
pub mod convert;
mod inference;
mod upload;

pub use admin::AdminService;
pub use inference::InferenceService;
pub use upload::CHUNK_BYTES;
