//! `choir bench serve`: many clients at once against a server, over the wire.

#[cfg(test)]
mod tests;

use super::open;
use crate::cli::client::{ServerArgs, refused};
use crate::cli::json::JsonArgs;
use crate::cli::serve::{EngineArgs, StoreArgs};
use crate::client::Connection;
use crate::engine::{BASE, Engine};
use crate::load::{
    Arrivals, Driver, Load, LoadReport, LoadSettings, NoisyVariant, Overload, Popularity, Prober,
    Span, Until,
};
use crate::pb;
use crate::pb::admin_client::AdminClient;
use crate::server::{self, Doors};
use anyhow::{Result, bail};
use clap::Args;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

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
    /// Measure first, with --clients, how many requests a second the server finishes; then send so many times as many, each with a
    /// deadline: --deadline-ms, or four times what half of them took.
    #[arg(long, value_name = "FACTOR", conflicts_with_all = ["rate", "requests"])]
    overload: Option<f64>,
    /// One variant, as NAME=10, that is asked for so many times as much as the others: in a closed load each variant has --clients
    /// of its own, and this one so many times as many.
    #[arg(long, value_name = "NAME=TIMES")]
    noisy: Option<NoisyVariant>,
    /// A variant that nobody else asks for: measure the time to its first block, one request at a time, without the load and with it.
    #[arg(long, value_name = "NAME")]
    probe: Option<String>,
    /// Variants to ask for, the most popular first; "base" is the base [default: all that are served].
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
    /// How often each is asked for: uniform, zipf, or zipf-EXPONENT.
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
    #[command(flatten)]
    json: JsonArgs,
}

pub fn run(args: ServeBenchArgs) -> Result<()> {
    args.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let own = match args.server {
        Some(_) => None,
        None => Some(Own::start(&args, &runtime)?),
    };
    let address = own
        .as_ref()
        .map(|own| own.address.clone())
        .or(args.server.clone());
    let report = runtime.block_on(bench(&args, address.unwrap_or_default()))?;
    if let Some(own) = own {
        own.end(&runtime)?;
    }
    tell(&args, report)
}

/// Shows the figures, and says where they are not all.
fn tell(args: &ServeBenchArgs, report: LoadReport) -> Result<()> {
    args.json.report(&report, || println!("{report}"))?;
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
        if let Some(factor) = self
            .overload
            .filter(|factor| !(0.1..=1000.0).contains(factor))
        {
            bail!("--overload: {factor} is not within 0.1 and 1000");
        }
        if self.requests == Some(0) || self.deadline_ms == Some(0) {
            bail!("--requests and --deadline-ms must be above 0");
        }
        self.json.check()
    }

    /// `noisy` is an index among `variants`, and how many times as much.
    fn arrivals(&self, variants: usize, noisy: Option<(usize, f64)>) -> Arrivals {
        match (self.rate, noisy) {
            (Some(rate), _) => Arrivals::Open { rate },
            (None, None) => Arrivals::Closed {
                clients: self.clients,
            },
            (None, Some((noisy, times))) => {
                let mut clients = vec![self.clients; variants];
                clients[noisy] = (self.clients as f64 * times) as usize;
                Arrivals::ClosedByVariant { clients }
            }
        }
    }
}

/// A server for this one run.
struct Own {
    address: String,
    shutdown: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), server::Error>>,
    _scratch: Option<crate::cli::scratch::ScratchStore>,
}

