//! A corrupted batch: what the network reads, how its answers count, and the gradient of that.

use super::Error;
use crate::model::{self, Differentiable, TrainBatch};
use crate::ops::{self, Divergence, UniformTerm};
use crate::sampler::schedule::LogLinear;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// What is asked of the network at every row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// -log p(x_0 | x_t), the mask ruled out.
    CrossEntropy { mask: u32 },
    /// The uniform process's NELBO over the first `tokens` logits.
    Uniform { tokens: usize },
    /// How far the first `tokens` logits say something else than a teacher's.
    Consistency {
        tokens: usize,
        divergence: Divergence,
    },
}

#[derive(Clone, Debug)]
pub struct Noisy {
    pub input: TrainBatch,
    /// x_0 at `input.rows`.
    pub targets: Vec<u32>,
    /// Weight of each row's loss, not divided by the number of tokens: its importance, over t where it was masked.
    pub weights: Vec<f32>,
    /// Sum of the importance of all positions: divide the weighted sum by it for a loss per token.
    pub tokens: f64,
    pub loss: Loss,
    /// What the teacher reads, if there is one; its `rows` are the input's.
    pub teacher: Option<TrainBatch>,
}

impl Noisy {
    /// Cuts the batch into at most `parts` parts of whole contexts; all keep the whole batch's `tokens`.
    pub fn split(self, parts: usize) -> Vec<Noisy> {
        let (batch, per_part) = (
            self.input.batch,
            self.input.batch.div_ceil(parts.max(1)).max(1),
        );
        let part = |first: usize| {
            let sequences = first..(first + per_part).min(batch);
            let rows = self.input.rows_of(sequences.clone());
            Noisy {
                teacher: self
                    .teacher
                    .as_ref()
                    .map(|teacher| teacher.sequences(sequences.clone())),
                input: self.input.sequences(sequences),
                targets: self.targets[rows.clone()].to_vec(),
                weights: self.weights[rows].to_vec(),
                tokens: self.tokens,
                loss: self.loss,
            }
        };
        (0..batch).step_by(per_part).map(part).collect()
    }

    fn terms(&self) -> Vec<UniformTerm> {
        let term = |(&row, &x0): (&u32, &u32)| UniformTerm {
            x0,
            xt: self.input.xt[row as usize],
            move_chance: -(-f64::from(self.input.sigma[self.input.noise_line(row as usize)]))
                .exp_m1(),
            rate: LogLinear::UNIFORM.alpha_rate(),
        };
        self.input
            .rows
            .iter()
            .zip(&self.targets)
            .map(term)
            .collect()
    }

    /// The loss at every row, in nats; an error where it takes a teacher.
    pub fn losses(&self, model: &impl Differentiable) -> Result<Vec<f32>, Error> {
        if self.targets.is_empty() {
            return Ok(Vec::new());
        }
        let logits = model.forward(&self.input)?;
        match self.loss {
            Loss::CrossEntropy { mask } => {
                Ok(ops::cross_entropy(&logits, &self.targets, Some(mask))?.to_vec1()?)
            }
            Loss::Uniform { tokens } => Ok(ops::uniform_nelbo(&logits, tokens, &self.terms())?),
            Loss::Consistency { .. } => Err(Error::Objective(
                "consistency is measured along with its gradient",
            )),
        }
    }

    /// Weighted sum of row values over tokens: nats per token.
    pub fn per_token(&self, losses: &[f32]) -> f64 {
        let sum: f64 = losses
            .iter()
            .zip(&self.weights)
            .map(|(&n, &w)| f64::from(n) * f64::from(w))
            .sum();
        sum / self.tokens.max(1.0)
    }

    /// The loss in nats per token, and its gradient by weight; `teacher` for [`Loss::Consistency`].
    pub fn gradients<M: Differentiable>(
        &self,
        model: &M,
        teacher: Option<&M>,
    ) -> Result<(f64, BTreeMap<String, Tensor>), Error> {
        let share: Vec<f32> = self
            .weights
            .iter()
            .map(|&w| w / self.tokens as f32)
            .collect();
        Ok(model.gradients(&self.input, |logits| {
            let (losses, gradient) = match self.loss {
                Loss::CrossEntropy { mask } => (
                    ops::cross_entropy(logits, &self.targets, Some(mask))?.to_vec1()?,
                    ops::cross_entropy_backward(logits, &self.targets, Some(mask), &share)?,
                ),
                Loss::Uniform { tokens } => {
                    ops::uniform_nelbo_backward(logits, tokens, &self.terms(), &share)?
                }
                Loss::Consistency { tokens, divergence } => {
                    let (Some(teacher), Some(input)) = (teacher, &self.teacher) else {
                        return Err(model::Error::NotKept("a teacher"));
                    };
                    ops::divergence_backward(
                        logits,
                        &teacher.forward(input)?,
                        tokens,
                        divergence,
                        &share,
                    )?
                }
            };
            Ok((self.per_token(&losses), gradient))
        })?)
    }
}
