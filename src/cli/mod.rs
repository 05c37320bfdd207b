//! (module cli)
pub mod train;
