//! Requests over the wire, and what became of each.

use super::plan::{Load, PlannedRequest};
use crate::client::{Connection, retry_after};
use crate::engine::BASE;
use crate::pb;
use crate::pb::generate_response::Event;
use crate::pb::inference_client::InferenceClient;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};

/// How requests come.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Clients, each of which asks again as soon as it has its answer: so many that ask for any variant, or for each variant
    /// so many as are listed.
    Closed {
        clients: usize,
    },
    ClosedByVariant {
        clients: Vec<usize>,
    },
    /// A Poisson process of so many a second, whatever the server does.
    Open {
        rate: f64,
    },
}

/// When to stop asking: whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Until {
    pub time: Duration,
    pub requests: u64,
}

/// Requests under way at most in an open load; those beyond are counted as not sent.
const UNDER_WAY: usize = 4000;
/// How long answers are waited for after the last request.
const GRACE: Duration = Duration::from_secs(60);
/// A refused client of a closed load that is not told when to come back waits so long.
const PAUSE: Duration = Duration::from_millis(50);

/// One request and its end. Times count from the start of the load.
#[derive(Clone, Debug)]
pub struct RequestOutcome {
    pub variant: usize,
    /// When it was due: in an open load not when it was sent, so that a slow generator or server hides nothing.
    pub due: Duration,
    /// When every block came, and its tokens.
    pub blocks: Vec<(Duration, u32)>,
    pub ended: Duration,
    pub end: RequestEnd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestEnd {
    Finished,
    /// RESOURCE_EXHAUSTED: the server has no room for it, or no time.
    Rejected,
    /// The deadline passed.
    Late,
    /// The open load had too many under way already.
    NotSent,
    Failed(String),
    /// The server is no longer there.
    Gone(String),
}

/// What the load needs to know of all that it does.
pub struct Driver {
    pub channel: Connection,
    /// The variants' names; `base` stands for the base.
    pub names: Vec<String>,
    pub deadline: Option<Duration>,
}

/// All that became of a load.
#[derive(Debug, Default)]
pub struct Driven {
    pub outcomes: Vec<RequestOutcome>,
    /// Requests that had no end when the grace after the load was over.
    pub unanswered: u64,
}

impl Driver {
    /// Asks until `until`, or until the server goes away, and waits for the answers.
    pub async fn run(self, load: Load, arrivals: Arrivals, until: Until) -> Driven {
        let shared = Arc::new(Shared {
            driver: self,
            start: Instant::now(),
            until,
            gone: watch::Sender::new(false),
            state: Mutex::new(State {
                load,
                asked: 0,
                outcomes: Vec::new(),
            }),
        });
        let mut tasks = JoinSet::new();
        match arrivals {
            Arrivals::Closed { clients } => (0..clients).for_each(|_| {
                tasks.spawn(shared.clone().client(None));
            }),
            Arrivals::ClosedByVariant { clients } => {
                for (variant, clients) in clients.into_iter().enumerate() {
                    (0..clients).for_each(|_| {
                        tasks.spawn(shared.clone().client(Some(variant)));
                    });
                }
            }
            Arrivals::Open { rate } => shared.clone().arrive(rate, &mut tasks).await,
        }
        let rest = until
            .time
            .saturating_sub(shared.start.elapsed())
            .saturating_add(GRACE);
        let all = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(rest, all).await; // what is left is unanswered
        tasks.shutdown().await;
        let mut state = shared.state();
        let outcomes = std::mem::take(&mut state.outcomes);
        Driven {
            unanswered: state.asked - outcomes.len() as u64,
            outcomes,
        }
    }
}

struct Shared {
    driver: Driver,
    start: Instant,
    until: Until,
    gone: watch::Sender<bool>,
    state: Mutex<State>,
}

struct State {
    load: Load,
    asked: u64,
    outcomes: Vec<RequestOutcome>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request, if another is to be made.
    fn plan(&self) -> Option<PlannedRequest> {
        let mut state = self.state();
        let more = state.asked < self.until.requests
            && self.start.elapsed() < self.until.time
            && !*self.gone.borrow();
        more.then(|| {
            state.asked += 1;
            state.load.next_request()
        })
    }

