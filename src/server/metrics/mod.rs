//! What happened, counted, as Prometheus reads it.
//!
//! Series of a variant come with its first request and go with it: what ends later is counted as that of `removed`.

mod standing;
mod watch;

pub use watch::RequestWatch;

use super::requests::Refusal;
use crate::catalog::Catalog;
use crate::engine::{self, BASE, EngineHandle};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// What the text of [`Metrics::text`] is.
pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// The protocol that a request came by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)] // as the label says it
pub enum Protocol {
    #[default]
    choir,
    openai,
    kserve,
}

/// How an accepted request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
pub enum Outcome {
    finished,
    /// Its client left.
    cancelled,
    /// Its deadline passed or could not be met.
    late,
    /// Its client did not read.
    stalled,
    /// Others took its place in a full queue.
    displaced,
    failed,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::choir, Protocol::openai, Protocol::kserve];
const OUTCOMES: [Outcome; 6] = [
    Outcome::finished,
    Outcome::cancelled,
    Outcome::late,
    Outcome::stalled,
    Outcome::displaced,
    Outcome::failed,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    variant: String,
    protocol: Protocol,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    protocol: Protocol,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Change {
    action: &'static str,
    outcome: &'static str,
}

/// Histograms with the same buckets.
#[derive(Clone, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms = Family<By, Histogram, Buckets>;

/// Seconds, from less than a step of a small network to minutes.
const SECONDS: Buckets = Buckets(&[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
]);
const TOKENS: Buckets = Buckets(&[0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]);

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The variants served, and the base.
    names: RwLock<BTreeSet<String>>,
    ended: Family<Ended, Counter>,
    refused: Family<Refused, Counter>,
    queued: Histograms,
    first_block: Histograms,
    between_blocks: Histograms,
    whole: Histograms,
    tokens_per_evaluation: Histograms,
    changes: Family<Change, Counter>,
    change_seconds: Family<Change, Histogram, Buckets>,
}

impl Metrics {
    pub fn new(engine: EngineHandle, catalog: Arc<Catalog>) -> Arc<Metrics> {
        let histograms = || Histograms::new_with_constructor(SECONDS);
        let mut metrics = Metrics {
            registry: Registry::with_prefix("choir"),
            names: RwLock::default(),
            ended: Family::default(),
            refused: Family::default(),
            queued: histograms(),
            first_block: histograms(),
            between_blocks: histograms(),
            whole: histograms(),
            tokens_per_evaluation: Histograms::new_with_constructor(TOKENS),
            changes: Family::default(),
            change_seconds: Family::new_with_constructor(SECONDS),
        };
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        let registry = &mut metrics.registry;
        registry.register("build", "The server's version", version);
        registry.register(
            "requests",
            "Requests that were accepted, by how they ended",
            metrics.ended.clone(),
        );
        registry.register(
            "requests_refused",
            "Requests that were turned away, by why",
            metrics.refused.clone(),
        );
        for (name, help, histograms) in [
            (
                "request_queue_seconds",
                "Time that requests waited for a place",
                &metrics.queued,
            ),
            (
                "request_first_block_seconds",
                "Time from a request to its first block",
                &metrics.first_block,
            ),
            (
                "request_block_interval_seconds",
                "Time from one block of a request to the next",
                &metrics.between_blocks,
            ),
            (
                "request_duration_seconds",
                "Time from a request to its end",
                &metrics.whole,
            ),
            (
                "request_tokens_per_evaluation",
                "Tokens that a request made for each network evaluation",
                &metrics.tokens_per_evaluation,
            ),
        ] {
            registry.register(name, help, histograms.clone());
        }
        registry.register(
            "variant_changes",
            "Additions and removals of variants",
            metrics.changes.clone(),
        );
        registry.register(
            "variant_change_seconds",
            "What additions and removals of variants took",
            metrics.change_seconds.clone(),
        );
        registry.register_collector(Box::new(standing::StandingMetrics::new(engine, catalog)));
        Arc::new(metrics)
    }

    /// All of it, in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if prometheus_text::encode(&mut text, &self.registry).is_err() {
            tracing::error!("metrics could not be written"); // a string takes whatever is written
        }
        text
    }

    /// Follows the names that are served: the series of others go.
    pub fn follow(&self, served: impl Iterator<Item = String>) {
        let served: BTreeSet<String> = served.chain([BASE.to_owned()]).collect();
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        for gone in names.difference(&served) {
            for protocol in PROTOCOLS {
                for outcome in OUTCOMES {
                    self.ended.remove(&Ended {
                        variant: gone.clone(),
                        protocol,
                        outcome,
                    });
                }
            }
        }
        *names = served;
    }

    fn count_end(&self, variant: &str, protocol: Protocol, outcome: Outcome) {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner); // held until it is counted
        let variant = names.get(variant).map_or("removed", String::as_str);
        let ended = Ended {
            variant: variant.to_owned(),
            protocol,
            outcome,
        };
        self.ended.get_or_create(&ended).inc();
    }

    /// A request was turned away.
    pub fn count_refusal(&self, protocol: Protocol, refusal: &Refusal) {
        let reason = reason(refusal);
        self.refused
            .get_or_create(&Refused { protocol, reason })
            .inc();
    }

    /// A variant was to be added or removed.
    pub fn count_change(&self, action: &'static str, done: bool, took: Duration) {
        let outcome = if done { "done" } else { "refused" };
        let change = Change { action, outcome };
        self.changes.get_or_create(&change).inc();
        let seconds = took.as_secs_f64();
        self.change_seconds.get_or_create(&change).observe(seconds);
    }
}

/// A refusal in one word.
fn reason(refusal: &Refusal) -> &'static str {
    use engine::Error::*;
    let error = match refusal {
        Refusal::Field(_) | Refusal::Chat(_) => return "invalid",
        Refusal::Overspent(_) => return "key",
        Refusal::Engine(error) => error,
    };
    match error {
        UnknownVariant { .. } => "unknown_variant",
        BadField { .. } | PromptTooLong { .. } | OutOfPages { .. } => "invalid",
        QueueFull { .. } => "queue",
        TooMany {
            capped: engine::Capped::Variant(_),
            ..
        } => "variant",
        TooMany { .. } => "client",
        Overloaded { .. } | DeadlinePassed { .. } | DeadlineOutOfReach { .. } => "deadline",
        Draining | NotStarted { .. } | Stopped => "draining",
        Stalled { .. } | Cancelled | NotFinite { .. } | Device { .. } => "failed",
    }
}

/// How a failure ended a request.
fn outcome(error: &engine::Error) -> Outcome {
    use engine::Error::*;
    match error {
        Cancelled => Outcome::cancelled,
        DeadlinePassed { .. } | DeadlineOutOfReach { .. } | Overloaded { .. } => Outcome::late,
        Stalled { .. } => Outcome::stalled,
        QueueFull { .. } => Outcome::displaced,
        _ => Outcome::failed,
    }
}
