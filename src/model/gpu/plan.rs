//! What a base keeps from step to step: modulation tables, and shapes of batches with what was recorded of them.

use super::network::Pages;
use super::pack::BatchShape;
use super::slots::TableSlots;
use super::work::{Needs, PieceAddresses};
use crate::model::architecture::Architecture;
use crate::model::error::{Error, Result};
use crate::ops::gpu::{Address, Buffer, GpuDevice, Graph};
use std::collections::HashMap;
use std::sync::Arc;

/// Shapes of batches that are remembered.
const PLANS: usize = 128;

/// What recorded steps hold addresses of: the cache, the slots of modulation tables, the tables of variants, the memory they work in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub pages: Pages,
    pub slots: (Address, Address),
    pub tables: [usize; 3],
    pub work: PieceAddresses,
}

/// A shape of batch that was seen before.
pub struct Recording {
    /// What batches of this shape are copied to.
    pub memory: Buffer,
    /// What they work in.
    pub needs: Needs,
    /// The step, and what it holds addresses of.
    pub graph: Option<(Addresses, Box<dyn Graph>)>,
    pub seen: u64,
    /// The number of the step that had it last.
    last: u64,
}

/// The plans of a base's instances, of which the one that was not needed for longest goes where there are too many.
#[derive(Default)]
pub struct Plans {
    kept: HashMap<BatchShape, Recording>,
    steps: u64,
}

impl std::fmt::Debug for Plans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} plans", self.kept.len())
    }
}

impl Plans {
    /// The plan for a shape, whose batches have so many bytes; `needs` is asked where there was none.
    pub fn of(
        &mut self,
        gpu: &Arc<dyn GpuDevice>,
        (shape, bytes): (&BatchShape, usize),
        needs: impl FnOnce() -> Needs,
    ) -> Result<&mut Recording> {
        self.steps += 1;
        if !self.kept.contains_key(shape) {
            let oldest = self.kept.iter().min_by_key(|(_, plan)| plan.last);
            if let Some((oldest, _)) = oldest.filter(|_| self.kept.len() >= PLANS) {
                let oldest = oldest.clone();
                self.kept.remove(&oldest);
            }
            let plan = Recording {
                memory: Buffer::new(gpu, bytes)?,
                needs: needs(),
                graph: None,
                seen: 0,
                last: 0,
            };
            self.kept.insert(shape.clone(), plan);
        }
        let Some(plan) = self.kept.get_mut(shape) else {
            return Err(Error::NotKept("a plan for the batch"));
        };
        (plan.last, plan.seen) = (self.steps, plan.seen + 1);
        Ok(plan)
    }

    /// How many shapes are recorded.
    pub fn recorded(&self) -> usize {
        let plans = self.kept.values();
        plans.filter(|plan| plan.graph.is_some()).count()
    }
}

#[derive(Debug)]
pub struct Prepared {
    pub tables: TableSlots,
    /// Of the rotary embedding, [head_dim / 2] f64.
    pub frequencies: Buffer,
    pub plans: Plans,
}

impl Prepared {
    pub fn new(gpu: &Arc<dyn GpuDevice>, architecture: &Architecture) -> Result<Self> {
        let attention = architecture.attention();
        let half = attention.head_dim / 2;
        let frequency = |i: usize| attention.rotary.theta.powf(-(i as f64) / half as f64);
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        Ok(Self {
            tables: TableSlots::new(gpu, architecture)?,
            frequencies: Buffer::from(gpu, &frequencies)?,
            plans: Plans::default(),
        })
    }

    /// Bytes of the tables.
    pub fn bytes(&self) -> usize {
        self.tables.bytes() + self.frequencies.bytes()
    }
}
