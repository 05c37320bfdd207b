//! `choir variants add` and `replace`: a header, then the file where it is uploaded.

use super::print::{print, print_dry_run};
use super::{SharedArgs, text};
use crate::cli::client::{Connection, refused};
use crate::cli::sampling::SamplingArgs;
use crate::model::{self, DitConfig};
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
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes to a message of an upload.
const CHUNK: usize = 1 << 18;

#[derive(Args, Debug)]
pub struct AddArgs {
    /// Its name.
    name: String,
    /// The safetensors file, which is uploaded.
    file: PathBuf,
    /// The file is on the server's own disk, at this path: nothing is uploaded.
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
    mut args: AddArgs,
    replaces: Option<String>,
) -> Result<()> {
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
