//! A variant in words, and as JSON.

use crate::cli::sampling;
use crate::pb;
use serde_json::{Value, json};

/// All of one variant.
pub fn print(variant: &pb::Variant, json: bool) {
    if json {
        println!("{}", as_json(variant));
        return;
    }
    println!("{}", variant.name);
    println!("  source    {}", variant.source);
    println!("  kept      {}", kept(variant));
    println!("  bytes     {}", variant.bytes);
    println!(
        "  seed      {:#018x}, scale {}",
        variant.seed, variant.scale
    );
    println!("  quality   {}", quality(variant));
    if let Some(moved) = variant.moved {
        println!("  moved     |delta| is {moved:.4} of |base|");
    }
    if !variant.same_as.is_empty() {
        println!("  same as   {}", variant.same_as.join(" "));
    }
    println!(
        "  delta     sha256 {}{}",
        variant.delta_digest,
        if variant.archived { ", archived" } else { "" }
    );
    println!("  process   {}", process(variant));
    if let Some(sampling) = &variant.defaults {
        println!("  sampling  {}", sampling::line(sampling));
    }
}

/// What an addition would have come to.
pub fn print_dry_run(dry_run: &pb::DryRun, json: bool) {
    let variant = dry_run.variant.clone().unwrap_or_default();
    if json {
        let (disk, memory) = (dry_run.disk_bytes, dry_run.memory_bytes);
        println!(
            "{}",
            json!({"dry_run": as_json(&variant), "disk_bytes": disk, "memory_bytes": memory})
        );
        return;
    }
    print(&variant, json);
    println!(
        "not added: it would take {} bytes on the disk and {} in memory",
        dry_run.disk_bytes, dry_run.memory_bytes
    );
}

/// A table of all variants.
pub fn print_all(variants: &[pb::Variant], json: bool) {
    if json {
        let all: Vec<_> = variants.iter().map(as_json).collect();
        println!("{}", Value::from(all));
        return;
    }
    let rows = variants.iter().map(|variant| {
        let share = variant.share.as_ref();
        [
            variant.name.clone(),
            process_name(variant),
            kept_name(variant),
            variant.bits.map_or("-".into(), |bits| format!("{bits:.2}")),
            number(variant.relative_error),
            share.map_or("?".into(), |share| format!("{:.4}", share.share)),
            variant.source.clone(),
        ]
    });
    let head = [
        "name", "process", "kept", "bits", "error", "share", "source",
    ];
    let rows: Vec<[String; 7]> = [head.map(str::to_owned)].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4, 5].map(width);
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0..3 => format!("{cell:width$}  "),
            _ => format!("{cell:>width$}  "),
        });
        println!("{}{}", cells.collect::<String>(), row[6]);
    }
}

/// How it is kept, with what belongs to that.
fn kept(variant: &pb::Variant) -> String {
    let name = kept_name(variant);
    match variant.bits {
        Some(bits) => format!("{name}, {bits:.3} bits: {}", variant.rates),
        None => format!("{name} in {}", variant.banks.join(" ")),
    }
}

fn kept_name(variant: &pb::Variant) -> String {
    let name = variant.keep().as_str_name();
    name.trim_start_matches("KEEP_")
        .to_lowercase()
        .replace('_', "-")
}

fn quality(variant: &pb::Variant) -> String {
    let mut words = format!("relative error {}", number(variant.relative_error));
    if !variant.cosine.is_nan() {
        words += &format!(", cosine {}", number(variant.cosine));
    }
    if let Some(share) = &variant.share {
        words += &format!(", share {:.4} ({})", share.share, share.method);
    }
    words
}

/// A measure that may be missing.
fn number(value: f64) -> String {
    if value.is_nan() {
        "?".into()
    } else {
        format!("{value:.4}")
    }
}

/// The process and what is denoised together.
fn process(variant: &pb::Variant) -> String {
    match variant.block_size {
        Some(block) => format!("{}, blocks of {block}", process_name(variant)),
        None => format!("{}, whole sequences", process_name(variant)),
    }
}

fn process_name(variant: &pb::Variant) -> String {
    let name = variant.process().as_str_name();
    name.trim_start_matches("PROCESS_").to_lowercase()
}

fn as_json(variant: &pb::Variant) -> Value {
    let share = variant.share.as_ref().map(|share| {
        json!({"share": share.share, "method": share.method, "text_digest": share.text_digest})
    });
    json!({
        "name": variant.name, "source": variant.source, "keep": kept_name(variant), "banks": variant.banks,
        "bits": variant.bits, "rates": variant.rates, "bytes": variant.bytes, "share": share,
        "seed": variant.seed, "scale": variant.scale, "cosine": variant.cosine, "relative_error": variant.relative_error,
        "moved": variant.moved, "same_as": variant.same_as, "delta_digest": variant.delta_digest, "archived": variant.archived, "added_unix": variant.added_unix,
        "process": process_name(variant), "block_size": variant.block_size,
        "time_conditioning": variant.time_conditioning, "sampling": variant.defaults.as_ref().map(sampling::line),
    })
}
