//! `choir-lab bench engine`: closed-loop sequences in one process, no wire; every scenario once a round, in turn, so that a
//! machine that changes its speed changes all of them.

use super::median;
use crate::picture::{self, Chart, Point, Series, around};
use anyhow::{Context, Result, bail};
use choir::cli::bench::open;
use choir::cli::json::JsonArgs;
use choir::cli::serve::StoreArgs;
use choir::engine::{Engine, EngineConfig, EngineHandle, Event, Generation, Request, Sampling};
use choir::model::{Denoiser, Mix};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub struct EngineBenchArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    json: JsonArgs,
    /// Also draw the ratios against the variants that share a batch into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// How long and how hard the engine is kept busy.
#[derive(Args, Debug)]
pub struct LoadArgs {
    /// Sequences running at any moment.
    #[arg(long, default_value_t = 16)]
    pub sequences: usize,
    /// Rounds; the ratios are medians over them.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds to measure each scenario in each round, after a quarter of it to warm up.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Tokens to a request.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Tokens in one step at most.
    #[arg(long, default_value_t = EngineConfig::default().step_tokens)]
    step_tokens: usize,
    /// Compute threads [default: one for each processor].
    #[arg(long)]
    threads: Option<usize>,
    /// Keep every one of them on a processor of its own.
    #[arg(long)]
    pin_threads: bool,
}

/// One way to fill the batch.
pub struct Scenario<'a> {
    pub name: String,
    /// What it is drawn with.
    pub series: String,
    /// Variants in the batch.
    touched: usize,
    /// What it is of.
    pub generation: &'a Generation,
    pub instance: Arc<dyn Denoiser>,
    /// Names whose variants take turns; the base where empty.
    pub variants: Vec<String>,
    /// Bytes of instances that the engine may make by itself.
    pub materialise_bytes: usize,
}

impl LoadArgs {
    pub fn check(&self) -> Result<()> {
        let limits = [
            ("--sequences", self.sequences as f64, 1.0, 4096.0),
            ("--rounds", self.rounds as f64, 1.0, 1e6),
            ("--seconds", self.seconds, 1e-3, 86_400.0),
            ("--tokens", self.tokens as f64, 1.0, 16_384.0),
            ("--step-tokens", self.step_tokens as f64, 1.0, 1e6),
        ];
        match limits
            .iter()
            .find(|(_, value, least, most)| !(*least..=*most).contains(value))
        {
            Some((option, value, least, most)) => {
                bail!("{option}: {value} is not within {least} and {most}")
            }
            None => Ok(()),
        }
    }

    /// Tokens per second of every scenario, and their ratio to the first: medians over rounds in which all take turns.
    pub fn measure(&self, scenarios: &[Scenario]) -> Result<Vec<(f64, f64)>> {
        let mut rates = vec![Vec::new(); scenarios.len()];
        for _ in 0..self.rounds {
            for (scenario, rates) in scenarios.iter().zip(&mut rates) {
                rates.push(rate(self, scenario)?);
            }
        }
        let ratio = |of: &[f64]| median(of.iter().zip(&rates[0]).map(|(a, b)| a / b).collect());
        Ok(rates
            .iter()
            .map(|of| (median(of.clone()), ratio(of)))
            .collect())
    }
}

/// Ratios against the variants in a batch. What touches none has no place there.
pub fn chart(scenarios: &[Scenario], measured: &[(f64, f64)]) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for (scenario, &(rate, ratio)) in scenarios.iter().zip(measured) {
        let point = Point {
            x: scenario.touched as f64,
            y: ratio,
            label: format!("{rate:.0}"),
        };
        match series
            .iter_mut()
            .find(|series| series.name == scenario.series)
        {
            _ if scenario.touched == 0 || !ratio.is_finite() => {}
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name: scenario.series.clone(),
                joined: true,
                points: vec![point],
            }),
        }
    }
    Chart {
        title: "What mixing variants in a batch costs",
        x: "variants in the batch (numbers: tokens/s)",
        y: "tokens/s, of those of one materialised variant",
        range: around(
            0.0,
            measured
                .iter()
                .map(|(_, ratio)| *ratio)
                .filter(|ratio| ratio.is_finite())
                .fold(1.0, f64::max),
        ),
        series,
    }
}

