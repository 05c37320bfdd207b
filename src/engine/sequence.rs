//! A sequence: one accepted request, from the queue to its last event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::caps::Permit;
use super::ledger::Tenant;
use super::pages::{Pool, Table};
use super::prefix::Owner;
use super::scheduler::Claim;
use super::score::Scorer;
use super::stream::EventSender;
use super::text::TextStream;
use super::{Error, Event, Generation, Priority, Revealed, Score, Summary};
use crate::model::{Mix, Regime, Segment};
use crate::ops::categorical::Drawn;
use crate::sampler::{Evaluation, Progress, Reason, Sampler};

pub struct Sequence {
    /// Given when it is let in.
    pub id: u64,
    /// Keeps the generation alive that accepted this request, to its end.
    pub lease: Arc<Generation>,
    pub tenant: Tenant,
    /// Given with the id, where requests are counted.
    pub permit: Option<Permit>,
    pub mix: Mix,
    pub regime: Regime,
    pub seed: u64,
    pub deadline: Option<Instant>,
    pub accepted: Instant,
    pub started: Option<Instant>,
    /// Pages it may need at most.
    pub pages_needed: usize,
    pub table: Table,
    /// The last step it took part in.
    pub served: u64,
    /// It was the first that did not fit into the last step.
    pub passed_over: bool,
    /// Since when its reader has to catch up.
    pub paused: Option<Instant>,
    pub work: Work,
}

/// A sequence that lies still while it goes from list to list, several times in a step.
pub type BoxedSequence = Box<Sequence>;

/// What a sequence computes.
pub enum Work {
    Text(Box<Text>),
    Score(Box<Scoring>),
}

pub struct Text {
    pub sampler: Sampler,
    pub stream: TextStream,
    pub prompt_tokens: usize,
    /// Generated tokens already sent.
    pub delivered: usize,
    pub steps_wanted: bool,
    /// Evaluations that make its text, at least; fewer only where the text ends before its length.
    pub evaluations: u32,
    /// The same at most.
    pub most_evaluations: u32,
    pub events: EventSender,
}

pub struct Scoring {
    pub scorer: Scorer,
    /// Tokens that one step can take of it.
    pub step_tokens: usize,
    pub reply: Option<oneshot::Sender<Result<Score, Error>>>,
    pub nats_per_token: Option<f64>,
}

/// How a step left a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing to tell but, where wanted, what was revealed.
    Step,
    Block,
    End(Reason),
}

impl Sequence {
    /// A sequence that waits.
    pub fn new(
        lease: Arc<Generation>,
        tenant: Tenant,
        (mix, regime): (Mix, Regime),
        seed: u64,
        deadline: Option<Instant>,
        pages_needed: usize,
        work: Work,
    ) -> Self {
        let (accepted, table) = (Instant::now(), Table::default());
        Sequence {
            id: 0,
            lease,
            tenant,
            permit: None,
            mix,
            regime,
            seed,
            deadline,
            accepted,
            started: None,
            pages_needed,
            table,
            served: 0,
            passed_over: false,
            paused: None,
            work,
        }
    }

    pub fn client_left(&self) -> bool {
        match &self.work {
            Work::Text(text) => text.events.is_closed(),
            Work::Score(scoring) => scoring.reply.as_ref().is_none_or(|reply| reply.is_closed()),
        }
    }

    /// Why no more work should be done for this sequence, if so; `best` is the shortest time that an evaluation may take.
    pub fn given_up(&self, now: Instant, best: Option<Duration>) -> Option<Error> {
        if self.client_left() {
            return Some(Error::Cancelled);
        }
        let left = self.deadline?.saturating_duration_since(now);
        if left.is_zero() {
            let waited = now.duration_since(self.accepted);
            return Some(Error::DeadlinePassed { waited });
        }
        let needed = best?.mul_f64(self.evaluations_left() as f64);
        (needed > left).then_some(Error::DeadlineOutOfReach { needed, left })
    }

    /// Evaluations still to be made, at least.
    pub fn evaluations_left(&self) -> u64 {
        match &self.work {
            Work::Text(text) => {
                u64::from(text.evaluations.saturating_sub(text.sampler.nfe()).max(1))
            }
            Work::Score(scoring) => scoring
                .scorer
                .tokens_left()
                .div_ceil(scoring.step_tokens)
                .max(1) as u64,
        }
    }

    /// Evaluations still to be made where its variant's texts take `usual` of those that they could; at least, where that is not
    /// known.
    pub fn usual_evaluations_left(&self, usual: Option<f64>) -> u64 {
        let left = match (&self.work, usual) {
            (Work::Text(text), Some(usual)) => {
                let all = (f64::from(text.most_evaluations) * usual).ceil() as u64;
                all.saturating_sub(text.sampler.nfe().into())
            }
            _ => 0,
        };
        left.max(self.evaluations_left())
    }

