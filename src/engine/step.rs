//! One step's work on one generation: the batch, the sequences it belongs to, and its evaluation.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::prelude::*;

use super::batcher::StepPart;
use super::generation::Generation;
use super::materialised::{Materialised, Single};
use super::sequence::Sequence;
use super::work::{Made, ModelJob};
use crate::model;
use crate::model::kv_cache::KvCache;
use crate::model::{Batch, Denoiser, Mix, Segment, StepOutcome};
use crate::ops::gpu::Fault;

/// Sequences of one generation that take part in a step: one evaluation of one model instance.
pub struct StepGroup {
    lease: Arc<Generation>,
    /// The instance of these sequences' mix; the generation's own where there is none.
    single: Option<Arc<Single>>,
    batch: Batch,
    pub members: Vec<Member>,
}

pub struct Member {
    pub sequence: Box<Sequence<ModelJob>>,
    /// Tokens that it has in the batch.
    pub tokens: usize,
    /// What is its own of a step's tokens and of its rows of logits; one of the two is empty.
    drawn: Range<usize>,
    logits: Range<usize>,
    pub made: Made,
}

/// What went wrong in an evaluation.
#[derive(Clone, Debug)]
pub struct StepFailure {
    pub detail: String,
    /// With it everything on the device, the cache and all instances, is gone.
    pub lost: bool,
}

impl StepFailure {
    /// One that the next step has nothing to do with.
    fn of_step(detail: impl ToString) -> Self {
        StepFailure {
            detail: detail.to_string(),
            lost: false,
        }
    }
}

impl StepGroup {
    /// One group for each generation among the sequences, and one more for each materialised mix.
    pub fn of(parts: Vec<StepPart<ModelJob>>, materialised: &mut Materialised) -> Vec<StepGroup> {
        let work = parts.iter().map(|StepPart { sequence, tokens }| {
            let (job, rows) = (&sequence.job, sequence.tenant.charge(*tokens));
            (&job.lease, &job.mix, rows)
        });
        let singles = materialised.choose(&work.collect::<Vec<_>>());
        let mut groups = Vec::new();
        for (part, single) in parts.into_iter().zip(singles) {
            let StepPart {
                mut sequence,
                tokens,
            } = part;
            let (pages, pages_start) = (sequence.table.held(), sequence.table.start());
            let segments = sequence.job.segments(tokens, pages, pages_start);
            StepGroup::join(&mut groups, single, sequence, segments);
        }
        groups
    }

    fn join(
        groups: &mut Vec<StepGroup>,
        single: Option<Arc<Single>>,
        sequence: Box<Sequence<ModelJob>>,
        segments: Vec<Segment>,
    ) {
        let lease = &sequence.job.lease;
        let same = |group: &StepGroup| {
            Arc::ptr_eq(&group.lease, lease)
                && group.single.as_ref().map(Arc::as_ptr) == single.as_ref().map(Arc::as_ptr)
        };
        let at = groups.iter().position(same).unwrap_or_else(|| {
            groups.push(StepGroup {
                lease: lease.clone(),
                single,
                batch: Batch::default(),
                members: Vec::new(),
            });
            groups.len() - 1
        });
        let group = &mut groups[at];
        let (drawn, logits) = group.wanted();
        let tokens = segments.iter().map(|segment| segment.tokens.len()).sum();
        group.batch.segments.extend(segments);
        let (drawn_end, logits_end) = group.wanted();
        group.members.push(Member {
            sequence,
            tokens,
            drawn: drawn..drawn_end,
            logits: logits..logits_end,
            made: Made::default(),
        });
    }

    /// How many tokens and how many rows of logits a step is to give.
    fn wanted(&self) -> (usize, usize) {
        let drawn = self.batch.drawn_rows();
        (drawn, self.batch.logit_rows() - drawn)
    }

    /// Evaluates the network once, or a second time with the generation's own instance where that of a mix fails, and gives every
    /// sequence what is its own.
    ///
    /// # Errors
    /// An error, a panic or an outcome of the wrong shape, as what there is to say of them.
    pub fn evaluate(&mut self, cache: &mut KvCache) -> Result<(), StepFailure> {
        let outcome = match &self.single {
            None => self.forward(&*self.lease.denoiser, &self.batch, cache),
            Some(single) => {
                let mut batch = self.batch.clone();
                let segments = batch.segments.iter_mut();
                segments.for_each(|segment| segment.mix = Mix::base());
                match self.forward(&*single.denoiser, &batch, cache) {
                    Err(StepFailure {
                        detail,
                        lost: false,
                    }) => {
                        tracing::warn!(
                            detail,
                            "a materialised variant failed; it is retrieved again"
                        );
                        single.give_up();
                        self.forward(&*self.lease.denoiser, &self.batch, cache)
                    }
                    outcome => outcome,
                }
            }
        };
        outcome.map(|outcome| self.sample(&outcome))
    }

    fn forward(
        &self,
        denoiser: &dyn Denoiser,
        batch: &Batch,
        cache: &mut KvCache,
    ) -> Result<StepOutcome, StepFailure> {
        // What a panic leaves half written in the cache are pages of this group's sequences: they do not go on, or write them anew.
        let outcome = catch_unwind(AssertUnwindSafe(|| denoiser.step(batch, cache)))
            .map_err(|panic| StepFailure::of_step(format!("panic: {}", said(&*panic))))?
            .map_err(|error| StepFailure {
                detail: error.to_string(),
                lost: matches!(error, model::Error::Device(Fault::Lost { .. })),
            })?;
        let (drawn, rows) = self.wanted();
        let shape = outcome.logits.check(rows, denoiser.facts().rows);
        shape.map_err(StepFailure::of_step)?;
        if outcome.drawn.len() != drawn {
            let found = outcome.drawn.len();
            return Err(StepFailure::of_step(format!(
                "{found} tokens drawn instead of {drawn}"
            )));
        }
        Ok(outcome)
    }

    /// Gives every sequence what is its own of the outcome. What scores does so here, and depends on its own rows only, so
    /// sequences may do so side by side; for drawn tokens alone other threads are not worth waking.
    fn sample(&mut self, outcome: &StepOutcome) {
        let sample = |member: &mut Member| {
            let rows = member.logits.clone().map(|row| outcome.logits.row(row));
            let (drawn, rows) = (
                &outcome.drawn[member.drawn.clone()],
                rows.collect::<Vec<_>>(),
            );
            member.made = member.sequence.job.accept(drawn, &rows);
        };
        match outcome.logits.data.is_empty() {
            true => self.members.iter_mut().for_each(sample),
            false => self.members.par_iter_mut().for_each(sample),
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
