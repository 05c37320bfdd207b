//! AdamW (and Muon where asked) on plain slices, with clipping by the global norm and an exponential moving average of the weights.

#[cfg(test)]
mod tests;

use super::folder::Tensors;
use super::muon;
use super::scaled_rows::ScaledRows;
use super::settings::Members;
use crate::model::Result;
use crate::model::Trainable;
use crate::rng::Key;
use crate::superposition::HEAD;
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// AdamW's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// Decoupled, on matrices only; towards 0, or towards the base where a variant is trained.
    pub weight_decay: f32,
    /// Largest global norm of the gradient.
    pub clip: f32,
    /// Orthogonalise the updates of the layers' matrices (Muon); everything else stays with AdamW.
    pub orthogonal: bool,
    /// AdamW's learning rate relative to Muon's, where `orthogonal`: the head's logits add up `hidden_dim` updates of one
    /// sign, which Muon's matrices do not.
    pub rest: f32,
    /// Decay of the average of the weights; shorter while there are few steps.
    pub ema: f32,
}

/// Learning rate of the rows' factors, which are near 1, relative to that of weights.
const ROW_RATE: f32 = 10.0;

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-8,
            weight_decay: 0.02,
            clip: 1.0,
            orthogonal: false,
            rest: 0.2,
            ema: 0.995,
        }
    }
}

/// One weight and what is remembered about it, all of one length.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightState {
    pub shape: Vec<usize>,
    pub weight: Vec<f32>,
    pub average: Vec<f32>,
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

/// The weights being trained and the optimizer's memory of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    pub settings: AdamW,
    /// Updates done.
    pub step: u64,
    /// Learning rate of the matrices that read the conditioning vector, relative to the others'. Without time
    /// conditioning that vector is constant: its `cond_dim` columns act as one bias and share its rate.
    conditioning: f32,
    pub slots: BTreeMap<String, WeightState>,
    /// The base's matrices, where a variant is trained: what weight decay pulls towards (0 otherwise).
    anchors: BTreeMap<String, Vec<f32>>,
    /// Matrices of which only a factor for each row is trained: their slot is [rows].
    rows: BTreeMap<String, ScaledRows>,
}

impl Optimizer {
    pub fn new(model: &Trainable, settings: AdamW) -> Result<Self> {
        let mut slots = BTreeMap::new();
        for (name, var) in model.vars() {
            let weight = values(var.as_tensor())?;
            let zeros = vec![0.0; weight.len()];
            let slot = WeightState {
                shape: var.dims().to_vec(),
                average: weight.clone(),
                weight,
                first: zeros.clone(),
                second: zeros,
            };
            slots.insert(name.clone(), slot);
        }
        let conditioning = match model.config().time_conditioned() {
            true => 1.0,
            false => 1.0 / model.config().cond_dim as f32,
        };
        Ok(Self {
            settings,
            step: 0,
            conditioning,
            slots,
            anchors: BTreeMap::new(),
            rows: BTreeMap::new(),
        })
    }

    /// From now on only these are trained: of `matrices` a factor for each row, 1 at first, and `others` as they are.
    pub fn only(&mut self, matrices: BTreeMap<String, ScaledRows>, others: &BTreeSet<String>) {
        self.slots
            .retain(|name, _| matrices.contains_key(name) || others.contains(name));
        for (name, slot) in &mut self.slots {
            if matrices.contains_key(name) {
                let rows = slot.shape[0];
                *slot = WeightState {
                    shape: vec![rows],
                    weight: vec![1.0; rows],
                    average: vec![1.0; rows],
                    first: vec![0.0; rows],
                    second: vec![0.0; rows],
                };
            }
        }
        self.rows = matrices;
    }

    /// From now on weight decay pulls towards `base`: it shrinks the delta, which is what others in a bank are spared.
    pub fn anchor(&mut self, base: &Tensors) {
        let matrices = base.iter().filter(|(_, (shape, _))| shape.len() == 2);
        self.anchors = matrices
            .map(|(name, (_, data))| (name.clone(), data.clone()))
            .collect();
    }

