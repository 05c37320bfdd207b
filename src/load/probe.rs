//! One request at a time to a variant that nobody else asks for: what it notices of a load.

use super::drive::{follow, wire};
use super::figures::{Probe, quantiles};
use super::plan::{Load, LoadSettings};
use crate::client::Connection;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::{Request, Status};

/// Requests before the load.
const UNLOADED: usize = 30;
/// Between two requests during it.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks.
pub struct Prober {
    pub channel: Connection,
    pub name: String,
    load: Load,
}

impl Prober {
    /// `settings` say how long prompts and texts are.
    pub fn new(channel: Connection, name: String, settings: LoadSettings) -> Self {
        let load = Load::new(LoadSettings {
            seed: !settings.seed,
            ..settings
        });
        Prober {
            channel,
            name,
            load,
        }
    }

    /// Seconds to the first block of each of some requests.
    pub async fn unloaded(&mut self) -> Result<Vec<f64>, Status> {
        let mut seconds = Vec::new();
        for _ in 0..UNLOADED {
            seconds.extend(self.ask().await?);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds)
    }

    /// The same until `over`.
    pub async fn loaded(mut self, unloaded: Vec<f64>, mut over: watch::Receiver<bool>) -> Probe {
        let (mut seconds, mut failed) = (Vec::new(), 0);
        while !*over.borrow() {
            match self.ask().await {
                Ok(first) => seconds.extend(first),
                Err(_) => failed += 1,
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                _ = over.wait_for(|over| *over) => {}
            }
        }
        seconds.sort_by(f64::total_cmp);
        let (unloaded, loaded) = (quantiles(&unloaded), quantiles(&seconds));
        Probe {
            name: self.name,
            unloaded,
            loaded,
            times: (loaded.p50.zip(unloaded.p50)).map(|(loaded, unloaded)| loaded / unloaded),
            failed,
        }
    }

    async fn ask(&mut self) -> Result<Option<f64>, Status> {
        let request = Request::new(wire(&self.name, &self.load.next_request()));
        let (begun, mut first) = (Instant::now(), None);
        let block = |_| _ = first.get_or_insert_with(|| begun.elapsed().as_secs_f64());
        follow(self.channel.clone(), request, block).await?;
        Ok(first)
    }
}
