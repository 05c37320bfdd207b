//! What a client asks of the engine and what it hears back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::Error;
use super::generation::Target;
use super::sampling::Sampling;
pub use crate::sampler::Reason;

/// A request for text. Tokens in, tokens out: the caller encodes with the generation's tokenizer.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which variants, by name or resolved already.
    pub mix: Target,
    /// At least one token, unless one is fixed in `after`.
    pub prompt: Vec<u32>,
    /// Tokens to make at most, at least 1; with `after`, the length of the hole between it and the prompt.
    pub max_tokens: usize,
    /// What stands after that hole: fixed tokens (`Some`) and more holes (`None`). Empty for a text to continue. The text
    /// made begins with the first hole, fixed tokens after it included.
    pub after: Vec<Option<u32>>,
    pub sampling: Sampling,
    /// Text ends before the first of these; none may be empty.
    pub stop: Vec<String>,
    /// Ends at any of these tokens, besides the tokenizer's end of text.
    pub stop_ids: Vec<u32>,
    /// The request's noise; drawn from the operating system where absent, and reported in `Event::Started`.
    pub seed: Option<u64>,
    /// Also report the positions that every step reveals.
    pub steps_wanted: bool,
    /// No work is done for this request after this moment.
    pub deadline: Option<Instant>,
    pub priority: Priority,
    /// Who asks, where requests of one client are counted.
    pub client: Option<Arc<str>>,
}

impl Request {
    /// A text of the base to continue, of which nothing else is asked.
    pub fn new(prompt: Vec<u32>, max_tokens: usize, sampling: Sampling) -> Self {
        Request {
            mix: Target::default(),
            prompt,
            max_tokens,
            after: Vec::new(),
            sampling,
            stop: Vec::new(),
            stop_ids: Vec::new(),
            seed: None,
            steps_wanted: false,
            deadline: None,
            priority: Priority::default(),
            client: None,
        }
    }
}

/// Who comes first where there is not room for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Takes what interactive requests leave, and an eighth where they leave nothing. Scores are of this priority.
    Batch,
}

/// What a client hears, in this order: one `Started`, any `Step`s and `Block`s, then one of `Finished` and `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request left the queue.
    Started {
        request_id: u64,
        generation: u64,
        seed: u64,
    },
    /// One denoising step, where the request wanted them: what it revealed.
    Step {
        positions: Vec<Revealed>,
    },
    /// A finished block. `text` continues the text before it: bytes that are not yet a whole character and
    /// text that may be the beginning of a stop string are held back until a later block or the end.
    Block {
        text: String,
        tokens: Vec<u32>,
    },
    Finished(Summary),
    Failed(Error),
}

/// A token revealed by one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revealed {
    /// Counted from the first token of the prompt.
    pub position: usize,
    pub token: u32,
    /// The token decoded by itself.
    pub text: String,
}

/// A finished request in figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub reason: Reason,
    pub prompt_tokens: usize,
    pub generated_tokens: usize,
    /// Network evaluations.
    pub nfe: u32,
    /// Time spent waiting.
    pub queued: Duration,
    /// Time from leaving the queue to the end.
    pub computed: Duration,
}

/// A request for the likelihood of a text.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// As in [`Request::mix`].
    pub mix: Target,
    /// More than `given` tokens.
    pub tokens: Vec<u32>,
    /// Leading tokens that are context and not scored, such as the one that begins every text.
    pub given: usize,
    /// Noise levels drawn for every block, at least 1.
    pub samples: usize,
    pub seed: Option<u64>,
    pub deadline: Option<Instant>,
    /// As in [`Request::client`].
    pub client: Option<Arc<str>>,
}

/// The negative evidence lower bound of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    pub request_id: u64,
    pub generation: u64,
    pub seed: u64,
    pub nats_per_token: f64,
    pub tokens: usize,
    pub nfe: u32,
}