    /// Writes into the network what a variant's weights would be when read back from banks of so many `members`: every row of
    /// a matrix with random signs added, `sqrt(members - 1)` times as large as the row's delta. Call [`put_weights`](Self::put_weights), or [`update`](Self::update), which reckons with it, to take it off.
    pub fn put_interference(&self, model: &Trainable, members: Members, key: Key) -> Result<()> {
        let jobs: Vec<_> = self.slots.iter().collect();
        Ok(jobs.into_par_iter().try_for_each(|(name, slot)| {
            let (Some(base), Some(var)) = (self.anchors.get(name), model.vars().get(name)) else {
                return Ok(());
            };
            let members = if name == HEAD {
                members.head
            } else {
                members.body
            };
            let size = (members.saturating_sub(1) as f32).sqrt();
            let mut signs = vec![0; slot.weight.len().div_ceil(32)];
            Key::derive(&[b"choir/train/interference/1", &key.0, name.as_bytes()])
                .words(0, &mut signs);
            let mut weights = slot.weight.clone();
            let cols = slot.shape[1].max(1);
            for (row, (weights, base)) in
                weights.chunks_mut(cols).zip(base.chunks(cols)).enumerate()
            {
                let squares: f32 = weights
                    .iter()
                    .zip(base)
                    .map(|(w, b)| (w - b) * (w - b))
                    .sum();
                let noise = size * (squares / cols as f32).sqrt();
                for (col, weight) in weights.iter_mut().enumerate() {
                    let bit = row * cols + col;
                    let negative = signs[bit / 32] >> (bit % 32) & 1 == 1;
                    *weight += if negative { -noise } else { noise };
                }
            }
            var.set(&Tensor::from_slice(
                &weights,
                slot.shape.as_slice(),
                var.device(),
            )?)
        })?)
    }

    /// One update of `model` with learning rate `rate` and the sum of `gradients`; returns the sum's norm before
    /// clipping. A norm that is not finite changes nothing.
    pub fn update(
        &mut self,
        model: &Trainable,
        gradients: &[BTreeMap<String, Tensor>],
        rate: f32,
    ) -> Result<f32> {
        let names: Vec<&String> = self.slots.keys().collect();
        let found: Vec<Option<(Vec<f32>, f64)>> = names
            .par_iter()
            .map(|name| {
                let Some(mut gradient) = sum(gradients, name)? else {
                    return Ok(None);
                };
                if let Some(matrix) = self.rows.get(*name) {
                    gradient = matrix.gradient(&gradient, self.slots[*name].weight.len());
                }
                let square = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
                Ok(Some((gradient, square)))
            })
            .collect::<Result<_>>()?;
        let norm = found
            .iter()
            .flatten()
            .map(|(_, square)| square)
            .sum::<f64>()
            .sqrt() as f32;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.step += 1;
        let s = self.settings;
        let now = Now {
            shrink: if norm > s.clip { s.clip / norm } else { 1.0 },
            correct1: 1.0 / (1.0 - f64::from(s.beta1).powi(self.step as i32)) as f32,
            correct2: 1.0 / (1.0 - f64::from(s.beta2).powi(self.step as i32)) as f32,
            keep: s.ema.min((1 + self.step) as f32 / (10 + self.step) as f32),
        };
        let (conditioning, anchors, scaled) = (self.conditioning, &self.anchors, &self.rows);
        let jobs: Vec<_> = self.slots.iter_mut().zip(found).collect();
        jobs.into_par_iter()
            .try_for_each(|((name, slot), gradient)| {
                let Some((mut gradient, _)) = gradient else {
                    return Ok(());
                };
                if let (Some(anchor), Some(var)) = (anchors.get(name), model.vars().get(name)) {
                    through_gains(&mut gradient, slot, anchor, &values(var.as_tensor())?);
                }
                let conditioned =
                    name.starts_with("sigma_map") || name.ends_with("adaLN_modulation.weight");
                let rate = match (scaled.contains_key(name), conditioned) {
                    (true, _) => rate * ROW_RATE,
                    (false, true) => rate * conditioning,
                    (false, false) => rate,
                };
                let decay = if slot.shape.len() == 2 {
                    1.0 - rate * s.weight_decay
                } else {
                    1.0
                };
                let orthogonal = s.orthogonal && is_layer_matrix(name);
                let rate = if s.orthogonal && !orthogonal {
                    rate * s.rest
                } else {
                    rate
                };
                let anchor = anchors.get(name);
                let shrink = if anchor.is_some() { 1.0 } else { decay };
                if orthogonal {
                    muon::update(slot, &gradient, rate, shrink)?;
                } else {
                    adamw(slot, &gradient, rate, shrink, s, now);
                }
                for (weight, anchor) in slot.weight.iter_mut().zip(anchor.into_iter().flatten()) {
                    *weight = anchor + (*weight - anchor) * decay;
                }
                for (average, weight) in slot.average.iter_mut().zip(&slot.weight) {
                    *average = now.keep * *average + (1.0 - now.keep) * weight;
                }
                Ok::<(), crate::model::Error>(())
            })?;
        self.put_weights(model)?;
        Ok(norm)
    }

