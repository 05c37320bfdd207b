//! `choir score`: how likely a text is.

use super::client::{MixArgs, ServerArgs, block_on, refused};
use crate::pb;
use crate::pb::inference_client::InferenceClient;
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use std::io::Read;
use std::path::PathBuf;

/// Estimate the NELBO of a text, an upper bound of its negative log-likelihood, in nats per token.
#[derive(Args, Debug)]
pub struct ScoreArgs {
    /// The text; "-" reads it from standard input.
    #[arg(required_unless_present = "file")]
    text: Option<String>,
    /// Read the text from this file.
    #[arg(long, conflicts_with = "text")]
    file: Option<PathBuf>,
    #[command(flatten)]
    mix: MixArgs,
    /// Noise levels drawn for every block: more of them, less variance [default: 4].
    #[arg(long)]
    samples: Option<u32>,
    /// The same seed gives the same estimate.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    server: ServerArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: ScoreArgs) -> Result<()> {
    let text = match (&args.text, &args.file) {
        (_, Some(file)) => {
            std::fs::read_to_string(file).with_context(|| file.display().to_string())?
        }
        (Some(text), None) if text != "-" => text.clone(),
        _ => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input")?;
            text
        }
    };
    let request = pb::ScoreRequest {
        mix: args.mix.wire(),
        text,
        samples: args.samples,
        seed: args.seed,
    };
    block_on(async {
        let mut client = InferenceClient::new(args.server.connect().await?);
        let score = client.score(request).await.map_err(refused)?.into_inner();
        if args.json {
            println!(
                "{}",
                json!({"nats_per_token": score.nats_per_token, "tokens": score.tokens, "nfe": score.nfe,
                    "generation": score.generation, "seed": score.seed})
            );
        } else {
            println!(
                "{:.4} nats per token over {} tokens",
                score.nats_per_token, score.tokens
            );
        }
        Ok(())
    })
}
