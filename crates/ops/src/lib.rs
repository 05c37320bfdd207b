//! Fused operations on the CPU, each tested against a slow twin made of plain tensor algebra; devices have theirs in [`gpu`].
//!
//! They work on contiguous f32 slices with rayon. Row results never depend on the number of rows or threads. Operations that training needs come with
//! a `*_backward`, checked against finite differences; nothing here uses candle's automatic
//! differentiation, whose zero-filled accumulators cost more than the operations themselves.

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

pub mod attend;
pub mod attention;
pub mod categorical;
pub mod coded;
pub mod cross_entropy;
pub mod divergence;
pub mod embedding;
pub mod error;
pub mod gemm;
pub mod gpu;
pub mod isa;
pub mod math;
pub mod norm;
pub mod packed;
pub mod panel;
pub mod pointwise;
pub mod quantized;
pub mod rng;
pub mod rotary;
pub mod slice;
pub mod transform;
pub mod uniform_nelbo;

pub use attention::{Pattern, attention, attention_backward};
pub use cross_entropy::{cross_entropy, cross_entropy_backward};
pub use divergence::{Divergence, divergence_backward};
pub use embedding::{embedding, embedding_backward, embedding_mix, embedding_mix_backward};
pub use error::Error;
pub use norm::{Affine, Norm, norm_into, norm_modulate, norm_modulate_backward, residual_norm};
pub use pointwise::{
    add_bias, add_bias_in_place, bias_gelu, bias_gelu_backward, bias_gelu_in_place, column_sums,
    gate_residual, gate_residual_backward, swiglu,
};
pub use rotary::Rotary;
pub use slice::PerRow;
pub use uniform_nelbo::{UniformTerm, uniform_nelbo, uniform_nelbo_backward};

#[cfg(test)]
mod tests;
