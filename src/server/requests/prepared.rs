//! A request that is being prepared.

use super::Refusal;
use crate::engine::{self, Preparation, Resolved};
use crate::model::tokenizer::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// It has one of few places to be prepared in, and leases the generation that it will run on.
pub struct PreparedRequest {
    place: Arc<Preparation>,
    pub target: Resolved,
    given_up: GivenUp,
}

/// Says to those who work for a request, by its end, that nobody waits for them any more.
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl PreparedRequest {
    pub fn new(place: Preparation, target: Resolved) -> Self {
        PreparedRequest {
            place: Arc::new(place),
            target,
            given_up: GivenUp(Arc::default()),
        }
    }

    /// The token that begins every text, where the tokenizer has one.
    pub fn beginning(&self) -> Vec<u32> {
        self.target.tokenizer().begin().into_iter().collect()
    }

    /// Ends an encoding at so many tokens, or with the call.
    pub fn bound(&self, tokens: usize) -> Bound {
        Bound {
            tokens,
            given_up: self.given_up.0.clone(),
        }
    }

    /// Does what takes long beside the runtime's threads. The place is taken until it is done, also where the call does not
    /// wait for it any more.
    pub async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let place = self.place.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        done.await.map_err(|error| {
            tracing::error!("a text could not be tokenized: {error}");
            engine::Error::Stopped.into()
        })
    }
}