    /// One client of a closed load, of one variant where that is given.
    async fn client(self: Arc<Self>, variant: Option<usize>) {
        while let Some(mut plan) = self.plan() {
            plan.variant = variant.unwrap_or(plan.variant);
            let due = self.start.elapsed();
            if let Some(pause) = self.ask(plan, due).await {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// The requests of an open load, each in a task of its own.
    async fn arrive(self: Arc<Self>, rate: f64, tasks: &mut JoinSet<()>) {
        let (room, mut gone) = (Arc::new(Semaphore::new(UNDER_WAY)), self.gone.subscribe());
        let mut due = Duration::ZERO;
        loop {
            due = due.saturating_add(self.state().load.gap(rate));
            let Some(time) = self
                .start
                .checked_add(due)
                .filter(|_| due < self.until.time)
            else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(time.into()) => {}
                _ = gone.wait_for(|gone| *gone) => return,
            }
            while tasks.try_join_next().is_some() {}
            let Some(plan) = self.plan() else { return };
            match room.clone().try_acquire_owned() {
                Ok(permit) => {
                    let shared = self.clone();
                    tasks.spawn(async move {
                        shared.ask(plan, due).await;
                        drop(permit);
                    });
                }
                Err(_) => self.end(plan.variant, due, Vec::new(), RequestEnd::NotSent),
            }
        }
    }

    /// One request to its end; returns how long a refused client should wait.
    async fn ask(&self, plan: PlannedRequest, due: Duration) -> Option<Duration> {
        let mut request = Request::new(wire(&self.driver.names[plan.variant], &plan));
        if let Some(deadline) = self.driver.deadline {
            request.set_timeout(deadline);
        }
        let mut blocks = Vec::new();
        let (end, pause) = match self.follow(request, &mut blocks).await {
            Ok(()) => (RequestEnd::Finished, None),
            Err(status) => {
                let end = end(&status);
                let pause =
                    (end == RequestEnd::Rejected).then(|| retry_after(&status).unwrap_or(PAUSE));
                (end, pause)
            }
        };
        self.end(plan.variant, due, blocks, end);
        pause
    }

    async fn follow(
        &self,
        request: Request<pb::GenerateRequest>,
        blocks: &mut Vec<(Duration, u32)>,
    ) -> Result<(), Status> {
        follow(self.driver.channel.clone(), request, |tokens| {
            blocks.push((self.start.elapsed(), tokens));
        })
        .await
    }

    fn end(&self, variant: usize, due: Duration, blocks: Vec<(Duration, u32)>, end: RequestEnd) {
        if matches!(end, RequestEnd::Gone(_)) {
            self.gone.send_replace(true);
        }
        self.state().outcomes.push(RequestOutcome {
            variant,
            due,
            blocks,
            ended: self.start.elapsed(),
            end,
        });
    }
}

/// A plan as a request.
pub fn wire(name: &str, plan: &PlannedRequest) -> pb::GenerateRequest {
    pb::GenerateRequest {
        mix: match name {
            BASE => Vec::new(),
            name => vec![pb::VariantWeight {
                name: name.to_owned(),
                weight: None,
            }],
        },
        prompt: plan.prompt.clone(),
        max_tokens: Some(plan.max_tokens),
        seed: Some(plan.seed),
        ..pb::GenerateRequest::default()
    }
}

/// Reads an answer to its end; `block` is told the tokens of each block as it comes.
pub async fn follow(
    channel: Connection,
    request: Request<pb::GenerateRequest>,
    mut block: impl FnMut(u32),
) -> Result<(), Status> {
    let mut events = InferenceClient::new(channel)
        .generate(request)
        .await?
        .into_inner();
    while let Some(response) = events.message().await? {
        match response.event {
            Some(Event::Block(event)) => block(event.tokens.len() as u32),
            Some(Event::Finished(_)) => return Ok(()),
            _ => {}
        }
    }
    Err(Status::unavailable(
        "the stream ended before its last event",
    ))
}

fn end(status: &Status) -> RequestEnd {
    let said = || format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::ResourceExhausted => RequestEnd::Rejected,
        // The client's own clock may be the first to say so, with the code of what it cut off.
        Code::DeadlineExceeded => RequestEnd::Late,
        Code::Cancelled if status.message().contains("Timeout") => RequestEnd::Late,
        Code::Unavailable => RequestEnd::Gone(said()),
        // A connection that breaks mid-stream has no status of its own.
        Code::Unknown | Code::Internal if std::error::Error::source(status).is_some() => {
            RequestEnd::Gone(said())
        }
        _ => RequestEnd::Failed(said()),
    }
}