    /// Evaluations that a text has taken, and how many it could have.
    pub fn evaluations_made(&self) -> Option<(u32, u32)> {
        match &self.work {
            Work::Text(text) => Some((text.sampler.nfe(), text.most_evaluations)),
            Work::Score(_) => None,
        }
    }

    /// Whether what a step has to say can be sent.
    pub fn has_room(&self) -> bool {
        match &self.work {
            Work::Text(text) => text.events.has_room(),
            Work::Score(_) => true,
        }
    }

    /// As [`given_up`](Self::given_up), also since its reader has not kept up for longer than `stall`; looks whether it does.
    pub fn over(&mut self, now: Instant, best: Option<Duration>, stall: Duration) -> Option<Error> {
        if let Some(error) = self.given_up(now, best) {
            return Some(error);
        }
        match self.has_room() {
            true => self.paused = None,
            false => _ = self.paused.get_or_insert(now),
        }
        let waited = now.duration_since(self.paused?);
        (waited >= stall).then_some(Error::Stalled { waited })
    }

    /// When it is given up if nothing happens.
    pub fn ends(&self, stall: Duration) -> Option<Instant> {
        let stalled = self.paused.and_then(|since| since.checked_add(stall));
        self.deadline.into_iter().chain(stalled).min()
    }

    /// Pages without which it had better not start: for what is to be written at once, and the block after it.
    pub fn pages_to_start(&self, page_tokens: usize) -> usize {
        match &self.work {
            Work::Text(text) => {
                let written = text.sampler.clean().len() + self.regime.block.unwrap_or(0);
                written.div_ceil(page_tokens).min(self.pages_needed)
            }
            Work::Score(_) => self.pages_needed,
        }
    }

    /// Leaves the queue, the first time or again. Returns the positions that others have computed already.
    pub fn start(&mut self, pool: &mut Pool, step: u64, now: Instant) -> usize {
        self.served = step;
        let mut known = 0;
        if let (Work::Text(text), Some(block)) = (&mut self.work, self.regime.block) {
            let owner = Owner {
                generation: &self.lease,
                mix: &self.mix,
                block,
            };
            known = self.table.begin(pool, owner, text.sampler.clean());
            text.sampler.resume(known);
        }
        if self.started.is_some() {
            return known;
        }
        self.started = Some(now);
        if let Work::Text(text) = &self.work {
            let (request_id, generation, seed) = (self.id, self.lease.number, self.seed);
            text.events.send(Event::Started {
                request_id,
                generation,
                seed,
            });
        }
        known
    }

    /// Gives up its pages, to start again later from the text it has.
    pub fn give_up_pages(&mut self, pool: &mut Pool) {
        self.table.end(pool);
        match &mut self.work {
            Work::Text(text) => text.sampler.resume(0),
            Work::Score(scoring) => scoring.scorer.restart(),
        }
    }

    /// Whether somebody waits for its first block.
    pub fn is_waited_for(&self) -> bool {
        let first = matches!(&self.work, Work::Text(text) if text.delivered == 0);
        first && self.tenant.priority == Priority::Interactive
    }

    /// What it asks of the next step; `account` is its variant's, which may have it `alone`.
    pub fn claim(&mut self, account: usize, alone: bool) -> Claim {
        let (tokens, elastic) = match &mut self.work {
            Work::Text(text) => (text.sampler.next().tokens.len(), false),
            Work::Score(scoring) => (scoring.scorer.least(), true),
        };
        Claim {
            account,
            priority: self.tenant.priority,
            tokens,
            elastic,
            served: self.served,
            passed_over: self.passed_over,
            urgent: alone && self.is_waited_for(),
        }
    }

    /// Its part of the next step, in about `tokens` tokens. `None` where there are too few pages at present.
    pub fn segments(&mut self, tokens: usize, pool: &mut Pool) -> Option<Vec<Segment>> {
        let (draws, evaluations) = match &mut self.work {
            Work::Text(text) => {
                text.sampler.next();
                (
                    text.sampler.draws(),
                    std::slice::from_ref(text.sampler.next()),
                )
            }
            Work::Score(scoring) => (Vec::new(), scoring.scorer.next(tokens)),
        };
        let (block, window) = (self.regime.block, self.lease.denoiser.facts().context);
        let from = evaluations
            .iter()
            .map(|evaluation| first_visible(evaluation, block, window));
        let from = from.min().unwrap_or(0);
        // What has no blocks sees its own segment only and writes nothing.
        let to = evaluations
            .iter()
            .map(|evaluation| evaluation.first_position + evaluation.clean)
            .max()
            .unwrap_or(0);
        if !self.table.cover(pool, from, to) {
            return None;
        }
        let (pages, pages_start) = (self.table.held(), self.table.start());
        let segment = |evaluation: &Evaluation| Segment {
            mix: self.mix.clone(),
            block,
            sigma: evaluation.sigma,
            tokens: evaluation.tokens.clone(),
            first_position: evaluation.first_position,
            clean: evaluation.clean,
            rows: evaluation.rows.clone(),
            draws: draws.clone(),
            pages: pages.clone(),
            pages_start,
        };
        Some(evaluations.iter().map(segment).collect())
    }

