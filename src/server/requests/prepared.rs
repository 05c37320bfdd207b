//! A request that is being prepared.

use super::Refusal;
use crate::engine::{self, Preparation, Resolved};
use std::sync::Arc;

/// It has one of few places to be prepared in, and leases the generation that it will run on.
pub struct PreparedRequest {
    pub place: Arc<Preparation>,
    pub target: Resolved,
}

impl PreparedRequest {
    /// The token that begins every text, where the tokenizer has one.
    pub fn beginning(&self) -> Vec<u32> {
        self.target.lease.tokenizer.begin().into_iter().collect()
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
