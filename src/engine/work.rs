//! What a sequence computes: a text or a score, on the generation that it leases, and whom it tells.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::error::Error;
use super::generation::Generation;
use super::prefix::Owner;
use super::request::{Event, Reason, Revealed, Score, Summary};
use super::sequence::{Demand, Job, Reader, Sequence};
use super::stream::EventSender;
use crate::model::tokenizer::TextStream;
use crate::model::{Mix, PageId, Regime, Segment};
use crate::ops::categorical::{Drawn, drawable};
use crate::sampler::{Evaluation, Progress, Sampler, Scorer};

pub struct ModelJob {
    /// Keeps the generation alive that accepted this request, to its end.
    pub lease: Arc<Generation>,
    pub mix: Mix,
    pub regime: Regime,
    pub seed: u64,
    pub kind: JobKind,
}

pub enum JobKind {
    Text(Box<TextJob>),
    Score(Box<ScoreJob>),
}

pub struct TextJob {
    pub sampler: Sampler,
    pub stream: TextStream,
    pub prompt_tokens: usize,
    /// Generated tokens already told of.
    pub delivered: usize,
    pub begun: bool,
    pub steps_wanted: bool,
    /// Evaluations that make its text, at least; fewer only where the text ends before its length.
    pub evaluations: u32,
    /// The same at most.
    pub most_evaluations: u32,
    pub events: EventSender,
}

pub struct ScoreJob {
    pub scorer: Scorer,
    /// Tokens that one step can take of it.
    pub step_tokens: usize,
    pub reply: Option<oneshot::Sender<Result<Score, Error>>>,
}

/// What a step has made of a sequence, and what is to be told of it.
#[derive(Default)]
pub struct Made {
    /// Tokens of the text.
    pub tokens: usize,
    /// How it has ended, if it has.
    pub ended: Option<JobEnd>,
    events: Vec<Event>,
}

pub enum JobEnd {
    Text(Reason),
    /// Nats per token.
    Score(f64),
    /// The network's logits were not finite: nothing can be made of them.
    NotFinite,
}

impl Job for ModelJob {
    fn reader(&self) -> Reader {
        let gone = match &self.kind {
            JobKind::Text(text) => text.events.is_closed(),
            JobKind::Score(scoring) => scoring.reply.as_ref().is_none_or(|reply| reply.is_closed()),
        };
        match &self.kind {
            _ if gone => Reader::Gone,
            JobKind::Text(text) if !text.events.has_room() => Reader::Behind,
            _ => Reader::Ready,
        }
    }

    fn demand(&mut self) -> Demand {
        match &mut self.kind {
            JobKind::Text(text) => Demand {
                tokens: text.sampler.next().tokens.len(),
                elastic: false,
                first_block: text.delivered == 0,
            },
            JobKind::Score(scoring) => Demand {
                tokens: scoring.scorer.least(),
                elastic: true,
                first_block: false,
            },
        }
    }

    fn reach(&mut self, tokens: usize) -> Range<usize> {
        let (block, window) = (self.regime.block, self.lease.denoiser.facts().context);
        let evaluations = self.evaluations(tokens);
        let first = evaluations
            .iter()
            .map(|one| first_visible(one, block, window));
        // What has no blocks sees its own segment only and writes nothing.
        let end = evaluations.iter().map(|one| one.first_position + one.clean);
        first.min().unwrap_or(0)..end.max().unwrap_or(0)
    }

    fn evaluations_left(&self, usual: Option<f64>) -> u64 {
        let (least, usually) = match &self.kind {
            JobKind::Text(text) => {
                let all =
                    usual.map_or(0.0, |part| (f64::from(text.most_evaluations) * part).ceil());
                let left = |all: u64| all.saturating_sub(text.sampler.nfe().into());
                (left(text.evaluations.into()), left(all as u64))
            }
            JobKind::Score(scoring) => {
                let left = scoring.scorer.tokens_left().div_ceil(scoring.step_tokens);
                (left as u64, 0)
            }
        };
        least.max(usually).max(1)
    }

    fn positions_to_start(&self) -> usize {
        match &self.kind {
            JobKind::Text(text) => text.sampler.clean().len() + self.regime.block.unwrap_or(0),
            JobKind::Score(_) => usize::MAX,
        }
    }

    fn text(&self) -> Option<(Owner<'_>, &[u32], usize)> {
        let (JobKind::Text(text), Some(block)) = (&self.kind, self.regime.block) else {
            return None;
        };
        let owner = Owner {
            generation: &self.lease,
            mix: &self.mix,
            block,
            phase: self.phase(),
        };
        Some((owner, text.sampler.clean(), text.sampler.cached()))
    }

    fn start(&mut self, request_id: u64, cached: usize) {
        let JobKind::Text(text) = &mut self.kind else {
            return;
        };
        if self.regime.block.is_some() {
            text.sampler.resume(cached);
        }
        if !std::mem::replace(&mut text.begun, true) {
            text.events.send(Event::Started {
                request_id,
                generation: self.lease.number,
                seed: self.seed,
            });
        }
    }

    fn stop(&mut self) {
        match &mut self.kind {
            JobKind::Text(text) => text.sampler.resume(0),
            JobKind::Score(scoring) => scoring.scorer.restart(),
        }
    }
}

impl ModelJob {
    /// Tokens before the first whole block. A text that is scored has its blocks from the beginning.
    fn phase(&self) -> usize {
        match (&self.kind, self.regime.block) {
            (JobKind::Text(text), Some(block)) => self.regime.grid.phase(text.prompt_tokens, block),
            _ => 0,
        }
    }

