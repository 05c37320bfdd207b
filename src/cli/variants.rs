//! `choir variants`: add, remove, list and show them while the server runs.

use super::client::{ServerArgs, block_on, refused};
use super::sampling::{self, SamplingArgs};
use crate::pb;
use crate::pb::add_variant_header::Source;
use crate::pb::add_variant_request::Part;
use crate::pb::add_variant_response::Event;
use crate::pb::admin_client::AdminClient;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes to a message of an upload.
const CHUNK: usize = 1 << 18;

/// Add, remove, list and show variants of a running server.
#[derive(Args, Debug)]
pub struct VariantsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Add a variant from a fine-tuned checkpoint, or from a packed delta (see `choir train pack`).
    Add(AddArgs),
    /// Take a variant out of its banks. Requests that run on it finish.
    Remove(RemoveArgs),
    /// List all variants.
    List(ListArgs),
    /// Show one variant.
    Show(ShowArgs),
}

#[derive(Args, Debug)]
struct AddArgs {
    /// Its name.
    name: String,
    /// The safetensors file, which is uploaded.
    file: PathBuf,
    /// The file is on the server's own disk, at this path: nothing is uploaded.
    #[arg(long)]
    on_server: bool,
    /// The seed of its transforms [default: the first 8 bytes of the delta's SHA-256].
    #[arg(long)]
    seed: Option<u64>,
    /// Multiplies the retrieved delta [default: 1].
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<f32>,
    /// The process it was tuned for [default: as a packed delta or the config.json beside --on-server says, else the base's].
    #[arg(long, value_enum)]
    process: Option<Process>,
    /// Tokens that a uniform variant denoises together [default: as for --process, else the whole sequence].
    #[arg(long)]
    block_size: Option<u32>,
    /// Whether a uniform variant is told the noise level [default: as for --process, else true].
    #[arg(long)]
    time_conditioning: Option<bool>,
    /// Sampling defaults of the variant.
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    shared: SharedArgs,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Process {
    /// Tokens are masked and revealed.
    Absorbing,
    /// Tokens are replaced by any others and refined.
    Uniform,
}

#[derive(Args, Debug)]
struct RemoveArgs {
    /// Its name.
    name: String,
    /// The checkpoint that it was added from, on the server's disk: needed where the store keeps no archive.
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
            What::Add(args) => add(args).await,
            What::Remove(args) => remove(args).await,
            What::List(args) => list(args).await,
            What::Show(args) => show(args).await,
        }
    })
}

async fn add(args: AddArgs) -> Result<()> {
    let open = || File::open(&args.file).with_context(|| args.file.display().to_string());
    let (source, file) = match args.on_server {
        true => (Source::Path(text(&args.file)?), None),
        false => {
            let file = open()?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                bail!(
                    "{} is a directory; give the safetensors file itself",
                    args.file.display()
                );
            }
            (Source::UploadBytes(metadata.len()), Some(file))
        }
    };
    let header = pb::AddVariantHeader {
        name: args.name.clone(),
        seed: args.seed,
        scale: args.scale,
        defaults: args.sampling.wire(),
        expected_generation: args.shared.expected_generation,
        source: Some(source),
        process: match args.process {
            None => pb::Process::Unspecified,
            Some(Process::Absorbing) => pb::Process::Absorbing,
            Some(Process::Uniform) => pb::Process::Uniform,
        }
        .into(),
        block_size: args.block_size,
        time_conditioning: args.time_conditioning,
    };
    let mut client = AdminClient::new(args.shared.server.connect().await?);
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(send(sender, header, file));
    let mut events = client
        .add_variant(ReceiverStream::new(receiver))
        .await
        .map_err(refused)?
        .into_inner();
    let bar = progress_bar(args.shared.json);
    while let Some(response) = events.message().await.map_err(refused)? {
        match response.event {
            Some(Event::Progress(progress)) => {
                let stage = progress
                    .stage()
                    .as_str_name()
                    .trim_start_matches("ADD_STAGE_")
                    .to_lowercase();
                if let Some(bar) = &bar {
                    bar.set_position((progress.fraction * 1000.0) as u64);
                    bar.set_message(stage);
                }
            }
            Some(Event::Variant(variant)) => {
                bar.inspect(ProgressBar::finish_and_clear);
                print(&variant, args.shared.json);
                return Ok(());
            }
            None => {}
        }
    }
    bail!("the server ended the stream before the variant was added")
}