impl Own {
    fn start(args: &ServeBenchArgs, runtime: &tokio::runtime::Runtime) -> Result<Own> {
        let (catalog, generation, scratch) = open(&args.store)?;
        let engine = Engine::start(args.engine.config(), generation)?;
        catalog.attach(engine.clone());
        let listener = runtime.block_on(server::bind(([127, 0, 0, 1], 0).into(), false))?;
        let address = format!("http://{}", listener.address());
        let (shutdown, ending) = oneshot::channel();
        let until = async {
            let _ = ending.await; // also where the sender is dropped
        };
        let served = server::serve(
            Doors::only(listener),
            Arc::new(catalog),
            engine,
            server::ServerSettings::default(),
            until,
        );
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

async fn bench(args: &ServeBenchArgs, address: String) -> Result<LoadReport> {
    let channel = ServerArgs::at(address).connect().await?;
    let names = names(args, channel.clone()).await?;
    let noisy = match &args.noisy {
        None => None,
        Some(noisy) => match names.iter().position(|name| *name == noisy.name) {
            Some(index) => Some((index, noisy.times)),
            None => bail!(
                "--noisy: {:?} is not among the variants asked for",
                noisy.name
            ),
        },
    };
    let settings = LoadSettings {
        variants: names.len(),
        popularity: args.popularity,
        noisy,
        prompt_words: args.prompt_words,
        max_tokens: args.tokens,
        seed: args.seed,
    };
    let mut prober = args
        .probe
        .clone()
        .map(|name| Prober::new(channel.clone(), name, settings.clone()));
    let unloaded = match &mut prober {
        Some(prober) => prober.unloaded().await.map_err(refused)?,
        None => Vec::new(),
    };
    let warm_up = Duration::from_secs_f64(args.warm_up);
    let until = Until {
        time: warm_up + Duration::from_secs_f64(args.seconds),
        requests: args.requests.unwrap_or(u64::MAX),
    };
    let run = async |arrivals: Arrivals, deadline: Option<Duration>| {
        let driver = Driver {
            channel: channel.clone(),
            names: names.clone(),
            deadline,
        };
        let load = Load::new(settings.clone());
        LoadReport::new(&driver.run(load, arrivals, until).await, &names, warm_up)
    };
    let (mut arrivals, mut deadline) = (
        args.arrivals(names.len(), noisy),
        args.deadline_ms.map(Duration::from_millis),
    );
    let mut overload = None;
    if let Some(factor) = args.overload {
        let closed = run(arrivals, None).await;
        let (capacity, half) = (
            closed.overall.finished as f64 / closed.seconds,
            closed.overall.end_to_end.p50,
        );
        let Some(half) = half.filter(|_| closed.server_gone.is_none()) else {
            return Ok(closed);
        };
        let given = deadline.unwrap_or(Duration::from_secs_f64(4.0 * half));
        deadline = Some(given);
        let rate = factor * capacity;
        arrivals = Arrivals::Open { rate };
        let deadline_ms = given.as_millis() as u64;
        overload = Some(Overload {
            capacity,
            rate,
            deadline_ms,
        });
    }
    let (over, until_over) = watch::channel(false);
    let probing = prober.map(|prober| tokio::spawn(prober.loaded(unloaded, until_over)));
    let mut report = run(arrivals, deadline).await;
    over.send_replace(true);
    if let Some(probing) = probing {
        report.probe = Some(probing.await?);
    }
    report.overload = overload;
    let status = AdminClient::new(channel)
        .get_status(pb::GetStatusRequest {})
        .await;
    let parts = status.map_or(Vec::new(), |status| status.into_inner().memory);
    report.memory = parts
        .into_iter()
        .map(|part| (part.part, part.bytes))
        .collect();
    Ok(report)
}

/// Those that were asked for, or all that the server has but the one that is probed.
async fn names(args: &ServeBenchArgs, channel: Connection) -> Result<Vec<String>> {
    let listed = AdminClient::new(channel)
        .list_variants(pb::ListVariantsRequest {})
        .await;
    let served: Vec<String> = (listed.map_err(refused)?.into_inner().variants.into_iter())
        .map(|variant| variant.name)
        .collect();
    let unknown = |name: &&String| *name != BASE && !served.contains(name);
    if let Some(unknown) = args.variants.iter().find(unknown) {
        bail!("--variants: the server has no variant {unknown:?}");
    }
    if let Some(probe) = &args.probe {
        if unknown(&probe) {
            bail!("--probe: the server has no variant {probe:?}");
        }
        if args.variants.contains(probe) {
            bail!("--probe: {probe:?} is among --variants, so that others ask for it");
        }
    }
    let all = || {
        served
            .iter()
            .filter(|name| args.probe.as_ref() != Some(name))
            .cloned()
            .collect::<Vec<_>>()
    };
    Ok(match args.variants.is_empty() {
        false => args.variants.clone(),
        true if all().is_empty() => vec![BASE.to_owned()],
        true => all(),
    })
}
