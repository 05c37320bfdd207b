//! Answers in OpenAI's shape: whole, or as server-sent events.

use super::fields::AnswerForm;
use crate::engine::{Event, Reason, Revealed, Summary};
use crate::server::failure::Failure;
use crate::server::requests::{Answer, Whole};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_stream::{Stream, StreamMap};

/// Which of the two forms of OpenAI's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Chat,
}

/// One choice that is being made.
pub struct Making {
    pub answer: Answer,
    /// Shown before its text.
    pub before: String,
}

/// What all parts of one reply say.
struct Head {
    form: Form,
    shown: AnswerForm,
    id: String,
    created: u64,
}

/// Tokens and evaluations of all choices; a prompt counts once.
#[derive(Default)]
struct Usage {
    prompt: usize,
    made: usize,
    nfe: u32,
}

impl Usage {
    fn add(&mut self, index: usize, n: usize, summary: &Summary) {
        if index.is_multiple_of(n) {
            self.prompt += summary.prompt_tokens;
        }
        self.made += summary.generated_tokens;
        self.nfe += summary.nfe;
    }

    fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.made,
            "total_tokens": self.prompt + self.made,
            "nfe": self.nfe,
        })
    }
}

impl Head {
    fn new(form: Form, shown: AnswerForm, id: u64) -> Head {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let prefix = match form {
            Form::Text => "cmpl",
            Form::Chat => "chatcmpl",
        };
        Head {
            form,
            shown,
            id: format!("{prefix}-{id}"),
            created: since.map_or(0, |since| since.as_secs()),
        }
    }

    fn object(&self, choices: Value, part: bool) -> Value {
        let object = match (self.form, part) {
            (Form::Text, _) => "text_completion",
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.shown.model,
            "choices": choices,
        })
    }

    /// One choice of a chunk.
    fn chunk(&self, index: usize, text: &str, ended: Option<&Summary>, ours: Value) -> Value {
        let mut choice = json!({
            "index": index,
            "finish_reason": ended.map(|summary| reason(summary.reason)),
            "logprobs": null,
        });
        match self.form {
            Form::Text => choice["text"] = text.into(),
            Form::Chat if text.is_empty() => choice["delta"] = json!({}),
            Form::Chat => choice["delta"] = json!({"content": text}),
        }
        if !ours.is_null() {
            choice["choir"] = ours;
        }
        self.object(json!([choice]), true)
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Length => "length",
        Reason::Stop => "stop",
    }
}

fn figures(seed: u64, generation: u64, summary: &Summary) -> Value {
    json!({
        "seed": seed,
        "generation": generation,
        "nfe": summary.nfe,
        "queue_us": summary.queued.as_micros() as u64,
        "compute_us": summary.computed.as_micros() as u64,
    })
}

/// Waits for all choices and shows them together.
///
/// # Errors
/// That of the first choice that failed; the others are cancelled.
pub async fn whole(
    form: Form,
    shown: AnswerForm,
    making: Vec<Making>,
) -> Result<Response, Failure> {
    let id = making.first().map_or(0, |one| one.answer.request_id());
    let head = Head::new(form, shown, id);
    let (mut usage, mut choices) = (Usage::default(), Vec::new());
    for (index, Making { answer, before }) in making.into_iter().enumerate() {
        let Whole {
            text,
            generation,
            seed,
            summary,
        } = answer.whole().await?;
        usage.add(index, head.shown.n, &summary);
        let mut choice = json!({
            "index": index,
            "finish_reason": reason(summary.reason),
            "logprobs": null,
            "choir": figures(seed, generation, &summary),
        });
        let text = before + &text;
        match form {
            Form::Text => choice["text"] = text.into(),
            Form::Chat => {
                choice["message"] = json!({"role": "assistant", "content": text, "refusal": null});
            }
        }
        choices.push(choice);
    }
    let mut object = head.object(choices.into(), false);
    object["usage"] = usage.json();
    Ok(super::json(&object))
}

/// Shows all choices as they are made: an event for each block, then `[DONE]`.
pub fn streamed(form: Form, shown: AnswerForm, making: Vec<Making>) -> Response {
    let id = making.first().map_or(0, |one| one.answer.request_id());
    let (mut answers, mut beginnings) = (StreamMap::new(), Vec::new());
    for (index, Making { answer, before }) in making.into_iter().enumerate() {
        answers.insert(index, answer);
        beginnings.push(before);
    }
    let events = Events {
        head: Head::new(form, shown, id),
        seeds: vec![(0, 0); beginnings.len()],
        beginnings,
        answers,
        usage: Usage::default(),
        ready: VecDeque::new(),
        ended: false,
    };
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would hold blocks back otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

struct Events {
    head: Head,
    answers: StreamMap<usize, Answer>,
    /// What each choice begins with, until it was shown.
    beginnings: Vec<String>,
    /// Seed and generation of each choice.
    seeds: Vec<(u64, u64)>,
    usage: Usage,
    ready: VecDeque<Value>,
    ended: bool,
}

impl Events {
    fn take(&mut self, index: usize, event: Event) {
        match event {
            Event::Started {
                seed, generation, ..
            } => {
                self.seeds[index] = (seed, generation);
                if self.head.form == Form::Chat {
                    let mut first = self.head.chunk(index, "", None, Value::Null);
                    first["choices"][0]["delta"] = json!({"role": "assistant", "content": ""});
                    self.ready.push_back(first);
                }
                let before = std::mem::take(&mut self.beginnings[index]);
                self.show(index, &before, Value::Null);
            }
            Event::Step { positions } => {
                let revealed: Vec<Value> = positions.iter().map(revealed).collect();
                let chunk = self
                    .head
                    .chunk(index, "", None, json!({"revealed": revealed}));
                self.ready.push_back(chunk);
            }
            Event::Block { text, .. } => self.show(index, &text, Value::Null),
            Event::Finished(summary) => {
                self.usage.add(index, self.head.shown.n, &summary);
                let (seed, generation) = self.seeds[index];
                let figures = figures(seed, generation, &summary);
                let last = self.head.chunk(index, "", Some(&summary), figures);
                self.ready.push_back(last);
            }
            Event::Failed(error) => {
                self.ready.push_back(Failure::from(error).body());
                self.answers.clear(); // which cancels the other choices
            }
        }
    }

    fn show(&mut self, index: usize, text: &str, ours: Value) {
        if !text.is_empty() {
            let chunk = self.head.chunk(index, text, None, ours);
            self.ready.push_back(chunk);
        }
    }
}

fn revealed(one: &Revealed) -> Value {
    json!({"position": one.position, "token": one.token, "text": one.text})
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(value) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(format!("data: {value}\n\n").into())));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.answers).poll_next(context)) {
                Some((index, event)) => self.take(index, event),
                None => {
                    self.ended = true;
                    let mut last = String::new();
                    if self.head.shown.include_usage {
                        let mut chunk = self.head.object(json!([]), true);
                        chunk["usage"] = self.usage.json();
                        last = format!("data: {chunk}\n\n");
                    }
                    return Poll::Ready(Some(Ok((last + "data: [DONE]\n\n").into())));
                }
            }
        }
    }
}
