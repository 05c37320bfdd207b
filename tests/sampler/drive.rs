//! Samplers and the real network, many sequences to an evaluation.

use crate::fixtures::{self, Case};
use choir::model::kv_cache::KvCache;
use choir::model::{BaseWeights, Batch, Denoiser, HostNetwork, Logits, Mix, PageId, Segment};
use choir::sampler::{Progress, Sampler};
use std::sync::Arc;

/// Sequences to an evaluation.
const BATCH: usize = 250;
const PAGE: usize = 4;

pub fn network(case: &Case) -> HostNetwork {
    let base = BaseWeights::new(
        case.config.architecture().expect("a network"),
        &case.weights,
    )
    .expect("weights");
    HostNetwork::new(Arc::new(base), &[], Vec::new()).expect("network")
}

/// Logits of some positions of whole sequences at one noise level.
pub fn evaluate(
    network: &dyn Denoiser,
    sequences: &[(Vec<u32>, Vec<usize>)],
    sigma: f32,
) -> Logits {
    let segment = |(tokens, rows): &(Vec<u32>, Vec<usize>)| Segment {
        mix: Mix::base(),
        block: network.facts().regime.block,
        phase: 0,
        sigma,
        tokens: tokens.clone(),
        first_position: 0,
        clean: 0,
        rows: rows.clone(),
        draws: Vec::new(),
        pages: Vec::new(),
        pages_start: 0,
    };
    let batch = Batch {
        segments: sequences.iter().map(segment).collect(),
    };
    network
        .forward(&batch, &mut KvCache::new(network.facts().cache, PAGE, 0))
        .expect("evaluation")
}

/// What `count` sequences of `length` tokens make, each started by its number.
pub fn sample(
    network: &dyn Denoiser,
    length: usize,
    count: u64,
    start: impl Fn(u64) -> Sampler,
) -> Vec<Vec<u32>> {
    let pages = length.div_ceil(PAGE) + 1;
    let mut cache = KvCache::new(network.facts().cache, PAGE, BATCH * pages);
    let seeds: Vec<u64> = (0..count).collect();
    let mut made = Vec::new();
    for seeds in seeds.chunks(BATCH) {
        let mut samplers: Vec<Sampler> = seeds.iter().map(|&seed| start(seed)).collect();
        while step(network, &mut cache, &mut samplers, pages) {}
        made.extend(samplers.iter().map(|sampler| sampler.generated().to_vec()));
    }
    made
}

/// One evaluation of all unfinished sequences; false once there is none.
fn step(
    network: &dyn Denoiser,
    cache: &mut KvCache,
    samplers: &mut [Sampler],
    pages: usize,
) -> bool {
    let mut running: Vec<(usize, &mut Sampler)> = samplers
        .iter_mut()
        .enumerate()
        .filter(|(_, sampler)| sampler.finished().is_none())
        .collect();
    if running.is_empty() {
        return false;
    }
    let segments = running.iter_mut().map(|(slot, sampler)| {
        let wanted = sampler.next();
        Segment {
            mix: Mix::base(),
            block: network.facts().regime.block,
            phase: 0,
            sigma: wanted.sigma,
            tokens: wanted.tokens.clone(),
            first_position: wanted.first_position,
            clean: wanted.clean,
            rows: wanted.rows.clone(),
            draws: Vec::new(),
            pages: (0..pages)
                .map(|page| PageId((*slot * pages + page) as u32))
                .collect(),
            pages_start: 0,
        }
    });
    let batch = Batch {
        segments: segments.collect(),
    };
    let logits = network.forward(&batch, cache).expect("evaluation");
    let mut first = 0;
    for ((_, sampler), segment) in running.iter_mut().zip(&batch.segments) {
        let rows: Vec<&[f32]> = (first..first + segment.rows.len())
            .map(|row| logits.row(row))
            .collect();
        first += segment.rows.len();
        let progress = sampler.accept(&rows);
        assert_eq!(
            matches!(progress, Progress::Finished(_)),
            sampler.finished().is_some()
        );
    }
    true
}

/// How the samples of a file were made.
pub fn facts(file: &str) -> serde_json::Value {
    let path = fixtures::folder("samples-stats").join(file);
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("json")
}

/// The samples of the papers' own code.
pub fn reference(file: &str, name: &str) -> Vec<Vec<u32>> {
    let tensors = fixtures::read(&fixtures::folder("samples-stats").join(file));
    let (shape, values) = tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
    values
        .chunks(shape[1])
        .map(|row| row.iter().map(|&token| token as u32).collect())
        .collect()
}
