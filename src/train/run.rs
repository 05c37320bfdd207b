//! The training loop: sample, corrupt, differentiate, update; now and then report, validate and save.

use super::course::{Course, Lessons};
use super::data::Contexts;
use super::folder::Tensors;
use super::noisy::Noisy;
use super::objective::Objective;
use super::optimizer::Optimizer;
use super::settings::{Budget, Members, TrainSettings, TrainingSource};
use super::{Error, checkpoint, validation};
use crate::model::gpu::GpuTrainer;
use crate::model::{Differentiable, Trainable};
use crate::rng::{Key, Stream};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is measured along the way, on held-out contexts.
pub struct Validation {
    pub contexts: Contexts,
    /// Bytes that the scored tokens stand for; 0 where that means nothing (skills).
    pub bytes: usize,
    pub draws: usize,
    /// Whether to count exact matches too (skills).
    pub exact: bool,
}

impl Validation {
    /// Scores a model, which has had `step` steps.
    pub fn score(
        &self,
        model: &impl Differentiable,
        objective: &Objective,
        step: u64,
    ) -> Result<ValidationScore, Error> {
        let nats_per_token = validation::nelbo(model, objective, &self.contexts, self.draws, 0)?;
        let tokens = self
            .contexts
            .importance
            .iter()
            .filter(|&&w| w > 0.0)
            .count() as f64;
        let exact = match self.exact {
            true => Some((
                validation::exact_matches(model, objective, &self.contexts)?,
                self.contexts.count,
            )),
            false => None,
        };
        Ok(ValidationScore {
            step,
            nats_per_token,
            nats_per_byte: (self.bytes > 0).then(|| nats_per_token * tokens / self.bytes as f64),
            exact,
        })
    }
}

/// News of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrainingEvent {
    Step {
        step: u64,
        /// Part of the budget spent, 0 to 1.
        progress: f64,
        /// Mean loss since the last report, nats per token.
        loss: f64,
        rate: f32,
        /// Gradient norm of the last step.
        norm: f32,
        /// Data tokens per second since the last report.
        tokens_per_second: f64,
    },
    Validated(ValidationScore),
    Saved {
        step: u64,
    },
}

/// Held-out figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidationScore {
    pub step: u64,
    pub nats_per_token: f64,
    pub nats_per_byte: Option<f64>,
    /// Exact matches and prompts.
    pub exact: Option<(usize, usize)>,
}

/// A model in training.
pub struct TrainingRun<'a> {
    model: Trainable,
    optimizer: Optimizer,
    settings: TrainSettings,
    /// What it is, for its checkpoints: see [`TrainSettings::fingerprint`].
    run: String,
    source: TrainingSource,
    validation: Option<Validation>,
    lessons: Lessons,
    seconds: f64,
    /// One thread each.
    pools: Vec<rayon::ThreadPool>,
    /// For the model and for its teacher, where layers run on a device.
    trainers: Option<[GpuTrainer; 2]>,
    report: &'a mut dyn FnMut(TrainingEvent),
}

