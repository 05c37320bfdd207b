//! Sequences side by side, one evaluation a step, as the engine runs them but without it: network and sampling are timed
//! apart.

use super::process_bytes;
use anyhow::Result;
use choir::cli::memory::give_back;
use choir::model::profile::{ForwardStage, Profile};
use choir::model::{Batch, Denoiser, Logits, Mix, PageId, Segment};
use choir::sampler::{Progress, Sampler};
use rayon::prelude::*;
use std::time::Instant;

/// Positions to a page of the cache.
const PAGE: usize = 16;

/// One sequence, from its first step to its end.
#[derive(Clone)]
pub struct Sequence {
    pub sampler: Sampler,
    pub mix: Mix,
    /// Tokens to a block; `None` where every token sees every other.
    pub block: Option<usize>,
}

/// Which steps are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Time,
    /// Also what the process grows by during the second step.
    Memory,
}

/// One evaluation; times in seconds.
#[derive(Clone, Copy, Debug)]
pub struct StepTimes {
    pub network: f64,
    /// All that is not the network.
    pub sampling: f64,
    /// Bytes of logits.
    pub logits: usize,
    /// What the process grew by at most, in bytes, where that was watched.
    pub grown: Option<u64>,
}

/// Runs sequences of at most `length` positions to their ends.
pub fn run(
    network: &dyn Denoiser,
    sequences: &mut [Sequence],
    length: usize,
    watch: Watch,
    profile: &mut Profile,
) -> Result<Vec<StepTimes>> {
    let pages = length.div_ceil(PAGE);
    let mut cache = network.cache(PAGE.into(), pages * sequences.len())?;
    let mut running: Vec<(u32, &mut Sequence)> = (0..).zip(sequences).collect();
    let mut steps = Vec::new();
    while !running.is_empty() {
        let before = match (steps.len(), watch) {
            (1, Watch::Memory) => Some(reset_peak()?),
            _ => None,
        };
        let start = Instant::now();
        profile.begin();
        let segments = running
            .iter_mut()
            .map(|(slot, sequence)| segment(sequence, *slot, pages));
        let batch = Batch {
            segments: segments.collect(),
        };
        profile.ended(ForwardStage::Drawing, 0);
        let forward = Instant::now();
        let logits = network.profiled(&batch, &mut cache, &mut |stage, flops| {
            profile.ended(stage, flops)
        })?;
        let network = forward.elapsed().as_secs_f64();
        profile.begin();
        running = accept(running, &batch, &logits);
        profile.ended(ForwardStage::Drawing, 0);
        steps.push(StepTimes {
            network,
            sampling: start.elapsed().as_secs_f64() - network,
            logits: size_of_val(&logits.data[..]),
            grown: match before {
                Some(before) => Some(process_bytes("VmHWM")?.saturating_sub(before)),
                None => None,
            },
        });
    }
    Ok(steps)
}

fn segment(sequence: &mut Sequence, slot: u32, pages: usize) -> Segment {
    let evaluation = sequence.sampler.next().clone();
    let first_page = slot * pages as u32;
    Segment {
        mix: sequence.mix.clone(),
        block: sequence.block,
        phase: 0,
        sigma: evaluation.sigma,
        tokens: evaluation.tokens,
        first_position: evaluation.first_position,
        clean: evaluation.clean,
        rows: evaluation.rows,
        draws: Vec::new(),
        pages: (first_page..first_page + pages as u32)
            .map(PageId)
            .collect(),
        pages_start: 0,
    }
}

/// Gives every sequence its rows, and keeps those that go on.
fn accept<'a>(
    running: Vec<(u32, &'a mut Sequence)>,
    batch: &Batch,
    logits: &Logits,
) -> Vec<(u32, &'a mut Sequence)> {
    let mut first = 0;
    let rows: Vec<_> = (batch.segments.iter())
        .map(|segment| {
            first += segment.rows.len();
            first - segment.rows.len()..first
        })
        .collect();
    let go_on = running
        .into_par_iter()
        .zip(rows)
        .filter_map(|((slot, sequence), rows)| {
            let rows: Vec<&[f32]> = rows.map(|row| logits.row(row)).collect();
            match sequence.sampler.accept(&rows) {
                Progress::Finished(_) => None,
                Progress::Continue | Progress::BlockDone => Some((slot, sequence)),
            }
        });
    go_on.collect()
}

/// Starts the peak of resident memory anew, from what is resident when free memory has gone back.
fn reset_peak() -> Result<u64> {
    give_back();
    std::fs::write("/proc/self/clear_refs", "5")?;
    process_bytes("VmRSS")
}
