//! `choir store`: what is done to a store that no server has open.

use crate::catalog::{BaseSource, convert};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;

/// Work on a store that no server has open.
#[derive(Args, Debug)]
pub struct StoreCommandArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Code every superposed variant from its archived delta, and keep new ones coded from then on. Each is one step: what was
    /// done before an interruption stays, and the command goes on from there.
    Convert(ConvertArgs),
}

#[derive(Args, Debug)]
struct ConvertArgs {
    /// Folder of the base [default: the model compiled in].
    #[arg(long)]
    base: Option<PathBuf>,
    /// Directory of the store [default: choir/store in the user's data home].
    #[arg(long, env = "CHOIR_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Bits for each parameter of a matrix, everything counted [default: the store's].
    #[arg(long)]
    bits: Option<f32>,
    /// Print a JSON object for every variant.
    #[arg(long)]
    json: bool,
}

pub fn run(args: StoreCommandArgs) -> Result<()> {
    let What::Convert(args) = args.what;
    let dir = args
        .data_dir
        .map_or_else(super::serve::default_data_dir, Ok)?;
    let base = args.base.map_or(BaseSource::Embedded, BaseSource::Folder);
    convert(&base, &dir, args.bits, |converted| {
        let (name, before, after) = (converted.name, converted.before, converted.after);
        match (args.json, after) {
            (true, _) => println!(
                "{}",
                json!({"name": name, "before": before, "after": after})
            ),
            (false, Some(after)) => println!("{name}: {before} bytes, now {after}"),
            (false, None) => println!(
                "{name}: stays superposed, since the store has no archive of it; replace it from its checkpoint"
            ),
        }
    })?;
    Ok(())
}
