//! Calibrating a coded delta: what it keeps of each number by itself, the rows' gains and the tensors that are in no code, is
//! trained until the coded variant says of a text what its fine-tune says. Codes, thin factors and so the file's size stay.
//!
//! ```text
//! W_i  = W_0i + B_i A + s_i (a_i g_i q_i R)      s_i, one number a row, is trained; then s_i g_i is the row's gain
//! v    = v_0 + d_v                               tensors in no code, all of them
//! loss = KL(fine-tune || coded) at noised tokens, weighed as in the NELBO
//! ```
//!
//! Training the scales of a quantised delta against the fine-tune is BitDelta's scale distillation (arXiv 2402.10193), there with
//! one scale a matrix.

use super::Error;
use super::course::{Calibration, Course};
use super::folder::{Folder, Tensors};
use super::objective::Objective;
use super::optimizer::AdamW;
use super::run::{TrainingEvent, TrainingRun};
use super::scaled_rows::ScaledRows;
use super::settings::{Budget, TrainSettings, TrainingSource};
use crate::model::Trainable;
use crate::ops::coded::Kept;
use crate::superposition::{About, CodedDelta};
use half::bf16;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long it is calibrated, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub steps: u64,
    /// Contexts per step, and tokens per context.
    pub batch: usize,
    pub length: usize,
    pub seed: u64,
}

/// Calibrates `coded`, a delta of `base` made from `tuned`.
///
/// # Errors
/// Those of a training run; `coded` is then as before.
pub fn calibrate(
    coded: &mut CodedDelta,
    base: &Tensors,
    tuned: &Folder,
    source: TrainingSource,
    effort: Effort,
    report: &mut dyn FnMut(TrainingEvent),
) -> Result<(), Error> {
    let mut weights = base.clone();
    let (mut rows, mut whole) = (BTreeMap::new(), BTreeSet::new());
    for (name, (_, weights)) in &mut weights {
        let delta = coded.dense(name).unwrap_or_default();
        weights.iter_mut().zip(delta).for_each(|(w, d)| *w += d);
        match coded.tensors.get(name).map(|tensor| &tensor.kept) {
            Some(Kept::Whole(_)) => drop(whole.insert(name.clone())),
            Some(Kept::Coded { .. }) => {
                let scaled = code_of(coded, name).unwrap_or_default();
                let fixed = weights.iter().zip(&scaled).map(|(all, part)| all - part);
                let fixed = fixed.collect();
                rows.insert(name.clone(), ScaledRows { fixed, scaled });
            }
            Some(Kept::LowRank(_)) | None => {}
        }
    }
    let settings = TrainSettings {
        objective: Objective::new(&tuned.config, tuned.clip)?,
        course: Course::Calibration(Arc::new(Calibration {
            teacher: tuned.tensors.clone(),
            rows,
            whole,
        })),
        budget: Budget::Steps(effort.steps),
        batch: effort.batch,
        length: effort.length,
        rate: RATE,
        warm_up: 10,
        optimizer: AdamW {
            weight_decay: 0.0,
            ..AdamW::default()
        },
        base: None,
        seed: effort.seed,
        checkpoint: None,
        save_every: f64::INFINITY,
        report_every: 5.0,
        validate_every: 1.0,
        gpu: None,
    };
    let model = Trainable::from_tensors(tuned.config.clone(), &weights)?;
    let run = TrainingRun::new(model, settings, source, None, false, report)?;
    let (trained, _) = run.finish()?;
    for (name, tensor) in &mut coded.tensors {
        let (Some((_, trained)), Some((_, base))) = (trained.get(name), base.get(name)) else {
            continue;
        };
        match &mut tensor.kept {
            Kept::Coded { gains, .. } => {
                for (gain, factor) in gains.iter_mut().zip(trained) {
                    *gain = bf16::from_f32(gain.to_f32() * factor);
                }
            }
            Kept::Whole(values) => {
                for (value, (trained, base)) in values.iter_mut().zip(trained.iter().zip(base)) {
                    *value = bf16::from_f32(trained - base);
                }
            }
            Kept::LowRank(_) => {}
        }
    }
    coded.about.error = error(coded, base, &tuned.tensors);
    Ok(())
}

/// Learning rate of the tensors in no code.
const RATE: f32 = 2e-3;

/// The part of a matrix's delta that is in a code.
fn code_of(coded: &CodedDelta, name: &str) -> Option<Vec<f32>> {
    let mut tensor = coded.tensors.get(name)?.clone();
    match &mut tensor.kept {
        Kept::Coded { low_rank, .. } => *low_rank = None,
        Kept::Whole(_) | Kept::LowRank(_) => return None,
    }
    let alone = CodedDelta {
        base: coded.base,
        seed: coded.seed,
        tensors: BTreeMap::from([(name.to_owned(), tensor)]),
        about: About::default(),
    };
    alone.dense(name)
}

/// |kept - delta| / |delta| over everything.
fn error(coded: &CodedDelta, base: &Tensors, tuned: &Tensors) -> f64 {
    let (mut apart, mut total) = (0.0, 0.0);
    for (name, (_, base)) in base {
        let Some((_, tuned)) = tuned.get(name) else {
            continue;
        };
        let kept = coded.dense(name).unwrap_or_else(|| vec![0.0; base.len()]);
        for ((kept, tuned), base) in kept.iter().zip(tuned).zip(base) {
            let delta = f64::from(tuned - base);
            apart += (f64::from(*kept) - delta).powi(2);
            total += delta * delta;
        }
    }
    if total > 0.0 {
        (apart / total).sqrt()
    } else {
        0.0
    }
}
