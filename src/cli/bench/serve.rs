//! `choir bench serve`: many clients at once against a server, over the wire.

mod drive;
mod figures;
mod load;
#[cfg(test)]
mod tests;

use super::open;
use crate::cli::client::{ServerArgs, refused};
use crate::cli::eval::picture::{Chart, Scale, svg};
use crate::cli::eval::plot::{Point, Series};
use crate::cli::serve::{EngineArgs, StoreArgs};
use crate::engine::Engine;
use crate::pb;
use crate::pb::admin_client::AdminClient;
use crate::server::{self, Limits};
use anyhow::{Context, Result, bail};
use clap::Args;
use drive::{Arrivals, Driver, Until};
use figures::{Report, quantile};
use indicatif::{ProgressBar, ProgressStyle};
use load::{Load, Popularity, Settings, Span};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tonic::transport::Channel;

/// What the base is called among variants.
const BASE: &str = "base";

#[derive(Args, Debug)]
pub struct ServeBenchArgs {
    /// The server to load, such as http://127.0.0.1:50051 [default: one of its own, with the options below].
    #[arg(long)]
    server: Option<String>,
    /// Clients that ask again as soon as they have their answer.
    #[arg(long, default_value_t = 16, conflicts_with = "rate")]
    clients: usize,
    /// Requests a second instead, as a Poisson process that does not wait for answers.
    #[arg(long)]
    rate: Option<f64>,
    /// Variants to ask for, the most popular first; "base" is the base [default: all that are served].
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
    /// How often each is asked for: uniform, zipf, zipf-EXPONENT, or single (only the first).
    #[arg(long, default_value = "uniform")]
    popularity: Popularity,
    /// Words of a prompt, drawn evenly.
    #[arg(long, default_value = "4..16")]
    prompt_words: Span,
    /// Tokens to make, drawn evenly.
    #[arg(long, default_value = "32..96")]
    tokens: Span,
    /// Seconds at the beginning that do not count.
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
    /// Seconds to ask for after them.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Stop asking after so many requests.
    #[arg(long)]
    requests: Option<u64>,
    /// Give every request so many milliseconds.
    #[arg(long)]
    deadline_ms: Option<u64>,
    /// The same seed makes the same requests.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    /// Also draw how many requests had their first block, and their end, in which time, into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

pub fn run(args: ServeBenchArgs) -> Result<()> {
    args.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let own = match args.server {
        Some(_) => None,
        None => Some(Own::start(&args, &runtime)?),
    };
    let address = own.as_ref().map(|own| own.address.clone()).or(args.server.clone());
    let report = runtime.block_on(bench(&args, address.unwrap_or_default()))?;
    if let Some(own) = own {
        own.end(&runtime)?;
    }
    if let Some(file) = &args.plot {
        std::fs::write(file, svg(&chart(&report))).with_context(|| format!("writing {}", file.display()))?;
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => println!("{report}"),
    }
    match report.server_gone {
        Some(said) => bail!("the server went away ({said}): the figures are of what came before"),
        None => Ok(()),
    }
}

impl ServeBenchArgs {
    fn check(&self) -> Result<()> {
        let seconds = [
            ("--warm-up", self.warm_up, 0.0),
            ("--seconds", self.seconds, f64::MIN_POSITIVE),
        ];
        if let Some((option, value, _)) = seconds
            .iter()
            .find(|(_, value, least)| !(*least..=86_400.0).contains(value))
        {
            bail!("{option}: {value} is not above 0 and at most a day (86400)");
        }
        if let Some(rate) = self.rate.filter(|rate| !(1e-3..=1e5).contains(rate)) {
            bail!("--rate: {rate} is not within 0.001 and 100000");
        }
        if !(1..=10_000).contains(&self.clients) {
            bail!("--clients: {} is not within 1 and 10000", self.clients);
        }
        if self.requests == Some(0) || self.deadline_ms == Some(0) {
            bail!("--requests and --deadline-ms must be above 0");
        }
        Ok(())
    }

    fn arrivals(&self) -> Arrivals {
        match self.rate {
            Some(rate) => Arrivals::Open { rate },
            None => Arrivals::Closed { clients: self.clients },
        }
    }
}

/// A server for this one run.
struct Own {
    address: String,
    shutdown: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), server::Error>>,
    _scratch: Option<crate::cli::scratch::Scratch>,
}

