//! What the batches of a run are made for, and what that takes along.

use super::Error;
use super::curriculum::{Curriculum, Mixer};
use super::data::Contexts;
use super::distill::Distillation;
use super::folder::Tensors;
use super::noisy::{Loss, Noisy};
use super::objective::{Corruption, Objective};
use super::operator::Operator;
use super::optimizer::Optimizer;
use super::scaled_rows::ScaledRows;
use crate::model::Trainable;
use crate::ops::Divergence;
use crate::rng::Stream;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum Course {
    /// The objective throughout.
    Plain,
    /// First the objective on mixtures of tokens (uniform process).
    Curriculum(Curriculum),
    /// To say what a teacher says with less noise (uniform process); the first teacher is the model as it begins.
    Distillation(Distillation),
    /// To say what a fine-tune says, with what of a coded delta can change.
    Calibration(Arc<Calibration>),
}

/// What a coded delta is calibrated with, see [`calibrate`](super::calibrate).
pub struct Calibration {
    /// The fine-tune's weights.
    pub teacher: Tensors,
    /// The matrices that are in a code.
    pub rows: BTreeMap<String, ScaledRows>,
    /// The tensors that are in none, by name. What is in neither stays.
    pub whole: BTreeSet<String>,
}

impl fmt::Debug for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, whole) = (self.rows.len(), self.whole.len());
        write!(f, "calibration of {rows} codes and {whole} tensors")
    }
}

/// A course under way.
pub enum Lessons {
    Plain,
    Curriculum(Curriculum, Operator, usize),
    Distillation(Distillation, Teacher, usize),
    /// To say what a teacher says of the same noisy tokens, over so many logits.
    Calibration(Teacher, usize),
}

/// What a distillation learns from.
pub struct Teacher {
    pub model: Trainable,
    pub round: u32,
}

impl Lessons {
    /// An error where the process or a value does not fit the course.
    pub fn new(course: &Course, objective: &Objective, model: &Trainable) -> Result<Self, Error> {
        let states = |field| match objective.corruption {
            Corruption::Uniform(tokens) => Ok(tokens),
            Corruption::Mask(_) => Err(Error::Setting {
                field,
                reason: "this is for the uniform process, not the absorbing one".into(),
            }),
        };
        Ok(match course {
            Course::Plain => Lessons::Plain,
            &Course::Curriculum(course) => {
                course.check()?;
                let tokens = states("curriculum")?;
                Lessons::Curriculum(course, Operator::new(tokens), tokens)
            }
            &Course::Distillation(course) => {
                course.check()?;
                let tokens = states("teacher")?;
                let model = model.copy()?;
                Lessons::Distillation(course, Teacher { model, round: 0 }, tokens)
            }
            Course::Calibration(calibration) => {
                let config = model.config().clone();
                let tokens = config.tokens();
                let model = Trainable::from_tensors(config, &calibration.teacher)?;
                Lessons::Calibration(Teacher { model, round: 0 }, tokens)
            }
        })
    }

    pub fn teacher(&self) -> Option<&Teacher> {
        match self {
            Lessons::Distillation(_, teacher, _) | Lessons::Calibration(teacher, _) => {
                Some(teacher)
            }
            _ => None,
        }
    }

    pub fn teacher_mut(&mut self) -> Option<&mut Teacher> {
        match self {
            Lessons::Distillation(_, teacher, _) | Lessons::Calibration(teacher, _) => {
                Some(teacher)
            }
            _ => None,
        }
    }

    /// The batch for when `progress` of the run is over. A distillation's next round begins with the student's average as
    /// its teacher.
    pub fn batch(
        &mut self,
        objective: &Objective,
        contexts: &Contexts,
        progress: f64,
        optimizer: &Optimizer,
        stream: &mut Stream,
    ) -> Result<Noisy, Error> {
        match self {
            Lessons::Curriculum(course, operator, tokens) => {
                if let Some(tau) = course.tau(progress) {
                    let mixer = Mixer {
                        operator,
                        tokens: *tokens,
                        choices: course.choices,
                        tau,
                    };
                    return Ok(objective.soften(contexts, mixer, stream));
                }
            }
            Lessons::Distillation(course, teacher, tokens) => {
                let round = course.round(progress);
                if round > teacher.round {
                    teacher.round = round;
                    optimizer.put_averages(&teacher.model)?;
                }
                return Ok(objective.trajectory(
                    contexts,
                    *tokens,
                    course.dt(round),
                    course.divergence,
                    stream,
                ));
            }
            Lessons::Calibration(_, tokens) => {
                let noisy = objective.corrupt(contexts, stream);
                let loss = Loss::Consistency {
                    tokens: *tokens,
                    divergence: Divergence::Forward,
                };
                return Ok(Noisy {
                    loss,
                    teacher: Some(noisy.input.clone()),
                    ..noisy
                });
            }
            Lessons::Plain => {}
        }
        Ok(objective.corrupt(contexts, stream))
    }
}
