//! The measuring itself.

use super::alone;
use super::arrangement::Arrangement;
use super::share::{self, Reached, Summary};
use super::subjects::{Subject, Subjects};
use super::tensors::{self, Group};
use super::trial::{Comparison, DeltaScheme, Trial, TrialPlan};
use super::tuning::Tuning;
use anyhow::Result;
use choir::superposition::Scheme;
use choir::train::folder::Tensors;
use serde::Serialize;

/// One variant by itself.
#[derive(Clone, Debug, Serialize)]
pub struct Reference {
    pub name: String,
    /// Prompts, for a skill.
    pub prompts: Option<usize>,
    pub base: Reached,
    pub fine_tuned: Reached,
}

/// What one way to keep the variants reaches.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub trial: Trial,
    pub scale: f32,
    /// Per superposed parameter and variant.
    pub bits: f64,
    #[serde(flatten)]
    pub summary: Summary,
}

/// What the first trial reaches where one group of tensors is exact.
#[derive(Clone, Debug, Serialize)]
pub struct Spared {
    pub exact: Group,
    pub parameters: usize,
    #[serde(flatten)]
    pub summary: Summary,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub parameters: usize,
    /// Of them in superposed tensors.
    pub superposed: usize,
    pub variants: Vec<Reference>,
    pub outcomes: Vec<Outcome>,
    pub tensors: Vec<Spared>,
    /// Filled in by [`super::served`].
    pub served: Option<super::served::Served>,
}

/// Measures everything in `plan`; `tick` is told of every measurement before it begins.
pub fn evaluate(
    subjects: &Subjects,
    plan: &TrialPlan,
    tick: &mut dyn FnMut(&str),
) -> Result<Report> {
    let (superposed, parameters) = subjects.parameters();
    let mut report = Report {
        parameters,
        superposed,
        variants: Vec::new(),
        outcomes: Vec::new(),
        tensors: Vec::new(),
        served: None,
    };
    let base = subjects.weights(|_| None);
    for variant in &subjects.variants {
        tick(&format!("{} alone", variant.name));
        let tuned = subjects.weights(|tensor| variant.delta.dense(tensor));
        report.variants.push(Reference {
            name: variant.name.clone(),
            prompts: variant.test.exact.then_some(variant.test.contexts.count),
            base: reached(subjects, variant, &base)?,
            fine_tuned: reached(subjects, variant, &tuned)?,
        });
    }
    let references: Vec<_> = report
        .variants
        .iter()
        .map(|r| (r.base, r.fine_tuned))
        .collect();
    let mut tuning = None;
    for &trial in &plan.trials {
        report
            .outcomes
            .push(outcome(subjects, trial, &references, &mut tuning, tick)?);
    }
    if let Some(trial) = plan.trials.first().filter(|_| plan.tensors) {
        report.tensors = tensors::spared(subjects, *trial, &references, tick)?;
    }
    Ok(report)
}

/// One measurement.
pub fn reached(subjects: &Subjects, variant: &Subject, weights: &Tensors) -> Result<Reached> {
    let score = subjects.score(variant, weights, &variant.test)?;
    Ok(Reached {
        nats_per_token: score.nats_per_token,
        exact: score.exact.map(|(right, _)| right),
    })
}

/// All variants, the weights of each made by `weights`.
pub fn all(
    subjects: &Subjects,
    what: &str,
    tick: &mut dyn FnMut(&str),
    weights: impl Fn(usize, &Subject) -> Result<Tensors>,
) -> Result<Vec<Reached>> {
    let mut found = Vec::new();
    for (index, variant) in subjects.variants.iter().enumerate() {
        tick(&format!("{what}: {}", variant.name));
        found.push(reached(subjects, variant, &weights(index, variant)?)?);
    }
    Ok(found)
}

fn outcome(
    subjects: &Subjects,
    trial: Trial,
    references: &[(Reached, Reached)],
    tuning: &mut Option<Tuning>,
    tick: &mut dyn FnMut(&str),
) -> Result<Outcome> {
    let what = trial.to_string();
    let scheme = match (trial.scheme.scheme(), trial.scheme) {
        (Some(scheme), _) => scheme,
        (None, DeltaScheme::Choir) => Scheme::default(),
        (None, DeltaScheme::Compared(comparison)) => {
            let (found, bits) = alone(subjects, comparison, &what, tick)?;
            return Ok(Outcome {
                trial,
                scale: 1.0,
                bits,
                summary: Summary::new(references, found),
            });
        }
    };
    let arrangement = Arrangement::new(subjects, scheme, trial.capacity, trial.forms)?;
    let retrieved = |index: usize, variant: &Subject, scale: f32| {
        subjects.weights(|tensor| arrangement.retrieve(index, variant, tensor, scale))
    };
    let scale = match trial.scheme.scales() {
        [scale] => *scale,
        scales => {
            let tuning = match tuning {
                Some(tuning) => tuning,
                None => tuning.insert(Tuning::new(subjects)?),
            };
            tuning.best(subjects, scales, retrieved)?
        }
    };
    let found = all(subjects, &what, tick, |index, variant| {
        Ok(retrieved(index, variant, scale))
    })?;
    Ok(Outcome {
        trial,
        scale,
        bits: arrangement.bits(),
        summary: Summary::new(references, found),
    })
}

/// Every variant kept by itself, and the bits that takes.
fn alone(
    subjects: &Subjects,
    scheme: Comparison,
    what: &str,
    tick: &mut dyn FnMut(&str),
) -> Result<(Vec<Reached>, f64)> {
    let mut bytes = 0;
    let mut found = Vec::new();
    for variant in &subjects.variants {
        tick(&format!("{what}: {}", variant.name));
        let (mut kept, taken) = alone::keep(subjects, variant, scheme)?;
        bytes += taken;
        let exact = variant
            .delta
            .vectors
            .iter()
            .map(|(name, v)| (name.clone(), v.data.clone()));
        for (name, data) in exact {
            kept.entry(name).or_insert(data);
        }
        let weights = subjects.weights(|tensor| kept.get(tensor).cloned());
        found.push(reached(subjects, variant, &weights)?);
    }
    let bits = share::bits(bytes, subjects.parameters().0, subjects.variants.len());
    Ok((found, bits))
}
