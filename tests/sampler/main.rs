//! The samplers against golden data: closed forms, and the law of what they make with the real network.

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod block_law;
mod chi_square;
mod closed_forms;
mod drive;
mod psi_grids;
mod traces;
mod uniform_law;
