//! A request's events, from the model thread to whoever reads them.
//!
//! The channel is small. A sequence whose channel has no room for what a step may send takes part in no step until its reader
//! has caught up: it is paused, and nobody else is. So no event is lost, no reader holds the engine up, and what a slow one
//! costs is bounded.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{Semaphore, mpsc};

use super::request::Event;
use super::wake::Wake;

/// What has to be free before a step: its `Step`, its `Block` and the last event; and a place for a failure after it.
pub const ROOM: usize = 4;

/// A channel for one request's events, `unread` of them at most.
pub fn channel(unread: usize) -> (EventSender, mpsc::Receiver<Event>) {
    let (sender, receiver) = mpsc::channel(unread.min(Semaphore::MAX_PERMITS));
    (EventSender(sender), receiver)
}

pub struct EventSender(mpsc::Sender<Event>);

impl EventSender {
    /// Whether a step may send what it has to say.
    pub fn has_room(&self) -> bool {
        self.0.capacity() >= ROOM
    }

    /// There was room before the step, so this fails only where the client has left.
    pub fn send(&self, event: Event) {
        let _ = self.0.try_send(event);
    }

    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// A request's events. Dropping it cancels the request; not reading it pauses the request.
pub struct EventStream {
    request_id: u64,
    events: mpsc::Receiver<Event>,
    /// To be told when a paused sequence may go on.
    wake: Arc<Wake>,
}

impl EventStream {
    pub(super) fn new(request_id: u64, events: mpsc::Receiver<Event>, wake: Arc<Wake>) -> Self {
        wake.stream_opened();
        EventStream {
            request_id,
            events,
            wake,
        }
    }

    pub fn request_id(&self) -> u64 {
        self.request_id
    }

    /// The next event; `None` after the last one.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.taken();
        event
    }

    /// As [`recv`](Self::recv), for threads outside a runtime.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        let event = self.events.blocking_recv();
        self.taken();
        event
    }

    /// Wakes the model thread where this event's place is the one that was missing.
    fn taken(&self) {
        if self.events.capacity() == ROOM {
            self.wake.call();
        }
    }
}

impl tokio_stream::Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = self.events.poll_recv(context);
        if event.is_ready() {
            self.taken();
        }
        event
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.events.close();
        self.wake.stream_closed();
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream")
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}
