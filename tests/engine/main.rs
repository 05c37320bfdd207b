//! The engine, with a fake network that checks what it is given and with the real one.

mod batching;
mod caps;
mod deadlines;
mod decoding;
mod fairness;
mod fake;
#[path = "../fixtures/mod.rs"]
mod fixtures;
mod generations;
mod limits;
mod materialised;
mod network;
mod pages;
mod readers;
mod requests;
mod scoring;
mod simulator;
mod soak;
mod text;
mod uniform;