pub fn run(args: EngineBenchArgs) -> Result<()> {
    args.load.check()?;
    args.json.check()?;
    picture::check(args.plot.as_deref())?;
    let (catalog, generation, _scratch) = open(&args.store)?;
    let scenarios = scenarios(&catalog, &generation)?;
    let measured = args.load.measure(&scenarios)?;
    picture::save(args.plot.as_deref(), || chart(&scenarios, &measured))?;
    let rows: Vec<_> = scenarios
        .iter()
        .zip(measured)
        .map(|(scenario, (rate, ratio))| (&scenario.name, rate, ratio))
        .collect();
    let load = &args.load;
    let row = |(name, rate, ratio): &(&String, f64, f64)| json!({"scenario": name, "tokens_per_second": rate, "ratio": ratio});
    let report = json!({"sequences": load.sequences, "rounds": load.rounds, "scenarios": rows.iter().map(row).collect::<Vec<_>>()});
    args.json.report(&report, || {
        println!(
            "{} sequences, {} rounds of {} s; ratios to the first line, medians",
            load.sequences, load.rounds, load.seconds
        );
        for (name, rate, ratio) in &rows {
            println!("{rate:>9.0} tokens/s  {ratio:>5.2}  {name}");
        }
    })
}

/// A materialised variant first: what the others are compared with.
fn scenarios<'a>(
    catalog: &choir::catalog::Catalog,
    generation: &'a Generation,
) -> Result<Vec<Scenario<'a>>> {
    let mut banks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // One evaluation a token, as the base: a uniform variant's step is of another kind.
    let regime = generation.denoiser.facts().regime;
    for variant in catalog
        .list()
        .into_iter()
        .filter(|variant| variant.regime == regime)
    {
        // One that is kept by itself shares nothing.
        let bank = variant.banks.first().unwrap_or(&variant.name).clone();
        banks.entry(bank).or_default().push(variant.name);
    }
    let Some(members) = banks.values().max_by_key(|members| members.len()) else {
        bail!("the store holds no variant to measure");
    };
    let one = &members[0];
    let of_one = || vec![one.clone()];
    let single = Mix::single(generation.variants[one].id);
    let all: Vec<String> = banks.values().flatten().cloned().collect();
    let of_all = format!("all {} variants", all.len());
    let scenario = |name: String, variants: Vec<String>| Scenario::new(name, generation, variants);
    Ok(vec![
        scenario(format!("{one}, materialised"), vec![]).alone(&single)?,
        scenario(format!("{one}, as it is kept"), of_one()),
        scenario(format!("{one}, by measured cost"), of_one()).by_cost(),
        scenario(
            format!("{} that share their bank", members.len()),
            members.clone(),
        ),
        scenario(of_all.clone(), all.clone()),
        scenario(format!("{of_all}, by measured cost"), all).by_cost(),
        scenario("base only, beside the variants".into(), vec![]),
        scenario("base only, no variant loaded".into(), vec![]).alone(&Mix::base())?,
    ])
}

impl<'a> Scenario<'a> {
    /// Rows of these variants, read from their banks.
    pub fn new(name: String, generation: &'a Generation, variants: Vec<String>) -> Self {
        Scenario {
            name,
            series: "from their banks".to_owned(),
            touched: variants.len(),
            generation,
            instance: generation.denoiser.clone(),
            variants,
            materialise_bytes: 0,
        }
    }

    /// In an instance of this mix instead.
    pub fn alone(mut self, mix: &Mix) -> Result<Self> {
        let instance = self.instance.materialise(mix)?;
        self.instance = instance.context("this network cannot be materialised")?;
        self.series = "materialised".to_owned();
        self.touched = mix.0.len();
        Ok(self)
    }

    /// As the engine chooses, with room for every one of these variants.
    fn by_cost(mut self) -> Self {
        self.materialise_bytes = (self.variants.len() + 1) * self.instance.bytes();
        self.series = "by measured cost".to_owned();
        self
    }
}