impl<'a> TrainingRun<'a> {
    /// Starts, or with `resume` goes on from the checkpoint if there is one.
    pub fn new(
        model: Trainable,
        settings: TrainSettings,
        source: TrainingSource,
        validation: Option<Validation>,
        resume: bool,
        report: &'a mut dyn FnMut(TrainingEvent),
    ) -> Result<Self, Error> {
        settings.check(model.config())?;
        let run = settings.fingerprint(&source, model.config());
        let mut lessons = Lessons::new(&settings.course, &settings.objective, &model)?;
        let one = || {
            rayon::ThreadPoolBuilder::new()
                .num_threads(1)
                .build()
                .map_err(|_| Error::Worker)
        };
        let pools = (0..rayon::current_num_threads())
            .map(|_| one())
            .collect::<Result<_, _>>()?;
        let trainers = settings.gpu.clone();
        let trainers = trainers.map(|gpu| [GpuTrainer::new(gpu.clone()), GpuTrainer::new(gpu)]);
        let mut optimizer = Optimizer::new(&model, settings.optimizer)?;
        if let Some(base) = &settings.base {
            optimizer.anchor(&base.tensors);
        }
        if let Course::Calibration(calibration) = &settings.course {
            optimizer.only(calibration.rows.clone(), &calibration.whole);
        }
        let mut seconds = 0.0;
        if let Some(path) = settings
            .checkpoint
            .as_ref()
            .filter(|path| resume && path.exists())
        {
            seconds = checkpoint::read(path, &mut optimizer, lessons.teacher_mut(), &run)?;
            optimizer.put_weights(&model)?;
        }
        Ok(Self {
            model,
            optimizer,
            settings,
            run,
            source,
            validation,
            lessons,
            seconds,
            pools,
            trainers,
            report,
        })
    }

    /// Trains to the end of the budget; returns the averaged weights and their score.
    pub fn finish(mut self) -> Result<(Tensors, Option<ValidationScore>), Error> {
        let started = Instant::now();
        let before = self.seconds;
        let mut reported = (Instant::now(), 0u64, 0f64);
        let mut saved = Instant::now();
        let mut validate_at = self.progress() + self.settings.validate_every;
        while self.progress() < 1.0 {
            let rate = self.rate();
            let (loss, norm) = self.step(rate)?;
            self.seconds = before + started.elapsed().as_secs_f64();
            reported.1 += 1;
            reported.2 += loss;
            let since: Duration = reported.0.elapsed();
            let progress = self.progress().min(1.0);
            let over = progress >= 1.0;
            if since.as_secs_f64() >= self.settings.report_every || over {
                let tokens =
                    reported.1 as f64 * (self.settings.batch * self.settings.length) as f64;
                (self.report)(TrainingEvent::Step {
                    step: self.optimizer.step,
                    progress,
                    loss: reported.2 / reported.1 as f64,
                    rate,
                    norm,
                    tokens_per_second: tokens / since.as_secs_f64(),
                });
                reported = (Instant::now(), 0, 0.0);
            }
            if progress >= validate_at && !over {
                validate_at += self.settings.validate_every;
                let pause = Instant::now();
                self.validate()?;
                reported.0 += pause.elapsed();
            }
            if saved.elapsed().as_secs_f64() >= self.settings.save_every {
                self.save()?;
                saved = Instant::now();
            }
        }
        self.save()?;
        self.optimizer.put_averages(&self.model)?;
        let score = self.validate()?;
        let tensors = self
            .optimizer
            .slots
            .into_iter()
            .map(|(name, slot)| (name, (slot.shape, slot.average)));
        Ok((tensors.collect(), score))
    }

    fn progress(&self) -> f64 {
        match self.settings.budget {
            Budget::Steps(steps) => self.optimizer.step as f64 / steps.max(1) as f64,
            Budget::Seconds(seconds) => self.seconds / seconds.max(1e-9),
        }
    }

    fn rate(&self) -> f32 {
        let rise = (self.optimizer.step + 1) as f32 / (self.settings.warm_up + 1) as f32;
        let fall = 1.0 - 0.95 * self.progress() as f32;
        self.settings.rate * rise.min(1.0) * fall
    }

