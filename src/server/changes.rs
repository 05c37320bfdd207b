//! What operators change, whichever protocol they ask by: done off the runtime's threads, counted, logged with who asked, and
//! followed by the names that health and metrics know.

use super::access::Caller;
use super::health::Health;
use super::metrics::Metrics;
use super::paths::Paths;
use super::status::{BadField, of_change};
use crate::catalog::{AddRequest, Added, AdditionProgress, Catalog, RemoveRequest};
use crate::engine::EngineHandle;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Status;

/// How long a disk may take to say whether a file is there.
const DISK: Duration = Duration::from_secs(10);

/// The catalog, for those who may change it.
#[derive(Clone)]
pub struct Changes {
    pub catalog: Arc<Catalog>,
    engine: EngineHandle,
    health: Health,
    metrics: Arc<Metrics>,
    paths: Arc<Paths>,
}

impl Changes {
    pub fn new(
        catalog: Arc<Catalog>,
        engine: EngineHandle,
        health: Health,
        metrics: Arc<Metrics>,
        paths: Paths,
    ) -> Self {
        Changes {
            catalog,
            engine,
            health,
            metrics,
            paths: Arc::new(paths),
        }
    }

    /// Health and metrics know the names that are served now.
    pub fn follow(&self) {
        self.health.follow(&self.engine);
        let generation = self.engine.generation();
        self.metrics.follow(generation.variants.keys().cloned());
    }

    /// A file of the server's own disk, named in `field`, that may be read. Looked for off the runtime's threads: a disk may not answer.
    pub async fn file(&self, field: &'static str, path: String) -> Result<PathBuf, Status> {
        let paths = self.paths.clone();
        let look = move || paths.resolve(Path::new(&path));
        let found = tokio::time::timeout(DISK, tokio::task::spawn_blocking(look)).await;
        let found = found.map_err(|_| Status::deadline_exceeded("the disk does not answer"))?;
        let found = found.map_err(|error| Status::internal(error.to_string()))?;
        found.map_err(|error| BadField::new(field, error.to_string()).into())
    }

    /// Adds or replaces a variant, or says what that would come to; `field` is where its checkpoint was given. It goes on where the client leaves.
    pub async fn add(
        &self,
        caller: &Caller,
        field: &'static str,
        request: AddRequest,
        progress: impl FnMut(AdditionProgress) + Send + 'static,
    ) -> Result<Added, Status> {
        let name = request.name.clone();
        let action = match (request.dry_run, request.replaces) {
            (true, _) => "dry-run",
            (false, Some(_)) => "replace",
            (false, None) => "add",
        };
        let act = move |catalog: &Catalog| catalog.add(request, progress);
        self.change(action, caller, &name, field, act).await
    }

    /// Removes a variant and returns the generation without it. It goes on where the client leaves.
    pub async fn remove(
        &self,
        caller: &Caller,
        field: &'static str,
        name: String,
        request: RemoveRequest,
    ) -> Result<u64, Status> {
        let variant = name.clone();
        let act = move |catalog: &Catalog| catalog.remove(&name, request);
        self.change("remove", caller, &variant, field, act).await
    }

    async fn change<T: Send + 'static>(
        &self,
        action: &'static str,
        caller: &Caller,
        variant: &str,
        field: &'static str,
        act: impl FnOnce(&Catalog) -> Result<T, crate::catalog::Error> + Send + 'static,
    ) -> Result<T, Status> {
        let (changes, begun) = (self.clone(), Instant::now());
        let (key, variant) = (caller.name().to_owned(), variant.to_owned());
        // A task of its own: the names follow the store even where the client leaves.
        let task = tokio::spawn(async move {
            let catalog = changes.catalog.clone();
            let done = tokio::task::spawn_blocking(move || act(&catalog)).await;
            let done = match done {
                Ok(done) => done.map_err(|error| of_change(error, field)),
                Err(error) => {
                    tracing::error!("an operator's action failed: {error}");
                    let message = "the action failed; the server's log has the details";
                    Err(Status::internal(message))
                }
            };
            changes.follow();
            let took = begun.elapsed();
            changes.metrics.count_change(action, done.is_ok(), took);
            match &done {
                Ok(_) => tracing::info!(action, variant, key, ?took, "done"),
                Err(status) => {
                    tracing::warn!(action, variant, key, "refused: {}", status.message());
                }
            }
            done
        });
        task.await
            .map_err(|error| Status::internal(error.to_string()))?
    }
}
