//! How the server stands, asked at every scrape: nothing is kept up to date in between.

use crate::catalog::Catalog;
use crate::engine::EngineHandle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;

pub struct StandingMetrics {
    engine: EngineHandle,
    catalog: Arc<Catalog>,
}

impl std::fmt::Debug for StandingMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StandingMetrics").finish_non_exhaustive()
    }
}

impl StandingMetrics {
    pub fn new(engine: EngineHandle, catalog: Arc<Catalog>) -> Self {
        StandingMetrics { engine, catalog }
    }
}

/// One metric with a series for each value of one label.
fn family<'a, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    label: &'static str,
    series: impl Iterator<Item = (&'a str, M)>,
) -> Result<(), Error> {
    let mut descriptor = encoder.encode_descriptor(name, help, None, kind)?;
    for (value, metric) in series {
        metric.encode(descriptor.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}

impl Collector for StandingMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (engine, catalog) = (self.engine.status(), self.catalog.status());
        let gauges = [
            ("variants", "Variants served", catalog.variants),
            ("banks", "Superpositions they live in", catalog.banks),
            (
                "generation",
                "The committed state of the store that new requests use",
                engine.generation as usize,
            ),
            (
                "generations_held",
                "Model instances in memory",
                engine.generations,
            ),
            (
                "generation_leases",
                "Requests that keep a generation alive",
                engine.leases,
            ),
            ("requests_waiting", "Requests that wait", engine.waiting),
            (
                "requests_waiting_limit",
                "Requests that may wait",
                engine.queue_limit,
            ),
            ("requests_running", "Sequences that run", engine.running),
            (
                "requests_running_limit",
                "Sequences that may run",
                engine.max_running,
            ),
            (
                "requests_paused",
                "Sequences that wait for their readers",
                engine.paused,
            ),
            (
                "streams_open",
                "Streams of events that somebody reads",
                engine.streams,
            ),
            (
                "draining",
                "1 once nothing new is taken",
                usize::from(engine.draining),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let counters = [
            (
                "steps",
                "Network evaluations, all sequences of a step counting once",
                engine.steps,
            ),
            (
                "step_sequences",
                "Sequences in all steps: by steps, the rows of one",
                engine.step_sequences,
            ),
            (
                "step_tokens",
                "Tokens in all steps, prompts among them",
                engine.step_tokens,
            ),
            ("tokens", "Tokens made", engine.tokens_generated),
            (
                "preemptions",
                "Times that a sequence gave its pages up",
                engine.preempted,
            ),
            (
                "prompt_tokens_reused",
                "Tokens found in the cache",
                engine.tokens_reused,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let took = ConstCounter::new(engine.step_time.as_secs_f64());
        let help = "Time of all steps: by steps, that of one";
        took.encode(encoder.encode_descriptor("step_seconds", help, None, MetricType::Counter)?)?;
        let free = engine
            .pages_total
            .saturating_sub(engine.pages_used + engine.pages_idle);
        let pages = [
            ("used", engine.pages_used),
            ("idle", engine.pages_idle),
            ("free", free),
        ];
        family(
            &mut encoder,
            (
                "cache_pages",
                "Pages of the key-value cache",
                MetricType::Gauge,
            ),
            "state",
            pages
                .into_iter()
                .map(|(state, pages)| (state, ConstGauge::new(pages as i64))),
        )?;
        let mut bytes: BTreeMap<&str, u64> = BTreeMap::from([
            ("key-value cache", engine.kv_bytes),
            ("materialised", engine.materialised_bytes),
            ("tokenizer", catalog.tokenizer_bytes),
        ]);
        for part in &catalog.memory {
            // A bank, or a variant, is one of many.
            let kind = part.part.split(' ').next().unwrap_or_default();
            *bytes.entry(kind).or_default() += part.bytes;
        }
        family(
            &mut encoder,
            ("memory_bytes", "Bytes by part", MetricType::Gauge),
            "part",
            bytes
                .into_iter()
                .map(|(part, bytes)| (part, ConstGauge::new(bytes as i64))),
        )?;
        let loads = || engine.variants.iter();
        family(
            &mut encoder,
            (
                "variant_tokens_evaluated",
                "Tokens evaluated, by variant",
                MetricType::Counter,
            ),
            "variant",
            loads().map(|(name, load)| (name.as_str(), ConstCounter::new(load.service.evaluated))),
        )?;
        family(
            &mut encoder,
            (
                "variant_tokens_generated",
                "Tokens made, by variant",
                MetricType::Counter,
            ),
            "variant",
            loads().map(|(name, load)| (name.as_str(), ConstCounter::new(load.service.generated))),
        )?;
        let under_way = |load: &crate::engine::VariantLoad| load.waiting + load.running;
        family(
            &mut encoder,
            (
                "variant_requests",
                "Requests that wait or run, by variant",
                MetricType::Gauge,
            ),
            "variant",
            loads().map(|(name, load)| (name.as_str(), ConstGauge::new(under_way(load) as i64))),
        )
    }
}
