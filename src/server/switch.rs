//! Routes that are there from the moment a door is open: at first those of a server that is loading.

use axum::Router;
use axum::extract::Request;
use std::sync::{Arc, OnceLock};
use tonic::codegen::Service;

/// Two sets of routes, the second of which comes later. Clones share one state.
#[derive(Clone)]
pub struct Switch {
    loading: Router,
    ready: Arc<OnceLock<Router>>,
}

impl Switch {
    pub fn new(loading: Router) -> Self {
        Switch {
            loading,
            ready: Arc::default(),
        }
    }

    /// Requests meet these from now on.
    pub fn set(&self, ready: Router) {
        let _ = self.ready.set(ready); // the first stays
    }

    /// Whichever are there when a request comes.
    pub fn router(&self) -> Router {
        let switch = self.clone();
        Router::new().fallback(move |request: Request| {
            let mut router = switch.ready.get().unwrap_or(&switch.loading).clone();
            async move { router.call(request).await }
        })
    }
}