    fn evaluations(&mut self, tokens: usize) -> &[Evaluation] {
        match &mut self.kind {
            JobKind::Text(text) => std::slice::from_ref(text.sampler.next()),
            JobKind::Score(scoring) => scoring.scorer.next(tokens),
        }
    }

    /// Its part of the next step, in about so many tokens, with these pages of the cache from position `pages_start` on.
    pub fn segments(
        &mut self,
        tokens: usize,
        pages: Vec<PageId>,
        pages_start: usize,
    ) -> Vec<Segment> {
        let draws = match &mut self.kind {
            JobKind::Text(text) => {
                text.sampler.next();
                text.sampler.draws()
            }
            JobKind::Score(_) => Vec::new(),
        };
        let (mix, block, phase) = (self.mix.clone(), self.regime.block, self.phase());
        let segment = |evaluation: &Evaluation| Segment {
            mix: mix.clone(),
            block,
            phase,
            sigma: evaluation.sigma,
            tokens: evaluation.tokens.clone(),
            first_position: evaluation.first_position,
            clean: evaluation.clean,
            rows: evaluation.rows.clone(),
            draws: draws.clone(),
            pages: pages.clone(),
            pages_start,
        };
        self.evaluations(tokens).iter().map(segment).collect()
    }

    /// Takes what was drawn from its segments' rows or, where it said no draws, their logits, each [vocab].
    pub fn accept(&mut self, drawn: &[Drawn], logits: &[&[f32]]) -> Made {
        let sound = drawn.iter().all(Drawn::is_something) && logits.iter().all(|row| drawable(row));
        match &mut self.kind {
            _ if !sound => Made {
                ended: Some(JobEnd::NotFinite),
                ..Made::default()
            },
            JobKind::Text(text) => text.accept(drawn),
            JobKind::Score(scoring) => Made {
                ended: scoring.scorer.accept(logits).map(JobEnd::Score),
                ..Made::default()
            },
        }
    }

    /// Evaluations that a text has taken, and how many it could have.
    pub fn evaluations_made(&self) -> Option<(u32, u32)> {
        match &self.kind {
            JobKind::Text(text) => Some((text.sampler.nfe(), text.most_evaluations)),
            JobKind::Score(_) => None,
        }
    }

    /// Says why it ends without a result.
    pub fn fail(&mut self, error: Error) {
        match &mut self.kind {
            JobKind::Text(text) => text.events.send(Event::Failed(error)),
            JobKind::Score(scoring) => {
                let _ = scoring.reply.take().map(|reply| reply.send(Err(error))); // the client may have left
            }
        }
    }
}

impl Sequence<ModelJob> {
    /// Tells the client what a step has made.
    pub fn deliver(&mut self, made: Made, now: Instant) {
        let started = self.started.unwrap_or(now);
        let queued = started.saturating_duration_since(self.accepted);
        let computed = self.computed(now);
        let (request_id, work) = (self.id, &mut self.job);
        if let Some(JobEnd::NotFinite) = made.ended {
            return work.fail(Error::NotFinite { request_id });
        }
        match &mut work.kind {
            JobKind::Text(text) => {
                made.events
                    .into_iter()
                    .for_each(|event| text.events.send(event));
                if let Some(JobEnd::Text(reason)) = made.ended {
                    text.events.send(Event::Finished(Summary {
                        reason,
                        prompt_tokens: text.prompt_tokens,
                        generated_tokens: text.delivered,
                        nfe: text.sampler.nfe(),
                        queued,
                        computed,
                    }));
                }
            }
            JobKind::Score(scoring) => {
                let Some(JobEnd::Score(nats_per_token)) = made.ended else {
                    return;
                };
                let score = Score {
                    request_id,
                    generation: work.lease.number,
                    seed: work.seed,
                    nats_per_token,
                    tokens: scoring.scorer.scored(),
                    nfe: scoring.scorer.nfe(),
                };
                let _ = scoring.reply.take().map(|reply| reply.send(Ok(score))); // the client may have left
            }
        }
    }
}

impl TextJob {
    fn accept(&mut self, drawn: &[Drawn]) -> Made {
        let progress = self.sampler.take(drawn);
        let mut made = Made::default();
        let revealed = self.sampler.revealed();
        if self.steps_wanted && !revealed.is_empty() {
            let revealed = revealed.iter().map(|&(position, token)| Revealed {
                position,
                token,
                text: self.stream.one(token),
            });
            let positions = revealed.collect();
            made.events.push(Event::Step { positions });
        }
        if progress == Progress::Continue {
            return made;
        }
        let tokens = self.sampler.generated()[self.delivered..].to_vec();
        made.tokens = tokens.len();
        self.delivered += tokens.len();
        let mut text = self.stream.push(&tokens);
        if let Progress::Finished(reason) = progress {
            text += &self.stream.finish();
            made.ended = Some(JobEnd::Text(reason));
        }
        if self.stream.stopped() {
            made.ended = Some(JobEnd::Text(Reason::Stop));
        }
        if !(text.is_empty() && tokens.is_empty()) {
            made.events.push(Event::Block { text, tokens });
        }
        made
    }
}

/// First position that any query of this evaluation sees (see `Segment`): the cache before it is free to go.
fn first_visible(evaluation: &Evaluation, block: Option<usize>, window: usize) -> usize {
    let length = evaluation.tokens.len();
    let first_block_ends = evaluation.first_position + block.unwrap_or(length).min(length);
    first_block_ends.saturating_sub(window)
}
