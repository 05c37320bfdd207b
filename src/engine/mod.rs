//! The engine: one thread owns the model and its cache, and runs step after step for all sequences together.
//!
//! What it is given is a [`Generation`] (a model instance and the names it serves); what it knows of the
//! network is `model::Denoiser`. It knows neither files nor the wire. Two state machines without clocks, channels and tensors decide
//! everything: the [`door`], who may wait and who starts next, and the [`batcher`], what the next step holds. The loop around them
//! is `Runner::run`.

pub mod batcher;
mod caps;
pub mod config;
pub mod door;
pub mod error;
pub mod generation;
pub mod handle;
pub mod ledger;
mod materialised;
pub mod pages;
pub mod prefix;
mod prepare;
pub mod request;
mod runner;
pub mod sampling;
mod schedule;
pub mod sequence;
mod shared;
pub mod status;
mod step;
pub mod stream;
mod threads;
pub mod throughput;
mod turns;
mod wake;
mod work;

pub use config::EngineConfig;
pub use error::{Capped, Error};
pub use generation::{BASE, Generation, MemoryPart, Resolved, Target, VariantFacts};
pub use handle::{Engine, EngineHandle, LONG_TEXT, Preparation, ScoreReply};
pub use ledger::ServiceShare;
pub use prepare::{MAX_STOP_IDS, MAX_STOPS, sampling as check_sampling, stops as check_stops};
pub use request::{Event, Priority, Reason, Request, Revealed, Score, ScoreRequest, Summary};
pub use sampling::{Predictor, Sampling};
pub use status::{EngineStatus, RefusalCounts, VariantLoad};
pub use stream::EventStream;

pub use crate::sampler::{PredictorKind, PsiParams, SamplingParams};
