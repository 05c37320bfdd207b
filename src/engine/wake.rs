//! How the model thread is told, without a lock that it holds, that there is something to look at.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Called by clients, waited for by the model thread.
#[derive(Debug, Default)]
pub struct Wake {
    called: Mutex<bool>,
    call: Condvar,
    /// Streams of events that somebody still reads, or could.
    pub streams: AtomicUsize,
}

impl Wake {
    fn called(&self) -> MutexGuard<'_, bool> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn call(&self) {
        *self.called() = true;
        self.call.notify_one();
    }

    /// Waits for a call since the last wait, until some time at most.
    pub fn wait(&self, until: Option<Instant>) {
        let (called, quiet) = (self.called(), |called: &mut bool| !*called);
        let mut called = match until {
            None => self
                .call
                .wait_while(called, quiet)
                .unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let rest = until.saturating_duration_since(Instant::now());
                let rest = rest.max(Duration::from_millis(1));
                let woken = self.call.wait_timeout_while(called, rest, quiet);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        *called = false;
    }

    pub fn stream_opened(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub fn stream_closed(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
        self.call();
    }
}
