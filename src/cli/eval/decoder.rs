//! What is measured of a decoder's fine-tunes, whose weights may not all be in memory at once: each is added to a store that nobody
//! keeps, up to its commit, and the service says what share it would keep.

use super::measure::mean;
use super::{EvalArgs, On};
use crate::catalog::{AddRequest, BaseSource, Catalog, CatalogConfig, CheckpointSource};
use crate::checkpoint;
use crate::cli::scratch::ScratchStore;
use crate::model::Architecture;
use crate::store::Keep;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fmt;

/// One way to keep all variants.
#[derive(Debug, Serialize)]
struct Kept {
    way: String,
    /// What all variants take in memory, and that in bits for each parameter of a matrix of each variant.
    bytes: i64,
    bits: f64,
    /// By variant: the share of the fine-tune's gain that is left.
    shares: Vec<f64>,
    mean: Option<f64>,
    worst: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Shares {
    variants: Vec<String>,
    kept: Vec<Kept>,
}

/// Measures every variant in codes alone, at each of the bits.
pub(super) fn run(args: &EvalArgs, base: BaseSource, network: &Architecture) -> Result<()> {
    if !args.keep.contains(&Keep::Coded) || !args.coded.is_empty() {
        bail!(
            "of a decoder's fine-tunes coded variants are measured, from their checkpoints: --keep coded, without --coded"
        );
    }
    if args.by_role.is_some() || args.sensitivities.is_some() {
        bail!("--by-role and --sensitivities are for a DiT's fine-tunes");
    }
    let scratch = ScratchStore::new("eval");
    let place = (args.place).open(|| Ok(network.usual_form(checkpoint::available())))?;
    let config = CatalogConfig {
        place,
        keep: Some(Keep::Coded),
        ..CatalogConfig::new(scratch.path(), base)
    };
    let (catalog, _) = Catalog::open(config, |_| {}).context("opening the store")?;
    let weights = network.weights();
    let mut kept = Vec::new();
    for &bits in &args.bits {
        let (mut shares, mut bytes) = (Vec::new(), 0);
        for own in &args.variants {
            let On::Text(file) = &own.on else {
                bail!("{}: the built-in skills are a DiT's", own.name);
            };
            let named = || file.display().to_string();
            let request = AddRequest {
                bits: Some(bits as f32),
                check_text: Some(std::fs::read_to_string(file).with_context(named)?),
                force: true,
                dry_run: true,
                ..AddRequest::new(
                    own.name.clone(),
                    CheckpointSource::Path(own.checkpoint.clone()),
                )
            };
            let added = catalog.add(request, |_| {});
            let added = added.with_context(|| own.name.clone())?;
            bytes += added.memory_bytes;
            shares.extend(added.variant.share.map(|found| f64::from(found.share)));
        }
        kept.push(Kept {
            way: format!("codes {bits}"),
            bytes,
            bits: 8.0 * bytes as f64 / (weights * args.variants.len()) as f64,
            mean: mean(shares.iter().copied()),
            worst: shares.iter().copied().min_by(f64::total_cmp),
            shares,
        });
    }
    let variants = args.variants.iter().map(|own| own.name.clone()).collect();
    let report = Shares { variants, kept };
    args.json.report(&report, || print!("{report}"))
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "share of the fine-tune's gain which is left, by how it is kept:"
        )?;
        for kept in &self.kept {
            let number = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{s:.3}"));
            let mib = kept.bytes as f64 / f64::from(1 << 20);
            let each = self.variants.iter().zip(&kept.shares);
            let each = each.map(|(name, share)| format!("{name} {share:.3}"));
            writeln!(
                f,
                "{:30} {:5.2} bits a parameter, {mib:.2} MiB: mean {}, worst {}\n  {}",
                kept.way,
                kept.bits,
                number(kept.mean),
                number(kept.worst),
                each.collect::<Vec<_>>().join(", ")
            )?;
        }
        Ok(())
    }
}