    /// One update: (loss in nats per token, gradient norm).
    fn step(&mut self, rate: f32) -> Result<(f64, f32), Error> {
        let s = &self.settings;
        let step = self.optimizer.step;
        let key = Key::derive(&[
            b"choir/train/step/1",
            &s.seed.to_le_bytes(),
            &step.to_le_bytes(),
        ]);
        let mut stream = Stream::new(key);
        let contexts = match &self.source {
            TrainingSource::Text(text) => text.sample(s.batch, s.length, &mut stream),
            TrainingSource::Skill(skill) => {
                skill.sample(s.batch, s.length, s.objective.unit(s.length), &mut stream)?
            }
        };
        let progress = self.progress();
        let noisy = self.lessons.batch(
            &s.objective,
            &contexts,
            progress,
            &self.optimizer,
            &mut stream,
        )?;
        if let Some(base) = s
            .base
            .as_ref()
            .filter(|base| base.members != Members::ALONE)
        {
            self.optimizer
                .put_interference(&self.model, base.members, key)?;
        }
        let (loss, gradients) = self.gradients(noisy)?;
        let norm = self.optimizer.update(&self.model, &gradients, rate)?;
        if !loss.is_finite() || !norm.is_finite() {
            return Err(Error::Diverged { step });
        }
        Ok((loss, norm))
    }

    /// The loss, and the gradients of the batch's parts: of one on a device. On the host every part has a thread of its own from
    /// beginning to end, which wastes less of it than threads that meet in every operation.
    fn gradients(&self, noisy: Noisy) -> Result<(f64, Vec<BTreeMap<String, Tensor>>), Error> {
        let (model, teacher) = (
            &self.model,
            self.lessons.teacher().map(|teacher| &teacher.model),
        );
        if let Some([for_model, for_teacher]) =
            self.trainers.as_ref().filter(|_| !noisy.targets.is_empty())
        {
            let teacher = teacher.map(|teacher| for_teacher.of(teacher));
            let (loss, gradients) = noisy.gradients(&for_model.of(model), teacher.as_ref())?;
            return Ok((loss, vec![gradients]));
        }
        let parts: Vec<Noisy> = noisy
            .split(self.pools.len())
            .into_iter()
            .filter(|part| !part.targets.is_empty())
            .collect();
        let run = |(part, pool): (&Noisy, &rayon::ThreadPool)| {
            pool.install(|| part.gradients(model, teacher))
        };
        let found: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = parts
                .iter()
                .zip(&self.pools)
                .map(|job| scope.spawn(move || run(job)))
                .collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let (mut loss, mut gradients) = (0.0, Vec::new());
        for part in found {
            let (part_loss, part_gradients) = part.map_err(|_| Error::Worker)??;
            loss += part_loss;
            gradients.push(part_gradients);
        }
        Ok((loss, gradients))
    }

    fn validate(&mut self) -> Result<Option<ValidationScore>, Error> {
        let Some(validation) = &self.validation else {
            return Ok(None);
        };
        let (objective, step) = (&self.settings.objective, self.optimizer.step);
        let score = match &self.trainers {
            Some([trainer, _]) => validation.score(&trainer.of(&self.model), objective, step)?,
            None => validation.score(&self.model, objective, step)?,
        };
        (self.report)(TrainingEvent::Validated(score));
        Ok(Some(score))
    }

    fn save(&mut self) -> Result<(), Error> {
        let Some(path) = &self.settings.checkpoint else {
            return Ok(());
        };
        checkpoint::write(
            path,
            &self.optimizer,
            self.lessons.teacher(),
            self.seconds,
            &self.run,
        )?;
        (self.report)(TrainingEvent::Saved {
            step: self.optimizer.step,
        });
        Ok(())
    }
}

/// Sets the gates of fresh weights to 1, where the papers' code has 0: with them closed the first hundreds of steps
/// learn token frequencies only, a luxury in a run of a few thousand.
pub fn open_gates(model: &Trainable) -> Result<(), Error> {
    let hidden = model.config().hidden_dim;
    for (name, var) in model.vars() {
        if name.starts_with("blocks.") && name.ends_with("adaLN_modulation.bias") {
            // Six chunks: shift, scale, gate of the attention, then of the MLP.
            let bias: Vec<f32> = (0..6 * hidden)
                .map(|i| if i / hidden % 3 == 2 { 1.0 } else { 0.0 })
                .collect();
            var.set(&Tensor::from_vec(bias, 6 * hidden, var.device())?)?;
        }
    }
    Ok(())
}
