//! `choir bench engine`: closed-loop sequences in one process, no wire; every scenario once a round, in turn, so that a
//! machine that changes its speed changes all of them.

use super::{median, open};
use crate::cli::serve::StoreArgs;
use crate::engine::{Engine, EngineConfig, EngineHandle, Generation, Priority, Request, Sampling};
use crate::model::{Denoiser, Mix, VariantId};
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub struct EngineBenchArgs {
    /// Sequences running at any moment.
    #[arg(long, default_value_t = 16)]
    sequences: usize,
    /// Rounds; the ratios are medians over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds to measure each scenario in each round, after a quarter of it to warm up.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Tokens to a request.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Compute threads [default: one for each processor].
    #[arg(long)]
    threads: Option<usize>,
    #[command(flatten)]
    store: StoreArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// One way to fill the batch.
struct Scenario {
    name: String,
    instance: Arc<dyn Denoiser>,
    /// Names whose variants take turns; the base where empty.
    variants: Vec<String>,
}

pub fn run(args: EngineBenchArgs) -> Result<()> {
    if args.sequences == 0 || args.rounds == 0 || args.seconds.is_nan() || args.seconds <= 0.0 {
        bail!("--sequences, --rounds and --seconds must be above 0");
    }
    let (catalog, generation, _scratch) = open(&args.store)?;
    let scenarios = scenarios(&catalog, &generation)?;
    let mut rates = vec![Vec::new(); scenarios.len()];
    for _ in 0..args.rounds {
        for (scenario, rates) in scenarios.iter().zip(&mut rates) {
            rates.push(measure(&args, scenario, &generation)?);
        }
    }
    let ratio_to = |of: &[f64], to: &[f64]| median(of.iter().zip(to).map(|(a, b)| a / b).collect());
    let rows: Vec<_> = scenarios
        .iter()
        .zip(&rates)
        .map(|(scenario, of)| (&scenario.name, median(of.clone()), ratio_to(of, &rates[0])))
        .collect();
    if args.json {
        let row = |(name, rate, ratio): &(&String, f64, f64)| json!({"scenario": name, "tokens_per_second": rate, "ratio": ratio});
        println!(
            "{}",
            json!({"sequences": args.sequences, "rounds": args.rounds, "scenarios": rows.iter().map(row).collect::<Vec<_>>()})
        );
        return Ok(());
    }
    println!(
        "{} sequences, {} rounds of {} s; ratios to the first line, medians",
        args.sequences, args.rounds, args.seconds
    );
    for (name, rate, ratio) in rows {
        println!("{rate:>9.0} tokens/s  {ratio:>5.2}  {name}");
    }
    Ok(())
}

/// A materialised variant first: what the others are compared with.
fn scenarios(catalog: &crate::catalog::Catalog, generation: &Generation) -> Result<Vec<Scenario>> {
    let mut banks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // One evaluation a token, as the base: a uniform variant's step is of another kind.
    let regime = generation.denoiser.config().regime();
    for variant in catalog.list().into_iter().filter(|variant| variant.regime == regime) {
        if let Some(bank) = variant.banks.first() {
            banks.entry(bank.clone()).or_default().push(variant.name);
        }
    }
    let Some((bank, members)) = banks.iter().max_by_key(|(_, members)| members.len()) else {
        bail!("the store holds no variant to measure");
    };
    let one = &members[0];
    let id = generation.variants[one].id;
    let shared = || generation.denoiser.clone();
    let all: Vec<String> = banks.values().flatten().cloned().collect();
    let plain = |instance: Option<Arc<dyn Denoiser>>| {
        instance.ok_or_else(|| anyhow::anyhow!("this network cannot be materialised"))
    };
    let mut scenarios = vec![
        Scenario {
            name: format!("{one}, materialised"),
            instance: plain(generation.denoiser.materialise(&Mix::single(id))?)?,
            variants: vec![],
        },
        Scenario {
            name: format!("{one}, from its bank"),
            instance: shared(),
            variants: vec![one.clone()],
        },
        Scenario {
            name: format!("{} variants of {bank}", members.len()),
            instance: shared(),
            variants: members.clone(),
        },
        Scenario {
            name: format!("{} variants of {} banks", all.len(), banks.len()),
            instance: shared(),
            variants: all,
        },
        Scenario {
            name: "base only, beside the banks".into(),
            instance: shared(),
            variants: vec![],
        },
    ];
    let alone = generation.denoiser.materialise(&Mix(Vec::<(VariantId, f32)>::new()))?;
    scenarios.push(Scenario {
        name: "base only, no bank loaded".into(),
        instance: plain(alone)?,
        variants: vec![],
    });
    Ok(scenarios)
}

/// Tokens per second.
fn measure(args: &EngineBenchArgs, scenario: &Scenario, like: &Generation) -> Result<f64> {
    let generation = Generation {
        number: like.number,
        denoiser: scenario.instance.clone(),
        tokenizer: like.tokenizer.clone(),
        defaults: Sampling::default(),
        variants: like.variants.clone(),
        memory: Vec::new(),
    };
    let config = EngineConfig {
        max_running: args.sequences,
        queue: args.sequences,
        threads: args.threads.unwrap_or(0),
        ..EngineConfig::default()
    };
    let engine = Engine::start(config, generation)?;
    let prompt: Vec<u32> = like
        .tokenizer
        .encode("It was in the morning, and nobody had yet said a word.");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.sequences)
            .map(|worker| {
                let (engine, prompt, over) = (&engine, &prompt, &over);
                let mix = match scenario.variants.len() {
                    0 => Vec::new(),
                    count => vec![(scenario.variants[worker % count].clone(), 1.0)],
                };
                scope.spawn(move || keep_busy(engine, prompt, mix, args.tokens, worker as u64, over))
            })
            .collect();
        std::thread::sleep(Duration::from_secs_f64(args.seconds / 4.0));
        let (start, before) = (Instant::now(), engine.status().tokens_generated);
        std::thread::sleep(Duration::from_secs_f64(args.seconds));
        let tokens = engine.status().tokens_generated - before;
        let rate = tokens as f64 / start.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            match worker.join() {
                Ok(done) => done?,
                Err(_) => bail!("a worker failed"),
            }
        }
        Ok(rate)
    })
}

/// One request after the other until `over`.
fn keep_busy(
    engine: &EngineHandle,
    prompt: &[u32],
    mix: Vec<(String, f32)>,
    max_tokens: usize,
    seed: u64,
    over: &AtomicBool,
) -> Result<()> {
    for round in 0.. {
        let request = Request {
            mix: mix.clone(),
            prompt: prompt.to_vec(),
            max_tokens,
            after: Vec::new(),
            sampling: Sampling::default(),
            stop: Vec::new(),
            stop_ids: Vec::new(),
            seed: Some(seed << 32 | round),
            steps_wanted: false,
            deadline: None,
            priority: Priority::default(),
            client: None,
        };
        let mut events = engine.submit(request)?;
        while let Some(event) = events.blocking_recv() {
            if let crate::engine::Event::Failed(error) = event {
                return Err(error.into());
            }
            if over.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }
    Ok(())
}
