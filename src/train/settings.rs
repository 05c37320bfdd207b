//! How a run is to be made, and what no run can have.

use super::Error;
use super::course::Course;
use super::data::TextSource;
use super::folder::Tensors;
use super::objective::Objective;
use super::optimizer::AdamW;
use super::packing::SkillSource;
use crate::model::DitConfig;
use crate::ops::gpu::GpuDevice;
use crate::superposition::{Digest, NamedTensor, NamedTensors};
use std::path::PathBuf;
use std::sync::Arc;

/// How long a run lasts. The learning rate follows the part of it that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    Steps(u64),
    /// Seconds of training, saved runs counted in: results then depend on the machine's speed.
    Seconds(f64),
}

#[derive(Clone, Debug)]
pub struct TrainSettings {
    pub objective: Objective,
    /// What a run does besides, or instead of, minimising its NELBO.
    pub course: Course,
    pub budget: Budget,
    /// Contexts per step.
    pub batch: usize,
    /// Tokens per context.
    pub length: usize,
    /// Peak learning rate; it decays to a twentieth of it, linearly.
    pub rate: f32,
    /// Steps over which the learning rate rises.
    pub warm_up: u64,
    pub optimizer: AdamW,
    /// Where a variant is trained: its base, and how many variants its bank will hold.
    pub base: Option<Anchor>,
    pub seed: u64,
    /// Where the state is saved; nowhere if `None`.
    pub checkpoint: Option<PathBuf>,
    /// Seconds between two saves, two reports.
    pub save_every: f64,
    pub report_every: f64,
    /// How often to validate, as a share of the budget.
    pub validate_every: f64,
    /// Where the layers run; on the host if `None`.
    pub gpu: Option<Arc<dyn GpuDevice>>,
}

/// What a variant is trained away from.
#[derive(Clone, Debug)]
pub struct Anchor {
    pub tensors: Tensors,
    pub members: Members,
}

/// Variants to the banks under whose interference is trained; 1 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Members {
    pub body: usize,
    /// Of the output head.
    pub head: usize,
}

impl Members {
    pub const ALONE: Self = Members { body: 1, head: 1 };
}

impl Anchor {
    fn digest(&self) -> Digest {
        let named = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<f32>))| {
            let (shape, data) = (shape.clone(), data.clone());
            (name.clone(), NamedTensor { shape, data })
        };
        NamedTensors(self.tensors.iter().map(named).collect()).digest()
    }
}

impl TrainSettings {
    /// Refuses what no run can have.
    pub(super) fn check(&self, network: &DitConfig) -> Result<(), Error> {
        let Self { batch, length, .. } = *self;
        let AdamW {
            weight_decay, ema, ..
        } = self.optimizer;
        let (unit, most) = (self.objective.unit(length), network.model_length);
        let budget = match self.budget {
            Budget::Steps(steps) => steps as f64,
            Budget::Seconds(seconds) => seconds,
        };
        let members = self
            .base
            .as_ref()
            .map_or(Members::ALONE, |base| base.members);
        let odd = [
            ("batch", batch == 0, format!("{batch} contexts to a step")),
            (
                "length",
                length < 2,
                format!("{length} tokens to a context"),
            ),
            (
                "length",
                length > most,
                format!("{length} tokens, and the network's context is {most}"),
            ),
            (
                "length",
                !length.is_multiple_of(unit),
                format!("{length} tokens are not whole blocks"),
            ),
            (
                "budget",
                !(budget > 0.0 && budget.is_finite()),
                format!("{:?}", self.budget),
            ),
            (
                "learning rate",
                !(self.rate > 0.0 && self.rate.is_finite()),
                format!("{}", self.rate),
            ),
            (
                "weight decay",
                !(weight_decay >= 0.0 && weight_decay.is_finite()),
                format!("{weight_decay}"),
            ),
            (
                "ema",
                !(0.0..1.0).contains(&ema),
                format!("{ema} is not within 0 and 1"),
            ),
            (
                "interference",
                members.body == 0 || members.head == 0,
                "a bank of none".into(),
            ),
        ];
        match odd.into_iter().find(|(_, odd, _)| *odd) {
            Some((field, _, reason)) => Err(Error::Setting { field, reason }),
            None => Ok(()),
        }
    }

    /// What must not change between a checkpoint and its resumption.
    pub(super) fn fingerprint(&self, source: &TrainingSource, network: &DitConfig) -> String {
        let source = match source {
            TrainingSource::Text(text) => format!(
                "text {:016x} of {} tokens",
                text.digest().seed(),
                text.tokens()
            ),
            TrainingSource::Skill(skill) => format!("skill {}", skill.skill().name()),
        };
        let base = self
            .base
            .as_ref()
            .map(|base| (base.digest().seed(), base.members));
        let optimizer = if self.optimizer.orthogonal {
            "Muon"
        } else {
            "AdamW"
        };
        let Self {
            objective,
            course,
            batch,
            length,
            seed,
            ..
        } = self;
        format!(
            "{source}, {batch} x {length} tokens, seed {seed}, {optimizer}, base and bank {base:x?}, {objective:?}, {course:?}, \
             {network:?}"
        )
    }
}

/// Where contexts come from.
pub enum TrainingSource {
    Text(TextSource),
    Skill(Box<SkillSource>),
}
