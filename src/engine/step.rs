//! One step's work on one generation: the batch, the sequences it belongs to, and its evaluation.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;

use super::Generation;
use super::materialised::{Materialised, Single};
use super::sequence::{After, BoxedSequence};
use crate::model::kv_cache::KvCache;
use crate::model::{Batch, Denoiser, Mix, Outcome, Segment};
use crate::ops::gpu::Fault;

/// Sequences of one generation that take part in a step: one evaluation of one model instance.
pub struct Group {
    lease: Arc<Generation>,
    /// The instance of these sequences' mix; the generation's own where there is none.
    single: Option<Arc<Single>>,
    batch: Batch,
    pub members: Vec<Member>,
}

pub struct Member {
    pub sequence: BoxedSequence,
    /// What is its own of a step's tokens and of its rows of logits; one of the two is empty.
    drawn: Range<usize>,
    logits: Range<usize>,
    pub after: After,
}

/// What went wrong in an evaluation.
#[derive(Clone, Debug)]
pub struct Failure {
    pub detail: String,
    /// With it everything on the device, the cache and all instances, is gone.
    pub lost: bool,
}

impl Failure {
    /// One that the next step has nothing to do with.
    fn of_step(detail: impl ToString) -> Self {
        Failure {
            detail: detail.to_string(),
            lost: false,
        }
    }
}

impl Group {
    /// One group for each generation among the sequences, and one more for each materialised mix.
    pub fn of(
        chosen: Vec<(BoxedSequence, Vec<Segment>)>,
        materialised: &Materialised,
    ) -> Vec<Group> {
        let rows = |segments: &[Segment]| segments.iter().map(|segment| segment.tokens.len()).sum();
        let work: Vec<_> = chosen
            .iter()
            .map(|(sequence, segments)| (&sequence.lease, &sequence.mix, rows(segments)))
            .collect();
        let singles = materialised.choose(&work);
        let mut groups = Vec::new();
        for ((sequence, segments), single) in chosen.into_iter().zip(singles) {
            Group::join(&mut groups, single, sequence, segments);
        }
        groups
    }

    fn join(
        groups: &mut Vec<Group>,
        single: Option<Arc<Single>>,
        sequence: BoxedSequence,
        segments: Vec<Segment>,
    ) {
        let same = |group: &Group| {
            Arc::ptr_eq(&group.lease, &sequence.lease)
                && group.single.as_ref().map(Arc::as_ptr) == single.as_ref().map(Arc::as_ptr)
        };
        let at = groups.iter().position(same).unwrap_or_else(|| {
            groups.push(Group {
                lease: sequence.lease.clone(),
                single,
                batch: Batch::default(),
                members: Vec::new(),
            });
            groups.len() - 1
        });
        let group = &mut groups[at];
        let (drawn, logits) = group.wanted();
        group.batch.segments.extend(segments);
        let (drawn_end, logits_end) = group.wanted();
        group.members.push(Member {
            sequence,
            drawn: drawn..drawn_end,
            logits: logits..logits_end,
            after: After::Step,
        });
    }

    /// How many tokens and how many rows of logits a step is to give.
    fn wanted(&self) -> (usize, usize) {
        let drawn = self.batch.drawn_rows();
        (drawn, self.batch.logit_rows() - drawn)
    }

    /// Evaluates the network once, or a second time with the generation's own instance where that of a mix fails.
    ///
    /// # Errors
    /// An error, a panic or an outcome of the wrong shape, as what there is to say of them.
    pub fn forward(&self, cache: &mut KvCache) -> Result<Outcome, Failure> {
        let Some(single) = &self.single else {
            return self.evaluate(&*self.lease.denoiser, &self.batch, cache);
        };
        let mut batch = self.batch.clone();
        batch
            .segments
            .iter_mut()
            .for_each(|segment| segment.mix = Mix::base());
        match self.evaluate(&*single.denoiser, &batch, cache) {
            Err(Failure {
                detail,
                lost: false,
            }) => {
                tracing::warn!(
                    detail,
                    "a materialised variant failed; it is read from its bank again"
                );
                single.give_up();
                self.evaluate(&*self.lease.denoiser, &self.batch, cache)
            }
            outcome => outcome,
        }
    }

    /// Has it known what the evaluation took.
    pub fn learn(&self, materialised: &Materialised, took: Duration) {
        materialised.learn(&self.lease, &self.batch, self.single.is_some(), took);
    }

    fn evaluate(
        &self,
        denoiser: &dyn Denoiser,
        batch: &Batch,
        cache: &mut KvCache,
    ) -> Result<Outcome, Failure> {
        // What a panic leaves half written in the cache are pages of this group's sequences: they do not go on, or write them anew.
        let outcome = catch_unwind(AssertUnwindSafe(|| denoiser.step(batch, cache)))
            .map_err(|panic| Failure::of_step(format!("panic: {}", said(&*panic))))?
            .map_err(|error| Failure {
                detail: error.to_string(),
                lost: matches!(Fault::behind(&error), Some(Fault::Lost { .. })),
            })?;
        let (drawn, rows) = self.wanted();
        let shape = outcome.logits.check(rows, denoiser.facts().rows);
        shape.map_err(Failure::of_step)?;
        if outcome.drawn.len() != drawn {
            let found = outcome.drawn.len();
            return Err(Failure::of_step(format!(
                "{found} tokens drawn instead of {drawn}"
            )));
        }
        Ok(outcome)
    }

    /// Gives every sequence what is its own of the outcome. What scores does so here, and depends on its own rows only, so
    /// sequences may do so side by side; for drawn tokens alone other threads are not worth waking.
    pub fn sample(&mut self, outcome: &Outcome) {
        let sample = |member: &mut Member| {
            let rows: Vec<&[f32]> = (member.logits.clone())
                .map(|row| outcome.logits.row(row))
                .collect();
            let drawn = &outcome.drawn[member.drawn.clone()];
            member.after = member.sequence.accept(drawn, &rows);
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
