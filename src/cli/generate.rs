//! `choir generate`: a prompt continued, block by block as the server sends it.

use super::client::{MixArgs, SamplingArgs, ServerArgs, block_on, refused};
use crate::pb;
use crate::pb::generate_response::Event;
use crate::pb::inference_client::InferenceClient;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use std::io::{Read, Write};

/// Continue a prompt.
///
/// The text goes to standard output as it comes, a line of figures to standard error at the end.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// Text to continue; "-" reads it from standard input.
    prompt: String,
    #[command(flatten)]
    mix: MixArgs,
    /// Tokens to make at most [default: 128].
    #[arg(long, short = 'n')]
    max_tokens: Option<u32>,
    /// The same seed, request and generation give the same text.
    #[arg(long)]
    seed: Option<u64>,
    /// End before this text; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// Show every denoising step: what it revealed, and where.
    #[arg(long)]
    show_steps: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// Print one JSON object per event.
    #[arg(long)]
    json: bool,
}

pub fn run(args: GenerateArgs) -> Result<()> {
    let prompt = match args.prompt.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        text => text.to_owned(),
    };
    let request = pb::GenerateRequest {
        mix: args.mix.wire(),
        prompt,
        max_tokens: args.max_tokens,
        sampling: args.sampling.wire(),
        stop: args.stop.clone(),
        stop_ids: Vec::new(),
        seed: args.seed,
        want_steps: args.show_steps,
    };
    block_on(async {
        let mut client = InferenceClient::new(args.server.connect().await?);
        let mut events = client.generate(request).await.map_err(refused)?.into_inner();
        let mut started = None;
        while let Some(response) = events.message().await.map_err(refused)? {
            let Some(event) = response.event else { continue };
            if args.json {
                println!("{}", as_json(&event));
                if let Event::Finished(_) = event {
                    return Ok(());
                }
                continue;
            }
            match event {
                Event::Started(event) => started = Some(event),
                Event::Step(step) => {
                    let shown = step
                        .revealed
                        .iter()
                        .map(|one| format!("{}:{:?}", one.position, one.text));
                    eprintln!("step: {}", shown.collect::<Vec<_>>().join(" "));
                }
                Event::Block(block) => {
                    print!("{}", block.text);
                    std::io::stdout().flush()?;
                }
                Event::Finished(finished) => {
                    println!();
                    eprintln!("{}", figures(started.as_ref(), &finished));
                    return Ok(());
                }
            }
        }
        bail!("the server ended the stream before the text was finished")
    })
}

fn figures(started: Option<&pb::Started>, finished: &pb::Finished) -> String {
    let seconds = finished.compute_us as f64 / 1e6;
    let (generation, seed) = started.map_or((0, 0), |started| (started.generation, started.seed));
    format!(
        "[{} tokens after {}, {:?}; {} network evaluations in {seconds:.2} s, waited {:.2} s; generation {generation}, seed {seed}]",
        finished.generated_tokens,
        finished.prompt_tokens,
        finished.reason(),
        finished.nfe,
        finished.queue_us as f64 / 1e6,
    )
}

fn as_json(event: &Event) -> serde_json::Value {
    match event {
        Event::Started(e) => {
            let mix: Vec<_> = e
                .mix
                .iter()
                .map(|part| json!({"name": part.name, "weight": part.weight}))
                .collect();
            json!({"event": "started", "request_id": e.request_id, "mix": mix, "generation": e.generation, "seed": e.seed})
        }
        Event::Step(e) => {
            let one = |r: &pb::Revealed| json!({"position": r.position, "token": r.token, "text": r.text});
            json!({"event": "step", "revealed": e.revealed.iter().map(one).collect::<Vec<_>>()})
        }
        Event::Block(e) => json!({"event": "block", "text": e.text, "tokens": e.tokens}),
        Event::Finished(e) => json!({
            "event": "finished", "reason": e.reason().as_str_name(), "prompt_tokens": e.prompt_tokens,
            "generated_tokens": e.generated_tokens, "nfe": e.nfe, "queue_us": e.queue_us, "compute_us": e.compute_us,
        }),
    }
}
