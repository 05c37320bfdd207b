//! `choir-lab bench variants`: whether anything but memory grows with the number of variants. Stores of several sizes are made of
//! the fine-tunes compiled in, each again and again under seeds of its own: to a bank, those are other variants.

use super::engine::{LoadArgs, Scenario, chart};
use super::median;
use crate::eval::references::reference;
use crate::picture;
use anyhow::{Context, Result, bail};
use choir::catalog::base::{self, Shipped};
use choir::catalog::{AddRequest, AdditionStage, Catalog, CheckpointSource, RemoveRequest};
use choir::cli::bench::open_in;
use choir::cli::json::JsonArgs;
use choir::cli::scratch::ScratchStore;
use choir::cli::serve::StoreArgs;
use choir::engine::Generation;
use choir::model::Mix;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

#[derive(Args, Debug)]
pub struct VariantsBenchArgs {
    /// Variants in each of the stores, in ascending order.
    #[arg(long, value_delimiter = ',', default_values_t = [16, 64, 256])]
    counts: Vec<usize>,
    /// Do not measure tokens per second.
    #[arg(long)]
    no_load: bool,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    json: JsonArgs,
    /// Also draw tokens per second against the variants touched into this SVG file.
    #[arg(long, value_name = "FILE.svg", conflicts_with = "no_load")]
    plot: Option<PathBuf>,
}

/// Additions to a figure: several times as many as a bank of the default capacity takes, so that each figure sees the same share of
/// empty banks.
const ADDITIONS: usize = 16;

/// A store of some size.
struct Made {
    variants: usize,
    dir: PathBuf,
}

pub fn run(args: VariantsBenchArgs) -> Result<()> {
    args.load.check()?;
    if args.counts.is_empty() || args.counts[0] < 2 || !args.counts.is_sorted_by(|a, b| a < b) {
        bail!("--counts must ascend from 2 or more");
    }
    if args.store.base().is_some() || args.store.data_dir().is_some() {
        bail!(
            "the stores are made of the model compiled in, in directories of their own: no --base, no --data-dir"
        );
    }
    args.json.check()?;
    picture::check(args.plot.as_deref())?;
    let scratch = ScratchStore::new("bench-variants");
    let (sources, mut stores) = make(&args, scratch.path())?;
    let additions = additions(&args, &sources, &stores)?;
    let one = stores.remove(0);
    fs::remove_dir_all(&one.dir)?;
    let sizes = stores
        .iter()
        .map(|store| size(&args, store))
        .collect::<Result<Vec<_>>>()?;
    let rates = if args.no_load {
        Vec::new()
    } else {
        load(&args, &stores)?
    };
    let report = json!({"additions": additions, "stores": sizes, "scenarios": rates});
    args.json.report(&report, || show(&report))
}

/// Makes a store grow, and keeps it at one variant and at every size wanted; also gives what its variants are made of.
fn make(args: &VariantsBenchArgs, dir: &Path) -> Result<(Vec<Shipped>, Vec<Made>)> {
    let growing = dir.join("growing");
    let (catalog, generation) = open_in(&args.store, Some(&growing))?;
    let sources = shipped_like(&generation)?;
    drop(generation);
    for info in catalog
        .list()
        .iter()
        .filter(|info| info.name != sources[0].name)
    {
        catalog.remove(&info.name, RemoveRequest::default())?;
    }
    let mut stores = Vec::new();
    let largest = args.counts.last().copied().unwrap_or_default();
    for variants in 1..=largest {
        if variants == 1 || args.counts.contains(&variants) {
            let dir = dir.join(variants.to_string());
            link(&growing, &dir)?;
            stores.push(Made { variants, dir });
        }
        if variants < largest {
            catalog.add(synthetic(&sources, variants), |_| ())?;
        }
    }
    Ok((sources, stores))
}

/// The variants compiled in whose packed delta there is and that were tuned for what the base was.
fn shipped_like(generation: &Generation) -> Result<Vec<Shipped>> {
    let network = generation.denoiser.facts();
    let mut alike = base::shipped()?;
    // A coded file keeps its own seed: others are made of the packed deltas.
    alike.retain_mut(|shipped| {
        let Some(packed) = reference(shipped.name) else {
            return false;
        };
        shipped.packed = packed;
        shipped
            .regime(network)
            .is_ok_and(|regime| regime == network.regime)
    });
    if alike.is_empty() {
        bail!("no variant like the base is compiled in");
    }
    Ok(alike)
}

