//! One step's work on one generation: the batch, the sequences it belongs to, and its evaluation.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::prelude::*;

use super::Generation;
use super::sequence::{After, Sequence};
use crate::model::kv_cache::KvCache;
use crate::model::{Batch, Logits, Segment};

/// The sequences of one generation that take part in a step: one evaluation of one model instance.
pub struct Group {
    lease: Arc<Generation>,
    batch: Batch,
    pub members: Vec<Member>,
}

pub struct Member {
    pub sequence: Sequence,
    /// Its rows of the batch's logits.
    rows: Range<usize>,
    pub after: After,
}

impl Group {
    /// Adds a sequence to the group of its generation.
    pub fn join(groups: &mut Vec<Group>, sequence: Sequence, segments: Vec<Segment>) {
        let same = |group: &Group| Arc::ptr_eq(&group.lease, &sequence.lease);
        let at = groups.iter().position(same).unwrap_or_else(|| {
            groups.push(Group {
                lease: sequence.lease.clone(),
                batch: Batch::default(),
                members: Vec::new(),
            });
            groups.len() - 1
        });
        let group = &mut groups[at];
        let first = group.members.last().map_or(0, |member| member.rows.end);
        let count: usize = segments.iter().map(|segment| segment.rows.len()).sum();
        group.batch.segments.extend(segments);
        group.members.push(Member {
            sequence,
            rows: first..first + count,
            after: After::Step,
        });
    }

    /// Evaluates the network once. An error, a panic or logits of the wrong shape come back as what there is to say of them.
    pub fn forward(&self, cache: &mut KvCache) -> Result<Logits, String> {
        let denoiser = &self.lease.denoiser;
        // What a panic leaves half written in the cache are pages of this group's sequences, and those will not go on.
        let logits = catch_unwind(AssertUnwindSafe(|| denoiser.forward(&self.batch, cache)))
            .map_err(|panic| format!("panic: {}", said(&*panic)))?
            .map_err(|error| error.to_string())?;
        let (rows, vocab) = (self.batch.logit_rows(), denoiser.config().vocab_size);
        if rows > 0 && (logits.vocab != vocab || logits.data.len() != rows * vocab) {
            return Err(format!("{} logits instead of [{rows}, {vocab}]", logits.data.len()));
        }
        Ok(logits)
    }

    /// Lets every sequence draw from its rows. Each depends on its own rows only, so they may do so side by side.
    pub fn sample(&mut self, logits: &Logits) {
        self.members.par_iter_mut().for_each(|member| {
            let rows: Vec<&[f32]> = member.rows.clone().map(|row| logits.row(row)).collect();
            member.after = member.sequence.accept(&rows);
        });
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
