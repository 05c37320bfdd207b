//! Kernels on the host: their own source, compiled by a C++ compiler as [`emulated`] tells, against plain computations.

mod attention;
mod decoders;
mod draws;
mod emulated;
#[path = "../fixtures/mod.rs"]
mod fixtures;
mod grids;
mod heads;
mod network;
mod own;
mod pointwise;
mod probe;
mod product;
mod products;
mod quantised;
mod rig;
mod room;
mod superposition;
mod tiles;
mod train;
