//! The standard health service: one name for each variant being served, and "" for the server itself.

use crate::engine::EngineHandle;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Mutex;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Keeps the health service's names those of the generation in force.
#[derive(Clone)]
pub struct Health {
    engine: EngineHandle,
    state: Arc<Mutex<State>>,
}

struct State {
    reporter: HealthReporter,
    names: BTreeSet<String>,
    draining: bool,
}

impl Health {
    pub fn new(engine: EngineHandle, reporter: HealthReporter) -> Self {
        let state = State {
            reporter,
            names: BTreeSet::new(),
            draining: false,
        };
        Health {
            engine,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Follows the generation in force. Whoever publishes calls this afterwards; the last call sees the last generation.
    pub async fn follow(&self) {
        let mut state = self.state.lock().await;
        if state.draining {
            return;
        }
        let names: BTreeSet<String> = self.engine.generation().variants.keys().cloned().collect();
        let before = std::mem::replace(&mut state.names, names.clone());
        for gone in before.difference(&names) {
            state.reporter.clear_service_status(gone).await;
        }
        for come in names.difference(&before) {
            state
                .reporter
                .set_service_status(come, ServingStatus::Serving)
                .await;
        }
    }

    /// Everything stops serving, for good.
    pub async fn drain(&self) {
        let mut state = self.state.lock().await;
        state.draining = true;
        let State {
            reporter, names, ..
        } = &*state;
        for name in names.iter().map(String::as_str).chain([""]) {
            reporter
                .set_service_status(name, ServingStatus::NotServing)
                .await;
        }
    }
}
