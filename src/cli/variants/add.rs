//! `choir variants add` and `replace`: a header, then the file where it is uploaded.

use super::print::{print, print_dry_run};
use super::{SharedArgs, text};
use crate::catalog::Beside;
use crate::checkpoint::{INDEX, SINGLE};
use crate::cli::client::refused;
use crate::cli::sampling::SamplingArgs;
use crate::client::Connection;
use crate::model::architecture::adapter::WEIGHTS;
use crate::pb;
use crate::pb::add_variant_header::Source;
use crate::pb::add_variant_request::Part;
use crate::pb::add_variant_response::Event;
use crate::pb::admin_client::AdminClient;
use crate::store::Keep;
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes to a message of an upload.
const CHUNK: usize = 1 << 18;

#[derive(Args, Debug)]
pub struct AddArgs {
    /// Its name.
    name: String,
    /// The checkpoint's folder or its safetensors file, a coded file, or an adapter's folder. One file of it is uploaded, with what its
    /// folder says of it.
    file: PathBuf,
    /// It is on the server's own disk, at this path: nothing is uploaded. The only way for a folder in shards.
    #[arg(long)]
    on_server: bool,
    /// How it is kept: coded, superposed or low-rank [default: the store's; a coded file is kept as it is].
    #[arg(long)]
    keep: Option<Keep>,
    /// Bits for each parameter of a matrix, everything counted [default: the store's, or the coded file's].
    #[arg(long)]
    bits: Option<f32>,
    /// The seed of its transforms [default: the first 8 bytes of the delta's SHA-256, or the coded file's].
    #[arg(long)]
    seed: Option<u64>,
    /// Multiplies the retrieved delta [default: 1].
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Refuse it where it keeps less than this share of its fine-tune's gain: as the coded file says, or as the server measures
    /// on --check-text before it is added.
    #[arg(long, allow_negative_numbers = true)]
    min_share: Option<f32>,
    /// A held-out text of the variant, to measure the share on.
    #[arg(long)]
    check_text: Option<PathBuf>,
    /// Change nothing; show what it would come to: bytes, bits and relative error.
    #[arg(long)]
    dry_run: bool,
    /// Add it also where it looks like another revision of the base: a delta large against the base in nearly every matrix.
    #[arg(long)]
    force: bool,
    /// The process it was tuned for [default: as its file or the config.json beside it says, else the base's].
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

#[derive(Args, Debug)]
pub struct ReplaceArgs {
    #[command(flatten)]
    addition: AddArgs,
    /// Refuse unless its delta has this SHA-256 [default: that of the delta which is there when the command begins].
    #[arg(long)]
    expected_digest: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Process {
    /// Tokens are masked and revealed.
    Absorbing,
    /// Tokens are replaced by any others and refined.
    Uniform,
}

/// The one file that is uploaded.
fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let [single, index, adapter] = [SINGLE, INDEX, WEIGHTS].map(|name| path.join(name));
    match (single.exists(), index.exists(), adapter.exists()) {
        (true, ..) => Ok(single),
        (_, true, _) => bail!(
            "{} is in shards, and one file is uploaded; where the server can read the folder, give it with --on-server",
            path.display()
        ),
        (.., true) => Ok(adapter),
        _ => bail!(
            "the directory {} has neither {SINGLE}, {INDEX} nor {WEIGHTS}",
            path.display()
        ),
    }
}

/// What stands beside it goes with it, so that it is judged as a path is.
fn beside(file: &Path) -> Result<pb::Beside> {
    let (files, digest) = Beside::read(file)?.to_send();
    let files = files
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes));
    Ok(pb::Beside {
        files: files.collect(),
        pieces_digest: digest.map(|digest| digest.0.to_vec()),
    })
}

pub async fn replace(args: ReplaceArgs) -> Result<()> {
    let mut client = AdminClient::new(args.addition.shared.server.connect().await?);
    let expected = match args.expected_digest {
        Some(digest) => digest,
        None => {
            let name = args.addition.name.clone();
            let request = pb::GetVariantRequest { name };
            let found = client.get_variant(request).await.map_err(refused)?;
            found.into_inner().variant.unwrap_or_default().delta_digest
        }
    };
    send_addition(client, args.addition, Some(expected)).await
}

pub async fn add(args: AddArgs) -> Result<()> {
    let client = AdminClient::new(args.shared.server.connect().await?);
    send_addition(client, args, None).await
}

async fn send_addition(
    mut client: AdminClient<Connection>,
    args: AddArgs,
    replaces: Option<String>,
) -> Result<()> {
    let (source, file, beside) = match args.on_server {
        true => (Source::Path(text(&args.file)?), None, None),
        false => {
            let path = file_of(&args.file)?;
            let file = File::open(&path).with_context(|| path.display().to_string())?;
            let bytes = file.metadata()?.len();
            (Source::UploadBytes(bytes), Some(file), Some(beside(&path)?))
        }
    };
    let check_text = args
        .check_text
        .as_ref()
        .map(|path| std::fs::read_to_string(path).with_context(|| path.display().to_string()));
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
        keep: match args.keep {
            None => pb::Keep::Unspecified,
            Some(Keep::Coded) => pb::Keep::Coded,
            Some(Keep::Superposed) => pb::Keep::Superposed,
            Some(Keep::LowRank) => pb::Keep::LowRank,
        }
        .into(),
        bits: args.bits,
        replaces,
        min_share: args.min_share,
        check_text: check_text.transpose()?,
        dry_run: args.dry_run,
        beside,
        force: args.force,
    };
    // What the message calls its chunks is, to who typed a command, the file.
    let (uploaded, path) = ("chunk: uploaded: ", format!("{}: ", args.file.display()));
    let refused = |status| {
        anyhow!(
            "{}",
            refused(status).to_string().replacen(uploaded, &path, 1)
        )
    };
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(send(sender, header, file));
    let mut events = client
        .add_variant(ReceiverStream::new(receiver))
        .await
        .map_err(refused)?
        .into_inner();
    let (json, bar) = (args.shared.json, progress_bar(args.shared.json));
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
            Some(end) => {
                bar.inspect(ProgressBar::finish_and_clear);
                match end {
                    Event::Variant(variant) => print(&variant, json),
                    Event::DryRun(dry_run) => print_dry_run(&dry_run, json),
                    Event::Progress(_) => {}
                }
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