    /// Takes what was drawn from its segments' rows or, where it said no draws, their logits, each [vocab]: the sampling
    /// half of a step.
    pub fn accept(&mut self, drawn: &[Drawn], logits: &[&[f32]]) -> After {
        match &mut self.work {
            Work::Text(text) => match text.sampler.take(drawn) {
                Progress::Continue => After::Step,
                Progress::BlockDone => After::Block,
                Progress::Finished(reason) => After::End(reason),
            },
            Work::Score(scoring) => {
                scoring.nats_per_token = scoring.scorer.accept(logits);
                scoring
                    .nats_per_token
                    .map_or(After::Step, |_| After::End(Reason::Length))
            }
        }
    }

    /// Makes known which pages it has written, for others that begin alike.
    pub fn note(&mut self, pool: &mut Pool) {
        if let (Work::Text(text), Some(block)) = (&self.work, self.regime.block) {
            let owner = Owner {
                generation: &self.lease,
                mix: &self.mix,
                block,
            };
            let cached = &text.sampler.clean()[..text.sampler.cached()];
            self.table.note(pool, owner, cached);
        }
    }

    /// Tells the client: the delivering half of a step. Returns the tokens delivered and whether this was the end.
    pub fn deliver(&mut self, after: After, now: Instant) -> (usize, bool) {
        let waited = self.started.unwrap_or(now).duration_since(self.accepted);
        let computed = self.computed(now);
        match &mut self.work {
            Work::Text(text) => text.deliver(after, waited, computed),
            Work::Score(scoring) => {
                let Some(nats_per_token) = scoring.nats_per_token else {
                    return (0, false);
                };
                let score = Score {
                    request_id: self.id,
                    generation: self.lease.number,
                    seed: self.seed,
                    nats_per_token,
                    tokens: scoring.scorer.scored(),
                    nfe: scoring.scorer.nfe(),
                };
                let _ = scoring.reply.take().map(|reply| reply.send(Ok(score))); // the client may have left
                (0, true)
            }
        }
    }

    /// Time since it left the queue.
    pub fn computed(&self, now: Instant) -> Duration {
        self.started
            .map_or(Duration::ZERO, |started| now.duration_since(started))
    }

    /// Ends without a result.
    pub fn fail(mut self, error: Error, pool: &mut Pool) {
        self.tell(error);
        self.end(pool);
    }

    /// Says why it ends without a result.
    pub fn tell(&mut self, error: Error) {
        match &mut self.work {
            Work::Text(text) => text.events.send(Event::Failed(error)),
            Work::Score(scoring) => {
                let _ = scoring.reply.take().map(|reply| reply.send(Err(error)));
            }
        }
    }

    /// Gives its pages back.
    pub fn end(mut self, pool: &mut Pool) {
        self.table.end(pool);
    }
}

impl Text {
    fn deliver(&mut self, after: After, queued: Duration, computed: Duration) -> (usize, bool) {
        let revealed = self.sampler.revealed();
        if self.steps_wanted && !revealed.is_empty() {
            let positions = revealed
                .iter()
                .map(|&(position, token)| Revealed {
                    position,
                    token,
                    text: self.stream.one(token),
                })
                .collect();
            self.events.send(Event::Step { positions });
        }
        if after == After::Step {
            return (0, false);
        }
        let tokens = self.sampler.generated()[self.delivered..].to_vec();
        let new = tokens.len();
        self.delivered += new;
        let mut text = self.stream.push(&tokens);
        let reason = match after {
            _ if self.stream.stopped() => Some(Reason::Stop),
            After::End(reason) => {
                text += &self.stream.finish();
                Some(if self.stream.stopped() {
                    Reason::Stop
                } else {
                    reason
                })
            }
            _ => None,
        };
        if !(text.is_empty() && tokens.is_empty()) {
            self.events.send(Event::Block { text, tokens });
        }
        if let Some(reason) = reason {
            let (prompt_tokens, generated_tokens, nfe) =
                (self.prompt_tokens, self.delivered, self.sampler.nfe());
            self.events.send(Event::Finished(Summary {
                reason,
                prompt_tokens,
                generated_tokens,
                nfe,
                queued,
                computed,
            }));
        }
        (new, reason.is_some())
    }
}

/// First position that any query of this evaluation sees (see `Segment`): the cache before it is free to go.
fn first_visible(evaluation: &Evaluation, block: Option<usize>, window: usize) -> usize {
    let length = evaluation.tokens.len();
    let first_block_ends = evaluation.first_position + block.unwrap_or(length).min(length);
    first_block_ends.saturating_sub(window)
}