    /// Writes the trained weights into the network.
    pub fn put_weights(&self, model: &Trainable) -> Result<()> {
        self.put(model, |slot| &slot.weight)
    }

    /// Writes the averaged weights into the network.
    pub fn put_averages(&self, model: &Trainable) -> Result<()> {
        self.put(model, |slot| &slot.average)
    }

    fn put<'a>(
        &'a self,
        model: &Trainable,
        data: impl Fn(&'a WeightState) -> &'a [f32],
    ) -> Result<()> {
        for (name, var) in model.vars() {
            if let Some(slot) = self.slots.get(name) {
                let tensor = match self.rows.get(name) {
                    Some(matrix) => {
                        Tensor::from_vec(matrix.with(data(slot)), var.dims(), var.device())?
                    }
                    None => Tensor::from_slice(data(slot), &slot.shape[..], var.device())?,
                };
                var.set(&tensor)?;
            }
        }
        Ok(())
    }
}

/// Factors of one update: gradient clipping, AdamW's corrections, the average's decay.
#[derive(Clone, Copy)]
struct Now {
    shrink: f32,
    correct1: f32,
    correct2: f32,
    keep: f32,
}

fn adamw(slot: &mut WeightState, gradient: &[f32], rate: f32, decay: f32, s: AdamW, now: Now) {
    let moments = slot.first.iter_mut().zip(&mut slot.second);
    for ((weight, (first, second)), &g) in slot.weight.iter_mut().zip(moments).zip(gradient) {
        let g = g * now.shrink;
        *first = s.beta1 * *first + (1.0 - s.beta1) * g;
        *second = s.beta2 * *second + (1.0 - s.beta2) * g * g;
        let scale = (*second * now.correct2).sqrt() + s.epsilon;
        *weight = *weight * decay - rate * now.correct1 * *first / scale;
    }
}

/// Adds to a delta's gradient what comes through its rows' gains. The network saw `weight + n a`, n the signs of
/// [`put_interference`](Optimizer::put_interference) and a the RMS of the row's delta, so a delta also moves the loss by
/// the interference it brings: dL/dδ_ij = G_ij + (Σ_k G_ik n_ik a) δ_ij / Σ_k δ_ik². Rows that the loss does not need
/// shrink. Adds nothing where the network had no interference.
fn through_gains(gradient: &mut [f32], slot: &WeightState, anchor: &[f32], seen: &[f32]) {
    let cols = slot.shape[slot.shape.len() - 1].max(1);
    let rows = gradient.chunks_mut(cols).zip(slot.weight.chunks(cols));
    for ((gradient, weight), (anchor, seen)) in rows.zip(anchor.chunks(cols).zip(seen.chunks(cols)))
    {
        let square: f32 = weight
            .iter()
            .zip(anchor)
            .map(|(w, a)| (w - a) * (w - a))
            .sum();
        let noise = seen.iter().zip(weight).map(|(seen, weight)| seen - weight);
        let pull: f32 = gradient
            .iter()
            .zip(noise)
            .map(|(gradient, noise)| gradient * noise)
            .sum();
        if square > 0.0 && pull != 0.0 {
            let delta = weight
                .iter()
                .zip(anchor)
                .map(|(weight, anchor)| weight - anchor);
            gradient
                .iter_mut()
                .zip(delta)
                .for_each(|(gradient, delta)| *gradient += pull / square * delta);
        }
    }
}

/// The sum of one weight's gradients; `None` where no part has one.
fn sum(gradients: &[BTreeMap<String, Tensor>], name: &str) -> Result<Option<Vec<f32>>> {
    let mut parts = gradients.iter().filter_map(|part| part.get(name));
    let Some(first) = parts.next() else {
        return Ok(None);
    };
    let mut total = values(first)?;
    for part in parts {
        for (total, part) in total.iter_mut().zip(values(part)?) {
            *total += part;
        }
    }
    Ok(Some(total))
}

/// Attention and MLP matrices.
fn is_layer_matrix(name: &str) -> bool {
    let kinds = [
        "attn_qkv.weight",
        "attn_out.weight",
        "mlp.0.weight",
        "mlp.2.weight",
    ];
    name.starts_with("blocks.") && kinds.iter().any(|kind| name.ends_with(kind))
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
