//! `choir variants`: add, remove, list and show them while the server runs.

use super::client::{ServerArgs, block_on, refused};
use super::sampling::{self, SamplingArgs};
use crate::model::{self, DitConfig};
use crate::pb;
use crate::pb::add_variant_header::Source;
use crate::pb::add_variant_request::Part;
use crate::pb::add_variant_response::Event;
use crate::pb::admin_client::AdminClient;
use anyhow::{Context, Result, anyhow, bail};
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
    /// The process it was tuned for [default: as a packed delta or the config.json beside the file says, else the base's].
    #[arg(long, value_enum)]
    process: Option<Process>,
    /// Tokens that a uniform variant denoises together [default: as for --process, else the whole sequence].
    #[arg(long)]
    block_size: Option<u32>,
    /// Whether a uniform variant is told the noise level [default: as for --process, else true].
    #[arg(long)]
    time_conditioning: Option<bool>,
    #[command(flatten)]
    shared: SharedArgs,
    /// Sampling defaults of the variant.
    #[command(flatten)]
    sampling: SamplingArgs,
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

/// Says what the config.json beside a checkpoint says of a uniform variant, where the options do not: an upload brings the
/// checkpoint alone.
fn follow_config(args: &mut AddArgs) -> Result<()> {
    let beside = args.file.with_file_name("config.json");
    let Ok(bytes) = std::fs::read(&beside) else {
        return Ok(());
    };
    let config: DitConfig =
        serde_json::from_slice(&bytes).with_context(|| beside.display().to_string())?;
    let regime = config.regime();
    let block = regime.block.map(|block| block as u32);
    let said = match (regime.process, args.process) {
        (model::Process::Uniform, Some(Process::Absorbing))
        | (model::Process::Absorbing, Some(Process::Uniform)) => Some("--process"),
        (model::Process::Absorbing, _) => return Ok(()),
        _ if args.block_size.is_some() && args.block_size != block => Some("--block-size"),
        _ if args
            .time_conditioning
            .is_some_and(|told| told != regime.time_conditioned) =>
        {
            Some("--time-conditioning")
        }
        _ => None,
    };
    if let Some(option) = said {
        bail!("{option}: {} says otherwise", beside.display());
    }
    args.process = Some(Process::Uniform);
    args.block_size = block;
    args.time_conditioning = Some(regime.time_conditioned);
    Ok(())
}

async fn add(mut args: AddArgs) -> Result<()> {
    if !args.on_server {
        follow_config(&mut args)?;
    }
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
    // What the message calls its chunks is, to who typed a command, the file.
    let (uploaded, path) = ("chunk: uploaded: ", format!("{}: ", args.file.display()));
    let refused = |status| {
        anyhow!(
            "{}",
            refused(status).to_string().replacen(uploaded, &path, 1)
        )
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
async fn send(
    sender: mpsc::Sender<pb::AddVariantRequest>,
    header: pb::AddVariantHeader,
    file: Option<File>,
) {
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
        let process = process_name(&variant);
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
    let variant = client
        .get_variant(request)
        .await
        .map_err(refused)?
        .into_inner()
        .variant;
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
    println!(
        "  seed      {:#018x}, scale {}",
        variant.seed, variant.scale
    );
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
    match variant.block_size {
        Some(block) => format!("{}, blocks of {block}", process_name(variant)),
        None => format!("{}, whole sequences", process_name(variant)),
    }
}

fn process_name(variant: &pb::Variant) -> String {
    let name = variant.process().as_str_name();
    name.trim_start_matches("PROCESS_").to_lowercase()
}

fn as_json(variant: &pb::Variant) -> serde_json::Value {
    json!({
        "name": variant.name, "source": variant.source, "banks": variant.banks, "seed": variant.seed,
        "scale": variant.scale, "cosine": variant.cosine, "relative_error": variant.relative_error,
        "delta_digest": variant.delta_digest, "archived": variant.archived, "added_unix": variant.added_unix,
        "process": process_name(variant), "block_size": variant.block_size,
        "time_conditioning": variant.time_conditioning, "sampling": variant.defaults.as_ref().map(sampling::line),
    })
}

fn text(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => bail!("{} is not UTF-8", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: AddArgs,
    }

    #[test]
    fn an_upload_brings_what_the_configuration_beside_it_says() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("model.safetensors").display().to_string();
        let follow = |options: &[&str]| {
            let words = ["add", "new", &file];
            let mut args = Cli::try_parse_from(words.iter().chain(options))
                .expect("options")
                .args;
            follow_config(&mut args).map(|()| {
                let uniform = args
                    .process
                    .map(|process| matches!(process, Process::Uniform));
                (uniform, args.block_size, args.time_conditioning)
            })
        };
        let write =
            |config: &str| std::fs::write(dir.path().join("config.json"), config).expect("write");
        assert_eq!(follow(&[]).expect("no configuration"), (None, None, None));
        let sizes = r#""vocab_size": 9, "model_length": 8, "hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2"#;
        write(&format!(
            r#"{{"model_type": "duo", {sizes}, "block_size": 4, "cross_attn": true}}"#
        ));
        assert_eq!(
            follow(&[]).expect("blocks"),
            (Some(true), Some(4), Some(true))
        );
        for option in [
            "--process=absorbing",
            "--block-size=2",
            "--time-conditioning=false",
        ] {
            let error = follow(&[option]).expect_err("refused").to_string();
            assert!(
                option.starts_with(error.split(':').next().expect("field")),
                "{error}"
            );
        }
        write(&format!(
            r#"{{"model_type": "bd3lm", {sizes}, "block_size": 4, "cross_attn": true}}"#
        ));
        assert_eq!(follow(&[]).expect("absorbing"), (None, None, None));
        assert!(follow(&["--process=uniform"]).is_err());
        write("{");
        assert!(follow(&[]).is_err());
    }
}
