//! The engine: one thread owns the model and its cache, and runs schedule, forward, sample, deliver
//! for all sequences together, one step after the other.
//!
//! What it is given is a [`Generation`] (a model instance and the names it serves); what it knows of the
//! network is `model::Denoiser`. It knows neither files nor the wire.

mod admission;
mod caps;
mod check;
pub mod choice;
pub mod error;
pub mod generation;
pub mod handle;
pub mod ledger;
mod materialised;
mod pace;
mod pages;
mod prefix;
pub mod request;
mod runner;
mod scheduler;
pub mod score;
mod sequence;
mod step;
pub mod stream;
mod text;
mod threads;

pub use check::sampling as check_sampling;
pub use choice::{Choice, PredictorKind, PsiChoice};
pub use error::{Capped, Error};
pub use generation::{Generation, MemoryPart, VariantFacts};
pub use handle::{Engine, EngineConfig, EngineHandle, Refused, ScoreReply, Status, VariantLoad};
pub use ledger::{BASE, Service};
pub use request::{
    Event, Predictor, Priority, Reason, Request, Revealed, Sampling, Score, ScoreRequest, Summary,
};
pub use stream::EventStream;