/// The `number`th of the made-up variants.
fn synthetic(sources: &[Shipped], number: usize) -> AddRequest {
    let source = CheckpointSource::Bytes(sources[number % sources.len()].packed.to_vec());
    AddRequest {
        seed: Some(number as u64),
        ..AddRequest::new(format!("synthetic-{number:04}"), source)
    }
}

/// Times additions to every one of the stores, which stay as they are. In turn: a disk that has been written to for a while is
/// slower, whichever store it holds.
fn additions(args: &VariantsBenchArgs, sources: &[Shipped], stores: &[Made]) -> Result<Vec<Value>> {
    let mut grown = Vec::new();
    for store in stores {
        let dir = store.dir.with_extension("grown");
        link(&store.dir, &dir)?;
        let (catalog, _) = open_in(&args.store, Some(&dir))?;
        grown.push((catalog, Vec::new(), dir));
    }
    for round in 0..ADDITIONS {
        for (store, (catalog, times, _)) in stores.iter().zip(&mut grown) {
            let mut begun: Vec<(AdditionStage, Instant)> = Vec::new();
            let request = synthetic(sources, store.variants + round);
            catalog.add(request, |progress| {
                begun.push((progress.stage, Instant::now()))
            })?;
            let ended = begun
                .iter()
                .skip(1)
                .map(|(_, begun)| *begun)
                .chain([Instant::now()]);
            let taken = (begun.iter().zip(ended))
                .map(|((stage, begun), end)| (*stage, (end - *begun).as_secs_f64()));
            times.push(Vec::from_iter(taken));
        }
    }
    let mut report = Vec::new();
    for (store, (catalog, times, dir)) in stores.iter().zip(grown) {
        drop(catalog);
        fs::remove_dir_all(dir)?;
        let all = times
            .iter()
            .map(|stages| stages.iter().map(|(_, seconds)| seconds).sum())
            .collect();
        let mut stages: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (stage, seconds) in times.iter().flatten() {
            let stage = format!("{stage:?}").to_lowercase();
            stages.entry(stage).or_default().push(*seconds);
        }
        let stages: BTreeMap<_, _> = stages
            .into_iter()
            .map(|(stage, some)| (stage, median(some)))
            .collect();
        report.push(json!({"variants": store.variants, "seconds": median(all), "stages": stages}));
    }
    Ok(report)
}

/// Makes `to` the store that `from` is now. A store never writes into a file that is there, so links will do; copies would still be
/// on their way to the disk while the next additions wait for theirs to get there.
fn link(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            link(&path, &target)?;
        } else if !path.ends_with("lock") {
            fs::hard_link(&path, &target)?;
        }
    }
    Ok(())
}

/// Time to open and to list, and memory as a process of its own has it.
fn size(args: &VariantsBenchArgs, store: &Made) -> Result<Value> {
    let start = Instant::now();
    let (catalog, _generation) = open_in(&args.store, Some(&store.dir))?;
    let opened = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let listed = catalog.list().len();
    let list = start.elapsed().as_secs_f64();
    drop(catalog);
    let memory = Command::new(std::env::current_exe()?)
        .args(["bench", "memory", "--json", "--data-dir"])
        .arg(&store.dir)
        .output()?;
    if !memory.status.success() {
        bail!(
            "the measuring process failed: {}",
            String::from_utf8_lossy(&memory.stderr)
        );
    }
    let memory: Value =
        serde_json::from_slice(&memory.stdout).context("what the measuring process says")?;
    let mut parts: BTreeMap<&str, u64> = BTreeMap::new();
    for (part, bytes) in memory["parts"].as_object().into_iter().flatten() {
        let kind = match part.split_once('-') {
            Some((kind, _)) if part.starts_with("bank ") => kind,
            _ => part,
        };
        *parts.entry(kind).or_default() += bytes.as_u64().unwrap_or_default();
    }
    Ok(json!({
        "variants": listed, "open_seconds": opened, "list_seconds": list,
        "parts": parts, "sum": memory["sum"], "grown": memory["grown"],
    }))
}

