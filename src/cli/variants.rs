//! `choir variants`: add, replace, remove, list and show them while the server runs.

mod add;
mod print;

use super::client::{ServerArgs, block_on, refused};
use crate::pb;
use crate::pb::admin_client::AdminClient;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use print::{print, print_all};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Add, replace, remove, list and show variants of a running server.
#[derive(Args, Debug)]
pub struct VariantsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Add a variant from a fine-tuned checkpoint, from a packed delta, or from a coded file (see `choir train pack`).
    Add(Box<add::AddArgs>),
    /// Put another in the place of a variant, in one step. Requests that run on the old one finish.
    Replace(Box<add::ReplaceArgs>),
    /// Remove a variant. Requests that run on it finish.
    Remove(Box<RemoveArgs>),
    /// List all variants.
    List(ListArgs),
    /// Show one variant.
    Show(ShowArgs),
}

#[derive(Args, Debug)]
struct RemoveArgs {
    /// Its name.
    name: String,
    /// The checkpoint that it was added from, on the server's disk: needed of a superposed variant where the store keeps no
    /// archive.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    shared: SharedArgs,
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ShowArgs {
    /// Its name.
    name: String,
    #[command(flatten)]
    server: ServerArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// Options of every change.
#[derive(Args, Debug)]
struct SharedArgs {
    /// Refuse unless the store is at this generation.
    #[arg(long)]
    expected_generation: Option<u64>,
    #[command(flatten)]
    server: ServerArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: VariantsArgs) -> Result<()> {
    block_on(async {
        match args.what {
            What::Add(args) => add::add(*args).await,
            What::Replace(args) => add::replace(*args).await,
            What::Remove(args) => remove(*args).await,
            What::List(args) => list(args).await,
            What::Show(args) => show(args).await,
        }
    })
}

async fn remove(args: RemoveArgs) -> Result<()> {
    let mut client = AdminClient::new(args.shared.server.connect().await?);
    let request = pb::RemoveVariantRequest {
        name: args.name.clone(),
        path: args.checkpoint.as_deref().map(text).transpose()?,
        expected_generation: args.shared.expected_generation,
    };
    let generation = client
        .remove_variant(request)
        .await
        .map_err(refused)?
        .into_inner()
        .generation;
    match args.shared.json {
        true => println!(
            "{}",
            json!({"removed": args.name, "generation": generation})
        ),
        false => println!("removed {}; generation {generation}", args.name),
    }
    Ok(())
}

async fn list(args: ListArgs) -> Result<()> {
    let mut client = AdminClient::new(args.server.connect().await?);
    let variants = client
        .list_variants(pb::ListVariantsRequest {})
        .await
        .map_err(refused)?
        .into_inner()
        .variants;
    print_all(&variants, args.json);
    Ok(())
}

async fn show(args: ShowArgs) -> Result<()> {
    let mut client = AdminClient::new(args.server.connect().await?);
    let request = pb::GetVariantRequest { name: args.name };
    let variant = client
        .get_variant(request)
        .await
        .map_err(refused)?
        .into_inner()
        .variant;
    print(&variant.unwrap_or_default(), args.json);
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => bail!("{} is not UTF-8", path.display()),
    }
}
