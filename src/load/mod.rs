//! Many clients at once against a server, over the wire, and what became of their requests: what `choir bench serve` measures with.
//!
//! A [`Load`] says which requests come, as a pure function of its seed; a [`Driver`] sends them as [`Arrivals`] say and notes every
//! answer; a [`LoadReport`] makes figures of that.

mod drive;
mod figures;
mod plan;
mod probe;

pub use drive::{Arrivals, Driven, Driver, RequestEnd, RequestOutcome, Until};
pub use figures::{Figures, LoadReport, Overload, Probe, Quantiles};
pub use plan::{Load, LoadSettings, NoisyVariant, PlannedRequest, Popularity, Span};
pub use probe::Prober;
