//! A request's events, with a last one always.

use crate::engine::{self, Event, EventStream, Summary};
use crate::server::access::Charge;
use crate::server::metrics::RequestWatch;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio_stream::{Stream, StreamExt};

/// What the engine makes for one request: events, the last one `Finished` or `Failed`. Dropping it, as servers do when the
/// client leaves, cancels the request.
#[derive(Debug)]
pub struct Answer {
    events: EventStream,
    /// The variants that answer, and their weights.
    mix: Vec<(String, f32)>,
    watch: RequestWatch,
    charge: Option<Charge>,
    /// The last event was seen.
    ended: bool,
}

/// An answer read to its end.
#[derive(Debug)]
pub struct Whole {
    pub text: String,
    pub generation: u64,
    pub seed: u64,
    pub summary: Summary,
}

impl Answer {
    pub fn new(
        events: EventStream,
        mix: Vec<(String, f32)>,
        watch: RequestWatch,
        charge: Option<Charge>,
    ) -> Self {
        Answer {
            events,
            mix,
            watch,
            charge,
            ended: false,
        }
    }

    pub fn mix(&self) -> &[(String, f32)] {
        &self.mix
    }

    /// The engine's number for the request.
    pub fn request_id(&self) -> u64 {
        self.events.request_id()
    }

    /// Reads it to its end.
    ///
    /// # Errors
    /// Why it failed; what was made until then is lost.
    pub async fn whole(mut self) -> Result<Whole, engine::Error> {
        let (mut text, mut ids) = (String::new(), (0, 0));
        while let Some(event) = self.next().await {
            match event {
                Event::Started {
                    generation, seed, ..
                } => ids = (generation, seed),
                Event::Step { .. } => {}
                Event::Block { text: more, .. } => text.push_str(&more),
                Event::Finished(summary) => {
                    let (generation, seed) = ids;
                    return Ok(Whole {
                        text,
                        generation,
                        seed,
                        summary,
                    });
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Err(engine::Error::Stopped)
    }
}

impl Stream for Answer {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(Pin::new(&mut self.events).poll_next(context))
            // A stream without a last event: the engine's thread is gone.
            .unwrap_or(Event::Failed(engine::Error::Stopped));
        self.watch.see(&event);
        if let (Some(charge), Event::Block { tokens, .. }) = (&mut self.charge, &event) {
            charge.made(tokens.len());
        }
        self.ended = matches!(event, Event::Finished(_) | Event::Failed(_));
        Poll::Ready(Some(event))
    }
}
