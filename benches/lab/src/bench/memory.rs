//! `choir-lab bench memory`: the parts that the server reports, beside what the operating system sees.

use super::process_bytes;
use anyhow::{Context, Result, bail};
use choir::cli::bench::open;
use choir::cli::json::JsonArgs;
use choir::cli::serve::{EngineArgs, StoreArgs};
use choir::engine::Engine;
use clap::Args;
use serde_json::json;
use std::process::Command;

#[derive(Args, Debug)]
pub struct MemoryArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    json: JsonArgs,
}

pub fn run(args: MemoryArgs) -> Result<()> {
    args.json.check()?;
    if args.store.data_dir().is_none() {
        // Making a store leaves free memory behind in a process, as opening one does not: so another process opens it.
        let (_, _, scratch) = open(&args.store)?;
        let dir = scratch.as_ref().context("no store was made")?.path();
        let mut again = Command::new(std::env::current_exe()?);
        let status = again
            .args(std::env::args_os().skip(1))
            .arg("--data-dir")
            .arg(dir)
            .status()?;
        return if status.success() {
            Ok(())
        } else {
            bail!("the measuring process failed")
        };
    }
    let before = process_bytes("RssAnon")?;
    let (catalog, generation, _scratch) = open(&args.store)?;
    let grown = process_bytes("RssAnon")?.saturating_sub(before);
    let status = catalog.status();
    let of = |device: bool| {
        let parts = status.memory.iter().filter(|part| part.on_device == device);
        parts.map(|part| part.bytes).sum::<u64>()
    };
    let (all, on_device) = (of(false), of(true));
    let cache = Engine::start(args.engine.config(), generation)?
        .status()
        .kv_bytes;
    let parts: serde_json::Map<_, _> = (status.memory.iter())
        .map(|part| (part.to_string(), json!(part.bytes)))
        .collect();
    let report =
        json!({"parts": parts, "sum": all, "on_device": on_device, "grown": grown, "cache": cache});
    args.json.report(&report, || {
        let line = |bytes: u64, what: &str| {
            println!("{:>9.2} MiB  {what}", bytes as f64 / f64::from(1 << 20))
        };
        for part in &status.memory {
            line(part.bytes, &part.to_string());
        }
        if on_device > 0 {
            line(on_device, "all of these on the device");
        }
        line(all, "all of these on the host");
        let share = 100.0 * (grown as f64 / all as f64 - 1.0);
        match on_device {
            0 => line(grown, &format!("what the process grew by ({share:+.1} %)")),
            _ => line(grown, "what the process grew by, the driver included"),
        }
        line(
            cache,
            "reserved for keys and values, taken as they are used",
        );
    })
}