/// Sends the header, then the file where there is one. Where the server has stopped listening it has said why.
async fn send(sender: mpsc::Sender<pb::AddVariantRequest>, header: pb::AddVariantHeader, file: Option<File>) {
    let part = |part| pb::AddVariantRequest { part: Some(part) };
    if sender.send(part(Part::Header(header))).await.is_err() {
        return;
    }
    let Some(mut file) = file else { return };
    loop {
        let mut chunk = vec![0; CHUNK];
        match file.read(&mut chunk) {
            // The server compares what came with what was announced, so a file that cannot be read is refused there.
            Ok(0) | Err(_) => return,
            Ok(bytes) => chunk.truncate(bytes),
        }
        if sender.send(part(Part::Chunk(chunk))).await.is_err() {
            return;
        }
    }
}

fn progress_bar(json: bool) -> Option<ProgressBar> {
    let bar = (!json && std::io::stderr().is_terminal()).then(|| ProgressBar::new(1000))?;
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} % {msg}") {
        bar.set_style(style);
    }
    Some(bar)
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
        true => println!("{}", json!({"removed": args.name, "generation": generation})),
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
    if args.json {
        println!(
            "{}",
            serde_json::Value::from(variants.iter().map(as_json).collect::<Vec<_>>())
        );
        return Ok(());
    }
    let width = variants
        .iter()
        .map(|variant| variant.name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    println!(
        "{:width$}  {:9}  {:16}  {:>6}  source",
        "name", "process", "banks", "cosine"
    );
    for variant in variants {
        let (banks, cosine) = (variant.banks.join(" "), number(variant.cosine));
        let process = process(&variant);
        let process = process.split(',').next().unwrap_or_default();
        println!(
            "{:width$}  {process:9}  {banks:16}  {cosine:>6}  {}",
            variant.name, variant.source
        );
    }
    Ok(())
}

async fn show(args: ShowArgs) -> Result<()> {
    let mut client = AdminClient::new(args.server.connect().await?);
    let request = pb::GetVariantRequest { name: args.name };
    let variant = client.get_variant(request).await.map_err(refused)?.into_inner().variant;
    print(&variant.unwrap_or_default(), args.json);
    Ok(())
}

fn print(variant: &pb::Variant, json: bool) {
    if json {
        println!("{}", as_json(variant));
        return;
    }
    println!("{}", variant.name);
    println!("  source    {}", variant.source);
    println!("  banks     {}", variant.banks.join(" "));
    println!("  seed      {:#018x}, scale {}", variant.seed, variant.scale);
    println!(
        "  quality   cosine {}, relative error {}",
        number(variant.cosine),
        number(variant.relative_error)
    );
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
    let process = variant
        .process()
        .as_str_name()
        .trim_start_matches("PROCESS_")
        .to_lowercase();
    match variant.block_size {
        Some(block) => format!("{process}, blocks of {block}"),
        None => format!("{process}, whole sequences"),
    }
}

fn as_json(variant: &pb::Variant) -> serde_json::Value {
    json!({
        "name": variant.name, "source": variant.source, "banks": variant.banks, "seed": variant.seed,
        "scale": variant.scale, "cosine": variant.cosine, "relative_error": variant.relative_error,
        "delta_digest": variant.delta_digest, "archived": variant.archived, "added_unix": variant.added_unix,
        "process": process(variant), "sampling": variant.defaults.as_ref().map(sampling::line),
    })
}

fn text(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => bail!("{} is not UTF-8", path.display()),
    }
}