impl Own {
    fn start(args: &ServeBenchArgs, runtime: &tokio::runtime::Runtime) -> Result<Own> {
        let (catalog, generation, scratch) = open(&args.store)?;
        let engine = Engine::start(args.engine.config(), generation)?;
        catalog.attach(engine.clone());
        let listener = runtime.block_on(server::bind(([127, 0, 0, 1], 0).into(), false))?;
        let address = format!("http://{}", listener.local_addr()?);
        let (shutdown, ending) = oneshot::channel();
        let until = async {
            let _ = ending.await; // also where the sender is dropped
        };
        let served = server::serve(listener, Arc::new(catalog), engine, Limits::default(), until);
        Ok(Own {
            address,
            shutdown,
            served: runtime.spawn(served),
            _scratch: scratch,
        })
    }

    fn end(self, runtime: &tokio::runtime::Runtime) -> Result<()> {
        let _ = self.shutdown.send(()); // it may have ended by itself
        Ok(runtime.block_on(self.served)??)
    }
}

async fn bench(args: &ServeBenchArgs, address: String) -> Result<Report> {
    let channel = ServerArgs::at(address).connect().await?;
    let names = names(args, channel.clone()).await?;
    let settings = Settings {
        variants: names.len(),
        popularity: args.popularity,
        prompt_words: args.prompt_words,
        max_tokens: args.tokens,
        seed: args.seed,
    };
    let warm_up = Duration::from_secs_f64(args.warm_up);
    let until = Until {
        time: warm_up + Duration::from_secs_f64(args.seconds),
        requests: args.requests.unwrap_or(u64::MAX),
    };
    let (ended, watching) = watch::channel(0);
    let driver = Driver {
        channel: channel.clone(),
        names: names.clone(),
        deadline: args.deadline_ms.map(Duration::from_millis),
        ended,
    };
    let shown = tokio::spawn(show(watching));
    let driven = driver.run(Load::new(settings), args.arrivals(), until).await;
    shown.await?;
    let status = AdminClient::new(channel).get_status(pb::GetStatusRequest {}).await;
    let parts = status.map_or(Vec::new(), |status| status.into_inner().memory);
    let memory = parts.into_iter().map(|part| (part.part, part.bytes)).collect();
    Ok(Report::new(&driven, &names, warm_up, memory))
}

/// Those that were asked for, or all that the server has.
async fn names(args: &ServeBenchArgs, channel: Channel) -> Result<Vec<String>> {
    let listed = AdminClient::new(channel)
        .list_variants(pb::ListVariantsRequest {})
        .await;
    let served: Vec<String> = (listed.map_err(refused)?.into_inner().variants.into_iter())
        .map(|variant| variant.name)
        .collect();
    if let Some(unknown) = args
        .variants
        .iter()
        .find(|name| *name != BASE && !served.contains(name))
    {
        bail!("--variants: the server has no variant {unknown:?}");
    }
    Ok(match (args.variants.is_empty(), served.is_empty()) {
        (false, _) => args.variants.clone(),
        (true, false) => served,
        (true, true) => vec![BASE.to_owned()],
    })
}

/// Requests that have ended, on stderr in a terminal, until the load is over.
async fn show(mut ended: watch::Receiver<u64>) {
    let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    if let (Some(bar), Ok(style)) = (&bar, ProgressStyle::with_template("{elapsed} {pos} requests {per_sec}")) {
        bar.set_style(style);
    }
    while ended.changed().await.is_ok() {
        let count = *ended.borrow_and_update();
        bar.iter().for_each(|bar| bar.set_position(count));
    }
    bar.iter().for_each(ProgressBar::finish_and_clear);
}

/// The share of finished requests against the time they took.
fn chart(report: &Report) -> Chart {
    let series = ["first block", "whole request"]
        .into_iter()
        .zip(&report.samples)
        .map(|(name, sample)| Series {
            name: name.to_owned(),
            joined: true,
            points: (1..=20)
                .filter_map(|part| {
                    let share = f64::from(part) / 20.0;
                    let x = 1e3 * quantile(sample, share)?;
                    Some(Point {
                        x: x.max(1e-3),
                        y: share,
                        label: String::new(),
                    })
                })
                .collect(),
        });
    Chart {
        title: "How long requests took",
        x: "milliseconds from when a request was due",
        y: "share of finished requests",
        notes: &[],
        scale: Scale::around(0.0, 1.0),
        series: series.collect(),
    }
}