/// Tokens per second.
fn rate(args: &LoadArgs, scenario: &Scenario) -> Result<f64> {
    let like = scenario.generation;
    let generation = Generation {
        number: like.number,
        denoiser: scenario.instance.clone(),
        tokenizer: like.tokenizer.clone(),
        defaults: Sampling::default(),
        variants: like.variants.clone(),
        memory: Vec::new(),
    };
    let text = "It was in the morning, and nobody had yet said a word.";
    let prompt = like.tokenizer.encode(text)?;
    let defaults = EngineConfig::default();
    // Room for all of them, with a block more than is wanted.
    let pages = (prompt.len() + args.tokens).div_ceil(defaults.page_tokens) + 2;
    let kv_bytes = args.sequences * pages * scenario.instance.page_bytes(defaults.page());
    let config = EngineConfig {
        max_running: args.sequences,
        queue: args.sequences,
        threads: args.threads.unwrap_or(0),
        pinned: args.pin_threads,
        materialise_bytes: scenario.materialise_bytes,
        step_tokens: args.step_tokens,
        kv_bytes: kv_bytes.max(defaults.kv_bytes),
        ..defaults
    };
    let engine = Engine::start(config, generation)?;
    let clients = tokio::runtime::Runtime::new()?;
    let clients_of = |client: usize| {
        let mix = match scenario.variants.len() {
            0 => Vec::new(),
            count => vec![(scenario.variants[client % count].clone(), 1.0)],
        };
        clients.spawn(keep_busy(
            engine.clone(),
            prompt.clone(),
            mix,
            args.tokens,
            client as u64,
        ))
    };
    let busy: Vec<_> = (0..args.sequences).map(clients_of).collect();
    std::thread::sleep(Duration::from_secs_f64(args.seconds / 4.0));
    let (start, before) = (Instant::now(), engine.status().tokens_generated);
    std::thread::sleep(Duration::from_secs_f64(args.seconds));
    let tokens = engine.status().tokens_generated - before;
    let rate = tokens as f64 / start.elapsed().as_secs_f64();
    busy.iter().for_each(|client| client.abort());
    clients.block_on(async {
        // One that is asking just now ends after it, and must not find the engine draining.
        for client in busy {
            if let Ok(error) = client.await {
                return Err(error);
            }
        }
        engine.drain().await; // or what is left would take of the next one's time
        Ok(rate)
    })
}

/// One request after the other, as the service's clients: until it is aborted, or one of them fails.
async fn keep_busy(
    engine: EngineHandle,
    prompt: Vec<u32>,
    mix: Vec<(String, f32)>,
    max_tokens: usize,
    seed: u64,
) -> anyhow::Error {
    let mut round = 0;
    loop {
        let request = Request {
            mix: mix.clone().into(),
            seed: Some(seed << 32 | round),
            ..Request::new(prompt.clone(), max_tokens, Sampling::default())
        };
        let mut events = match engine.submit(request) {
            Ok(events) => events,
            Err(error) => return error.into(),
        };
        while let Some(event) = events.recv().await {
            if let Event::Failed(error) = event {
                return error.into();
            }
        }
        round += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::tests::shows;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: EngineBenchArgs,
    }

    fn bench(options: &[&str]) -> Result<()> {
        run(Line::parse_from(["bench"].iter().chain(options)).args)
    }

    #[test]
    fn a_short_bench_is_drawn_and_written() {
        let dir = tempfile::tempdir().expect("directory");
        let file = |name: &str| dir.path().join(name).display().to_string();
        let (store, plot, json) = (file("store"), file("plot.svg"), file("report.json"));
        let load = "--rounds 1 --seconds 0.1 --sequences 2 --tokens 8 --threads 1";
        let mut options: Vec<&str> = load.split(' ').collect();
        options.extend(["--data-dir", &store, "--plot", &plot, "--json", &json]);
        bench(&options).expect("bench");
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(json).expect("file")).expect("json");
        let scenarios = report["scenarios"].as_array().expect("scenarios");
        assert_eq!(scenarios.len(), 8);
        // All but the base's; a machine with no time to make a token in has no ratio either.
        let drawn = scenarios[..6]
            .iter()
            .filter(|scenario| !scenario["ratio"].is_null());
        let svg = std::fs::read_to_string(plot).expect("file");
        shows(&svg, drawn.count());
        assert!(svg.contains("variants in the batch"), "{svg}");
    }

    #[test]
    fn impossible_loads_are_refused() {
        for (option, value) in [
            ("--sequences", "0"),
            ("--sequences", "1000000"),
            ("--rounds", "0"),
            ("--seconds", "0"),
            ("--seconds", "NaN"),
            ("--seconds", "inf"),
            ("--tokens", "0"),
            ("--plot", "/no/such/folder/plot.svg"),
            ("--json", "/no/such/folder/report.json"),
        ] {
            let refused = bench(&[option, value]).expect_err(option).to_string();
            assert!(refused.contains(option), "{option} {value}: {refused}");
        }
    }
}
