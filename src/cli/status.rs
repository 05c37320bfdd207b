//! `choir status`: what is served, in how much memory, and how busy the server is.

use super::client::{ServerArgs, block_on, refused};
use crate::pb;
use crate::pb::admin_client::AdminClient;
use anyhow::Result;
use clap::Args;
use serde_json::json;

/// Show what the server holds and does.
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: StatusArgs) -> Result<()> {
    block_on(async {
        let mut client = AdminClient::new(args.server.connect().await?);
        let status = client
            .get_status(pb::GetStatusRequest {})
            .await
            .map_err(refused)?
            .into_inner();
        if args.json {
            println!("{}", as_json(&status));
        } else {
            show(&status);
        }
        Ok(())
    })
}

fn show(status: &pb::GetStatusResponse) {
    let state = if status.draining {
        "draining"
    } else {
        "serving"
    };
    println!(
        "choir {}, {state}: generation {}, {} variants: {} coded, {} low-rank, {} superposed in {} banks",
        status.version,
        status.generation,
        status.variants,
        status.coded,
        status.low_rank,
        status
            .variants
            .saturating_sub(status.coded + status.low_rank),
        status.banks
    );
    println!(
        "{} of {} sequences running, {} of {} waiting, {} of {} cache pages in use",
        status.running,
        status.max_running,
        status.waiting,
        status.queue_limit,
        status.pages_used,
        status.pages_total
    );
    println!(
        "{} pages kept for texts that begin alike, {} tokens found there; {} times a sequence gave its pages up",
        status.pages_idle, status.tokens_reused, status.preempted
    );
    println!(
        "{} steps, {} tokens; {} requests finished, {} cancelled, {} late, {} stalled, {} failed",
        status.steps,
        status.tokens_generated,
        status.finished,
        status.cancelled,
        status.late,
        status.stalled,
        status.failed
    );
    let refused = status.refused.unwrap_or_default();
    println!(
        "refused: {} by the queue, {} by their variant's cap, {} by their client's, {} by their deadlines",
        refused.queue, refused.variant, refused.client, refused.deadline
    );
    println!(
        "{} paused, {} open streams, {} leases of {} generations",
        status.paused, status.open_streams, status.leases, status.generations
    );
    println!(
        "{:>9} {:>7} {:>7} {:>12} {:>12}  variant",
        "weight", "waiting", "running", "evaluated", "made"
    );
    for load in status
        .variant_loads
        .iter()
        .filter(|load| load.tokens_evaluated > 0 || load.waiting > 0)
    {
        println!(
            "{:>9} {:>7} {:>7} {:>12} {:>12}  {}",
            load.weight,
            load.waiting,
            load.running,
            load.tokens_evaluated,
            load.tokens_generated,
            load.name
        );
    }
    let all: u64 = status.memory.iter().map(|part| part.bytes).sum();
    let total = pb::MemoryPart {
        part: "all".into(),
        bytes: all,
    };
    for part in status.memory.iter().chain([&total]) {
        println!(
            "{:>9.2} MiB  {}",
            part.bytes as f64 / f64::from(1 << 20),
            part.part
        );
    }
}

fn as_json(status: &pb::GetStatusResponse) -> serde_json::Value {
    let memory: serde_json::Map<_, _> = status
        .memory
        .iter()
        .map(|p| (p.part.clone(), json!(p.bytes)))
        .collect();
    let refused = status.refused.unwrap_or_default();
    let load = |load: &pb::VariantLoad| {
        let figures = json!({
            "weight": load.weight, "waiting": load.waiting, "running": load.running,
            "tokens_evaluated": load.tokens_evaluated, "tokens_generated": load.tokens_generated,
        });
        (load.name.clone(), figures)
    };
    let loads: serde_json::Map<_, _> = status.variant_loads.iter().map(load).collect();
    json!({
        "version": status.version, "draining": status.draining, "generation": status.generation,
        "variants": status.variants, "coded": status.coded, "low_rank": status.low_rank, "banks": status.banks, "memory_bytes": memory,
        "running": status.running, "max_running": status.max_running,
        "waiting": status.waiting, "queue_limit": status.queue_limit,
        "pages_used": status.pages_used, "pages_total": status.pages_total, "pages_idle": status.pages_idle,
        "preempted": status.preempted, "tokens_reused": status.tokens_reused, "max_parts": status.max_parts,
        "max_evaluations": status.max_evaluations, "max_prompt_bytes": status.max_prompt_bytes,
        "steps": status.steps, "tokens_generated": status.tokens_generated,
        "finished": status.finished, "cancelled": status.cancelled, "failed": status.failed,
        "late": status.late, "stalled": status.stalled, "paused": status.paused, "open_streams": status.open_streams,
        "generations": status.generations, "leases": status.leases, "variant_loads": loads,
        "refused": {"queue": refused.queue, "variant": refused.variant, "client": refused.client, "deadline": refused.deadline},
    })
}