/// Tokens per second by how many variants and banks a step touches, in the smallest and the largest store that have them.
fn load(args: &VariantsBenchArgs, stores: &[Made]) -> Result<Vec<Value>> {
    let open = |store: &Made| open_in(&args.store, Some(&store.dir));
    let opened = stores
        .iter()
        .map(open)
        .collect::<Result<Vec<(Catalog, Generation)>>>()?;
    let mut scenarios: Vec<Scenario> = Vec::new();
    for ((catalog, generation), store) in opened.iter().zip(stores) {
        // By number, so that the first banks are the same ones in every store: their members do not change as it grows.
        let mut banks: BTreeMap<(usize, String), Vec<String>> = BTreeMap::new();
        for variant in catalog.list() {
            // One that is kept by itself shares nothing.
            let bank = variant.banks.first().unwrap_or(&variant.name).clone();
            banks
                .entry((bank.len(), bank))
                .or_default()
                .push(variant.name);
        }
        let banks: Vec<_> = banks.into_values().collect();
        let scenario = |what: String, of: &str, variants: Vec<String>| {
            let name = format!("{what}, {} in the store", store.variants);
            let mut scenario = Scenario::new(name, generation, variants);
            scenario.series = format!("{of}, {} in the store", store.variants);
            scenario
        };
        if scenarios.is_empty() {
            let single = Mix::single(generation.variants[&banks[0][0]].id);
            scenarios
                .push(scenario("one variant, materialised".into(), "", vec![]).alone(&single)?);
        }
        for count in 1..=banks[0].len() {
            let what = format!("{count} of one bank");
            scenarios.push(scenario(what, "of one bank", banks[0][..count].to_vec()));
        }
        for count in [4, 16].into_iter().filter(|&count| count <= banks.len()) {
            let variants = banks[..count].iter().map(|bank| bank[0].clone()).collect();
            scenarios.push(scenario(
                format!("{count} of {count} banks"),
                "each of its own",
                variants,
            ));
        }
    }
    let measured = args.load.measure(&scenarios)?;
    picture::save(args.plot.as_deref(), || chart(&scenarios, &measured))?;
    let row = |(scenario, (rate, ratio)): (&Scenario, _)| json!({"scenario": scenario.name, "tokens_per_second": rate, "ratio": ratio});
    Ok(scenarios.iter().zip(measured).map(row).collect())
}

fn show(report: &Value) {
    let of = |list: &str| report[list].as_array().cloned().unwrap_or_default();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let mib = |value: &Value| number(value) / f64::from(1 << 20);
    for addition in of("additions") {
        let stages = addition["stages"].as_object().into_iter().flatten();
        let stages: Vec<_> = stages
            .map(|(stage, some)| format!("{stage} {:.3}", number(some)))
            .collect();
        println!(
            "{:>9.3} s  to add one to {} variants: {}",
            number(&addition["seconds"]),
            addition["variants"],
            stages.join(", ")
        );
    }
    for store in of("stores") {
        println!(
            "{} variants: opened in {:.3} s, listed in {:.6} s; {:.2} MiB, and the process grew by {:.2}",
            store["variants"],
            number(&store["open_seconds"]),
            number(&store["list_seconds"]),
            mib(&store["sum"]),
            mib(&store["grown"]),
        );
        for (part, bytes) in store["parts"].as_object().into_iter().flatten() {
            println!("{:>9.2} MiB  {part}", mib(bytes));
        }
    }
    for scenario in of("scenarios") {
        println!(
            "{:>9.0} tokens/s  {:>5.2}  {}",
            number(&scenario["tokens_per_second"]),
            number(&scenario["ratio"]),
            scenario["scenario"].as_str().unwrap_or_default(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: VariantsBenchArgs,
    }

    #[test]
    fn what_cannot_be_measured_is_refused_before_anything_is_made() {
        for (line, named) in [
            (&["bench", "--counts", "16,4"][..], "--counts"),
            (&["bench", "--counts", "1"], "--counts"),
            (&["bench", "--data-dir", "store"], "--data-dir"),
            (&["bench", "--seconds", "0"], "--seconds"),
        ] {
            let refused = run(Line::parse_from(line).args)
                .expect_err(named)
                .to_string();
            assert!(refused.contains(named), "{refused}");
        }
    }
}
