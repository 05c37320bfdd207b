//! One request, watched from its acceptance to its end.

use super::{By, Metrics, Outcome, Protocol, outcome};
use crate::engine::Event;
use std::sync::Arc;
use std::time::Instant;

/// Sees a request's events go by. One that goes before the last event was the client's to leave.
#[derive(Debug)]
pub struct RequestWatch {
    metrics: Arc<Metrics>,
    protocol: Protocol,
    variant: Arc<str>,
    request_id: u64,
    begun: Instant,
    last_block: Option<Instant>,
    outcome: Option<Outcome>,
}

impl RequestWatch {
    pub fn new(
        metrics: Arc<Metrics>,
        protocol: Protocol,
        variant: &str,
        request_id: u64,
    ) -> RequestWatch {
        RequestWatch {
            metrics,
            protocol,
            variant: variant.into(),
            request_id,
            begun: Instant::now(),
            last_block: None,
            outcome: None,
        }
    }

    pub fn see(&mut self, event: &Event) {
        let by = By {
            protocol: self.protocol,
        };
        let metrics = &self.metrics;
        match event {
            Event::Started { .. } => {
                let waited = self.begun.elapsed().as_secs_f64();
                metrics.queued.get_or_create(&by).observe(waited);
            }
            Event::Step { .. } => {}
            Event::Block { .. } => {
                let now = Instant::now();
                let (blocks, since) = match self.last_block.replace(now) {
                    None => (&metrics.first_block, self.begun),
                    Some(last) => (&metrics.between_blocks, last),
                };
                let seconds = (now - since).as_secs_f64();
                blocks.get_or_create(&by).observe(seconds);
            }
            Event::Finished(summary) => {
                self.outcome = Some(Outcome::finished);
                let whole = self.begun.elapsed().as_secs_f64();
                metrics.whole.get_or_create(&by).observe(whole);
                if summary.nfe > 0 {
                    let tokens = summary.generated_tokens as f64 / f64::from(summary.nfe);
                    let histogram = metrics.tokens_per_evaluation.get_or_create(&by);
                    histogram.observe(tokens);
                }
            }
            Event::Failed(error) => {
                self.outcome = Some(outcome(error));
                tracing::debug!(request_id = self.request_id, "failed: {error}");
            }
        }
    }
}

impl Drop for RequestWatch {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or(Outcome::cancelled);
        self.metrics
            .count_end(&self.variant, self.protocol, outcome);
        tracing::debug!(
            request_id = self.request_id,
            variant = &*self.variant,
            protocol = ?self.protocol,
            outcome = ?outcome,
            seconds = self.begun.elapsed().as_secs_f64(),
            "ended"
        );
    }
}
